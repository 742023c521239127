"""The artifact's weights: one safetensors file whose tensors lie at multiples of 64 bytes, to be memory-mapped.

The safetensors format allows no holes, so gaps are tensors of their own, called `padding.N`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc.errors import ArtifactError, Corrupt

from .memory import ALIGNMENT, allocate, available, map_huge

Array = np.ndarray[Any, Any]

_COPY_SHARE = 0.8  # of the free memory that a copy may take; the cache of keys and values needs some too

_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file. bfloat16 is kept as its bits, uint16."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class NewFile:
    """A weights file being written: `views` are writable arrays in its memory map, by name."""

    views: dict[str, Array]
    data: Array

    def release(self) -> None:
        """Let the system write back and forget what was written so far."""
        self.advise("MADV_DONTNEED")

    def advise(self, advice: str) -> None:
        """Tell the system how the memory is used, where it can be told."""
        memory = getattr(self.data, "_mmap", None)
        if memory is not None and hasattr(mmap, advice):
            memory.madvise(getattr(mmap, advice))


def create(path: Path, entries: Mapping[str, Entry]) -> NewFile:
    """Make a file with room for `entries`."""
    header: dict[str, Any] = {}
    offset = 0
    for number, (name, entry) in enumerate(entries.items()):
        end = offset + entry.bytes
        header[name] = _field(entry, offset, end)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if offset != end:
            header[f"padding.{number}"] = _field(Entry((offset - end,), np.dtype(np.uint8)), end, offset)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    data = (
        np.memmap(path, np.uint8, mode="r+", offset=8 + len(text), shape=(offset,)) if offset else np.zeros(0, np.uint8)
    )
    new = NewFile(_views(data, header), data)
    new.advise("MADV_HUGEPAGE")  # so that `load_weights` finds it in huge pages
    return new


def read(path: Path, data: Array | None = None) -> dict[str, Array]:
    """Read-only views of the tensors in a file that `create` made, by name.

    `data` is memory that already holds the file; without it, the file is mapped. Raises Corrupt.
    """
    try:
        whole = np.memmap(path, np.uint8, mode="r") if data is None else data
        length = int.from_bytes(whole[:8].tobytes(), "little")
        if not 0 < length <= len(whole) - 8:
            raise ValueError("the header does not fit the file")
        header = json.loads(whole[8 : 8 + length].tobytes())
        views = _views(whole[8 + length :], header)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); compile the model again") from None
    for view in views.values():
        view.flags.writeable = False
    return views


def load_weights(path: Path, *, mapped: bool | None = None) -> dict[str, Array]:
    """The tensors of a file that `create` made, ready for kernels. Raises ArtifactError and Corrupt.

    The file is `mapped`, which is ready at once, shares the memory with the system's cache and other processes and lets
    the system take it back; or copied into huge pages, from which it is read faster. By default it is mapped where the
    cache has it in huge pages, or where a copy would not fit into the free memory.
    """
    size = path.stat().st_size
    if mapped is None:
        free = available()
        mapped = free is not None and size > _COPY_SHARE * free
        if not mapped and (memory := _map_huge(path)) is not None:
            return read(path, memory)
    if mapped:
        return read(path)
    memory = allocate(size)
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < size:
            count = file.readinto(memory[done : done + (1 << 28)].data)
            if not count:
                raise ArtifactError(f"{path} became shorter while it was read")
            done += count
    return read(path, memory)


def _map_huge(path: Path) -> Array | None:
    try:
        return map_huge(path)
    except (OSError, ValueError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); compile the model again") from None


def _field(entry: Entry, start: int, end: int) -> dict[str, Any]:
    return {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}


def _views(data: Array, header: Mapping[str, Any]) -> dict[str, Array]:
    views: dict[str, Array] = {}
    for name, field in header.items():
        if name.startswith("padding.") or name == "__metadata__":
            continue
        start, end = field["data_offsets"]
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"{name} lies outside of the file")
        dtype: Any = _DTYPES[field["dtype"]]
        views[name] = data[start:end].view(dtype).reshape(field["shape"])
    return views
