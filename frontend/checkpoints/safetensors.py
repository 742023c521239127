"""Safetensors: one file, or shards named by model.safetensors.index.json.

The format is 8 bytes of header length, a JSON header, then the data of all tensors without a gap
(https://github.com/huggingface/safetensors#format). Nothing in a header is believed before it is checked against the
size of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc.errors import BadCheckpoint, BadConfig, UnsupportedModel

from ..config import read_config
from .reader import DTYPES, Array, MappedFile, TensorInfo, check_overlap, check_shape, count_elements, listed

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library

_NAMES = {name.upper(): name for name in DTYPES}  # F32 -> f32


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's data lies."""

    file: MappedFile
    offset: int  # bytes from the start of the file


class Safetensors:
    """A checkpoint of one or more safetensors files, opened from a folder or from a single file."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        """`files` by the name that messages call them. Use `Safetensors.open`."""
        self.path = path
        self._infos: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        self._metadata: dict[str, str] = {}
        self.contents: dict[str, frozenset[str]] = {}  # tensors by file
        for name, file in files.items():
            self.contents[name] = self._read(MappedFile(file))

    @staticmethod
    def open(path: Path) -> Safetensors:
        """Open `path`, a folder or a .safetensors file. Raises BadCheckpoint, UnsupportedModel."""
        if path.is_file():
            return Safetensors(path, {path.name: path})
        if (path / SINGLE).is_file():
            return Safetensors(path, {SINGLE: path / SINGLE})
        return _open_sharded(path)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Array:
        place = self._places[name]
        return place.file.rows(self._infos[name], place.offset, start, stop)

    def decoded(self, name: str, start: int, stop: int) -> tuple[Array, Array, Array | None]:
        raise AssertionError(f"{name} is not quantized: safetensors has no block formats")

    def release(self) -> None:
        for file in {id(place.file): place.file for place in self._places.values()}.values():
            file.release()

    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    def config(self) -> dict[str, Any]:
        return read_config((self.path.parent if self.path.is_file() else self.path) / "config.json")

    def _read(self, file: MappedFile) -> frozenset[str]:
        """Add the tensors of `file`; returns their names."""
        start, header = _header(file)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise BadCheckpoint(f"{file.path}: __metadata__ must map names to strings; the file is damaged")
        self._metadata.update(metadata)
        extents = []
        for name, entry in header.items():
            info, begin, end = _entry(file, name, entry, file.size - start)
            if name in self._infos:
                raise BadCheckpoint(f"{file.path}: the tensor {name!r} is in an earlier shard too")
            self._infos[name], self._places[name] = info, _Place(file, start + begin)
            extents.append((begin, end, name))
        check_overlap(str(file.path), extents)
        used = sum(end - begin for begin, end, _ in extents)
        if used != file.size - start:
            raise BadCheckpoint(
                f"{file.path} holds {file.size - start} bytes of data, its tensors take {used}; "
                "the file is truncated or damaged: download it again"
            )
        return frozenset(header)


def _header(file: MappedFile) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the parsed header."""
    if file.size < 8:
        raise BadCheckpoint(f"{file.path} has {file.size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(file.data[:8], "little")
    if length > min(MAX_HEADER, file.size - 8):
        raise BadCheckpoint(
            f"{file.path} says that its header has {length} bytes, the file has {file.size}; it is truncated or "
            "no safetensors file: download it again"
        )
    text = file.data[8 : 8 + length]
    if text[:1] != b"{":
        raise BadCheckpoint(f"{file.path}: the header is no JSON object; is this a safetensors file?")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file.path}: the header is not readable: {error}") from None
    assert isinstance(header, dict)  # it begins with a brace
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are distinct. Raises ValueError, as the JSON parser does."""
    table = dict[str, Any]()
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:120]!r} is there twice")
        table[key] = value
    return table


def _entry(file: MappedFile, name: str, entry: Any, data: int) -> tuple[TensorInfo, int, int]:
    """The tensor an entry of the header tells of and the extent of its bytes in the `data` bytes after the header."""
    place = f"{file.path}: tensor {name[:120]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadCheckpoint(f"{place} must have dtype, shape and data_offsets; the file is damaged")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise BadCheckpoint(f"{place} has a dtype, shape or data_offsets of the wrong type; the file is damaged")
    if dtype not in _NAMES:
        raise UnsupportedModel(f"{place} has dtype {dtype[:40]}; mlc reads {', '.join(_NAMES)}")
    info = TensorInfo(name, tuple(shape), _NAMES[dtype])
    check_shape(place, info.shape)
    begin, end = offsets
    size = count_elements(info.shape) * DTYPES[info.dtype].itemsize
    if not begin <= end <= data:
        raise BadCheckpoint(
            f"{place} lies at {begin}..{end} of {data} bytes; the file is truncated or damaged: download it again"
        )
    if end - begin != size:
        raise BadCheckpoint(f"{place} has {end - begin} bytes, its shape and dtype need {size}; the file is damaged")
    return info, begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _open_sharded(folder: Path) -> Safetensors:
    try:
        index = read_config(folder / INDEX)
    except BadConfig as error:
        raise BadCheckpoint(str(error)) from None
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
        raise BadCheckpoint(f"{folder / INDEX}: weight_map must map tensor names to file names")
    files = {name: folder / name for name in sorted(set(shards.values()))}
    for name, file in files.items():
        if not _plain(name):
            raise BadCheckpoint(f"{folder / INDEX} names the shard {name[:80]!r}; a shard is a plain file name")
        if not file.is_file():
            raise BadCheckpoint(f"{folder} lacks the shard {name}; download it again")
    checkpoint = Safetensors(folder, files)
    for name, present in checkpoint.contents.items():
        promised = {tensor for tensor, shard in shards.items() if shard == name}
        if absent := sorted(promised - present):
            raise BadCheckpoint(f"{folder / INDEX} says that {name} holds {listed(absent)}; it does not")
        if unknown := sorted(present - promised):
            raise BadCheckpoint(f"{folder / name} holds {listed(unknown)}, which {INDEX} does not know of")
    return checkpoint


def _plain(name: str) -> bool:
    """Whether `name` is a file name that stays inside its folder."""
    return name.endswith(".safetensors") and not name.startswith(".") and not set(name) & set("/\\:\0")
