"""GGUF, versions 2 and 3, little endian: the container alone, with its own names and block formats.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, metadata, tensor infos,
padding, data. Every count, length, dim and offset of the file is an exact integer here and is checked against the
bytes that are left before anything is allocated for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc.errors import BadCheckpoint, UnsupportedModel

from .gguf_blocks import BLOCKS
from .reader import (
    DTYPES,
    Array,
    MappedFile,
    TensorInfo,
    check_overlap,
    check_rows,
    check_shape,
    count_elements,
    listed,
)

MAX_ARRAY = 1 << 22  # elements of one metadata array; the largest vocabularies have a tenth of that
MAX_KEY = 1 << 16  # bytes of a key or tensor name
MAX_ALIGNMENT = 1 << 16  # bytes

# ggml_type -> our name, for those that mlc reads
_READABLE = {0: "f32", 1: "f16", 30: "bf16", 2: "q4_0", 8: "q8_0", 12: "q4_K", 14: "q6_K"}
# the others, so that a message can name them
_KNOWN = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

# gguf_metadata_value_type -> dtype, for those of fixed size; 7 is a bool, 8 a string, 9 an array
_NUMBERS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's data lies, in bytes from the start of the file."""

    offset: int
    end: int


class Gguf:
    """An open GGUF file. `tensors` have GGUF's names; `dtype` is f32, f16, bf16 or a key of `gguf_blocks.BLOCKS`."""

    def __init__(self, path: Path) -> None:
        """Read the header of `path` and check all of it. Raises BadCheckpoint, UnsupportedModel."""
        self.path = path
        self._file = MappedFile(path)
        cursor = _Cursor(self._file)
        tensors, entries = _preamble(cursor)
        self._metadata = _metadata(cursor, entries)
        if self._metadata.get("split.count", 1) != 1:
            raise UnsupportedModel(f"{path} is one shard of several; merge them with `llama-gguf-split --merge`")
        self._infos: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        self._read_infos(cursor, tensors)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of the leading axis of a tensor that is not in blocks; read-only."""
        return self._file.rows(self._infos[name], self._places[name].offset, start, stop)

    def blocks(self, name: str, start: int, stop: int) -> Array:
        """The raw blocks of rows [start, stop), uint8[rows, ..., bytes per row]; read-only."""
        info, place = self._infos[name], self._places[name]
        check_rows(info, start, stop)
        rows = count_elements(info.shape[:-1])
        row_bytes = (place.end - place.offset) // rows
        step = rows // info.shape[0] * row_bytes
        shape = (stop - start, *info.shape[1:-1], row_bytes)
        return self._file.array(np.dtype(np.uint8), place.offset + start * step, shape)

    def release(self) -> None:
        """Give back the memory of what was read so far."""
        self._file.release()

    def metadata(self) -> Mapping[str, Any]:
        """Metadata by key; arrays of strings are lists, arrays of numbers are numpy arrays."""
        return self._metadata

    def _read_infos(self, cursor: _Cursor, count: int) -> None:
        cursor.expect(count * 24, "tensor infos")  # the least an info takes
        relative = {}
        unreadable = []
        for _ in range(count):
            info, kind, offset = _info(cursor)
            if info.name in self._infos:
                raise BadCheckpoint(f"{self.path}: the tensor {info.name!r} is there twice; the file is damaged")
            if not info.dtype:
                unreadable.append(f"{info.name} ({_KNOWN.get(kind, f'type {kind}')})")
            self._infos[info.name], relative[info.name] = info, offset
        if unreadable:
            raise UnsupportedModel(
                f"{self.path} has tensors of types that mlc does not read: {listed(unreadable)}; it reads "
                f"{', '.join(sorted(name.upper() for name in _READABLE.values()))}"
            )
        alignment = self._alignment()
        begin = -(-cursor.at // alignment) * alignment
        for info in self._infos.values():
            place = f"{self.path}: tensor {info.name!r}"
            offset = relative[info.name]
            size = _size(place, info)
            if offset % alignment:
                raise BadCheckpoint(f"{place} lies at {offset}, no multiple of the alignment {alignment}")
            if begin + offset + size > self._file.size:
                raise BadCheckpoint(
                    f"{place} ends at byte {begin + offset + size}, the file has {self._file.size}; "
                    "it is truncated: download it again"
                )
            self._places[info.name] = _Place(begin + offset, begin + offset + size)
        check_overlap(str(self.path), ((p.offset, p.end, name) for name, p in self._places.items()))

    def _alignment(self) -> int:
        value = self._metadata.get("general.alignment", 32)
        if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise BadCheckpoint(f"{self.path}: general.alignment is {value!r}; expected a power of two up to 65536")
        return value


class _Cursor:
    """Reads forward through the header and never past the end of the file."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0

    def expect(self, size: int, what: str) -> None:
        """Raises BadCheckpoint unless `size` bytes are left."""
        if size > self.file.size - self.at:
            raise BadCheckpoint(
                f"{self.file.path}: {what} would need {size} bytes at byte {self.at}, the file has {self.file.size}; "
                "it is truncated or damaged: download it again"
            )

    def take(self, size: int, what: str) -> bytes:
        self.expect(size, what)
        self.at += size
        return self.file.data[self.at - size : self.at]

    def u32(self, what: str) -> int:
        value: int = struct.unpack("<I", self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = struct.unpack("<Q", self.take(8, what))[0]
        return value

    def text(self, what: str) -> str:
        try:
            return self.take(self.u64(what), what).decode("utf-8")
        except UnicodeDecodeError:
            raise BadCheckpoint(f"{self.file.path}: {what} is no UTF-8 text; the file is damaged") from None

    def name(self, what: str) -> str:
        text = self.text(what)
        if not text or len(text) > MAX_KEY:
            raise BadCheckpoint(f"{self.file.path}: {what} has {len(text)} characters; the file is damaged")
        return text


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    """The number of tensors and of metadata entries."""
    path = cursor.file.path
    if cursor.take(4, "the magic") != b"GGUF":
        raise BadCheckpoint(f"{path} does not begin with GGUF; is this a GGUF file?")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise UnsupportedModel(f"{path} is big endian; mlc reads little-endian GGUF")
    if version not in (2, 3):
        raise UnsupportedModel(f"{path} has GGUF version {version}; mlc reads 2 and 3")
    return cursor.u64("the tensor count"), cursor.u64("the metadata count")


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    cursor.expect(count * 13, "metadata")  # the least an entry takes
    table = dict[str, Any]()
    for _ in range(count):
        key = cursor.name("a metadata key")
        if key in table:
            raise BadCheckpoint(f"{cursor.file.path}: the metadata key {key[:120]!r} is there twice")
        table[key] = _value(cursor, f"metadata {key[:120]!r}")
    return table


def _value(cursor: _Cursor, what: str) -> Any:
    kind = cursor.u32(what)
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    numbers = _numbers(cursor, kind, 1, what)
    return numbers[0].item()


def _array(cursor: _Cursor, what: str) -> Any:
    kind, count = cursor.u32(what), cursor.u64(what)
    if count > MAX_ARRAY:
        raise BadCheckpoint(f"{cursor.file.path}: {what} says that it has {count} elements; the file is damaged")
    if kind == _STRING:
        return [cursor.text(what) for _ in range(count)]
    return _numbers(cursor, kind, count, what)


def _numbers(cursor: _Cursor, kind: int, count: int, what: str) -> Array:
    dtype = np.dtype("u1") if kind == _BOOL else _NUMBERS.get(kind)
    if dtype is None:
        inside = "an array inside an array" if kind == _ARRAY else f"of the unknown type {kind}"
        raise BadCheckpoint(f"{cursor.file.path}: {what} is {inside}; the file is damaged")
    numbers: Array = np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)
    if kind != _BOOL:
        return numbers
    if count and numbers.max() > 1:
        raise BadCheckpoint(f"{cursor.file.path}: {what} is no bool; the file is damaged")
    return numbers.view(np.bool_)


