"""A checkpoint of one file, or of the shards that an index names: what safetensors and PyTorch's format share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlc.errors import BadCheckpoint, BadConfig
from mlc.ir.arrays import QuantizedArray

from ..config import read_config
from .reader import Array, MappedFile, TensorInfo, listed


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's data lies."""

    file: MappedFile
    offset: int  # bytes from the start of the file
    strides: tuple[int, ...] | None = None  # in elements; None: row after row without a gap


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file holds; every claim of it is checked."""

    tensors: Mapping[str, tuple[TensorInfo, Place]]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How the files are called, and what reads one of them (raising BadCheckpoint, UnsupportedModel)."""

    single: str  # the name of a file that holds everything; shards have its suffix
    read: Callable[[MappedFile], Contents]

    @property
    def index(self) -> str:
        """The name of the file that tells which shard holds which tensor."""
        return f"{self.single}.index.json"

    def found_in(self, folder: Path) -> bool:
        return (folder / self.single).is_file() or (folder / self.index).is_file()


class Shards:
    """A checkpoint of one or more files of a format, opened from a folder or from a single file."""

    def __init__(self, path: Path, files: Mapping[str, Path], format: FileFormat) -> None:
        """`files` by the name that messages call them. Use `Shards.open`."""
        self.path = path
        self._infos: dict[str, TensorInfo] = {}
        self._places: dict[str, Place] = {}
        self._metadata: dict[str, str] = {}
        self.contents: dict[str, frozenset[str]] = {}  # tensors by file
        for name, file in files.items():
            self._add(name, file, format.read(MappedFile(file)))

    @staticmethod
    def open(path: Path, format: FileFormat) -> Shards:
        """Open `path`, a folder or a file. Raises BadCheckpoint, UnsupportedModel."""
        if path.is_file():
            if path.name != format.single and (path.parent / format.index).is_file():
                raise BadCheckpoint(f"{path} is one of several shards; name their folder instead: {path.parent}")
            return Shards(path, {path.name: path}, format)
        if (path / format.single).is_file():
            return Shards(path, {format.single: path / format.single}, format)
        return _open_sharded(path, format)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Array:
        place = self._places[name]
        return place.file.rows(self._infos[name], place.offset, start, stop, place.strides)

    def decoded(self, name: str, start: int, stop: int) -> QuantizedArray:
        raise AssertionError(f"{name} is not quantized: these formats have no blocks")

    def release(self) -> None:
        for file in {id(place.file): place.file for place in self._places.values()}.values():
            file.release()

    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    def config(self) -> dict[str, Any]:
        if self.path.is_dir():
            return read_config(self.path / "config.json")
        beside = self.path.parent / "config.json"
        if not beside.is_file():
            raise BadConfig(
                f"{self.path} has no config.json beside it, which says what model this is; put it there, and the "
                "tokenizer's files, or name a folder that has all of them"
            )
        return read_config(beside)

    def _add(self, name: str, file: Path, contents: Contents) -> None:
        for tensor, (info, place) in contents.tensors.items():
            if tensor in self._infos:
                raise BadCheckpoint(f"{file}: the tensor {tensor!r} is in an earlier shard too")
            self._infos[tensor], self._places[tensor] = info, place
        self._metadata.update(contents.metadata)
        self.contents[name] = frozenset(contents.tensors)


def _open_sharded(folder: Path, format: FileFormat) -> Shards:
    try:
        index = read_config(folder / format.index)
    except BadConfig as error:
        raise BadCheckpoint(str(error)) from None
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
        raise BadCheckpoint(f"{folder / format.index}: weight_map must map tensor names to file names")
    files = {name: folder / name for name in sorted(set(shards.values()))}
    for name, file in files.items():
        if not _plain(name, Path(format.single).suffix):
            raise BadCheckpoint(f"{folder / format.index} names the shard {name[:80]!r}; a shard is a plain file name")
        if not file.is_file():
            raise BadCheckpoint(f"{folder} lacks the shard {name}; download it again")
    checkpoint = Shards(folder, files, format)
    for name, present in checkpoint.contents.items():
        promised = {tensor for tensor, shard in shards.items() if shard == name}
        if absent := sorted(promised - present):
            raise BadCheckpoint(f"{folder / format.index} says that {name} holds {listed(absent)}; it does not")
        if unknown := sorted(present - promised):
            raise BadCheckpoint(f"{folder / name} holds {listed(unknown)}, which {format.index} does not know of")
    return checkpoint


def _plain(name: str, suffix: str) -> bool:
    """Whether `name` is a file name that stays inside its folder."""
    return name.endswith(suffix) and not name.startswith(".") and not set(name) & set("/\\:\0")