def _info(cursor: _Cursor) -> tuple[TensorInfo, int, int]:
    """One tensor info, its ggml type, and the offset of its data. The dtype is empty where mlc does not read it."""
    name = cursor.name("a tensor name")
    what = f"tensor {name[:120]!r}"
    dims = cursor.u32(what)
    if dims > 4:
        raise BadCheckpoint(f"{cursor.file.path}: {what} has {dims} dims; GGUF allows 4")
    shape = struct.unpack(f"<{dims}Q", cursor.take(8 * dims, what))[::-1]  # stored fastest first
    if 0 in shape:
        raise BadCheckpoint(f"{cursor.file.path}: {what} has a dim of 0; the file is damaged")
    check_shape(f"{cursor.file.path}: {what}", shape)
    kind = cursor.u32(what)
    return TensorInfo(name, shape, _READABLE.get(kind, "")), kind, cursor.u64(what)


def _size(place: str, info: TensorInfo) -> int:
    """Bytes of the tensor's data."""
    count = count_elements(info.shape)
    block = BLOCKS.get(info.dtype)
    if block is None:
        return count * DTYPES[info.dtype].itemsize
    if len(info.shape) < 2 or info.shape[-1] % block.numbers:
        raise BadCheckpoint(
            f"{place} has shape {list(info.shape)}; {info.dtype} needs rows of a multiple of {block.numbers}"
        )
    return count // block.numbers * block.bytes
