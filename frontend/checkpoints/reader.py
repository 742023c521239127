"""What every checkpoint reader offers, and the checks that all of them share."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from mlc.errors import BadCheckpoint
from mlc.ir.arrays import QuantizedArray

Array = np.ndarray[Any, Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i8": np.dtype("i1"),
    "u8": np.dtype("u1"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "bool": np.dtype("?"),
}

MAX_DIMS = 8
MAX_ELEMENTS = 1 << 48  # of one tensor; also bounds the dims of an empty one, which no file size does


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint, before anything of it is read.

    `shape` is in torch order ([outputs, inputs]). `dtype` is a key of `DTYPES`, or the quantized format of the IR
    (`q8_g32`, `q4a_g32_i8`, ...) whose numbers `decoded` gives.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


class Checkpoint(Protocol):
    """An open checkpoint: names and shapes are known and proved to lie inside the files, data is read on demand."""

    @property
    def path(self) -> Path:
        """The folder or file it was opened from."""

    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name."""

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of the leading axis in the dtype of the file; the one row of a 0-d tensor has shape ().

        Read-only, and a view of the memory map where alignment allows. Not for quantized tensors.
        """

    def decoded(self, name: str, start: int, stop: int) -> QuantizedArray:
        """Rows [start, stop) of the leading axis of a quantized tensor."""

    def release(self) -> None:
        """Give back the memory of what was read so far; arrays that `rows` gave stay valid."""

    def metadata(self) -> Mapping[str, Any]:
        """What the files say about themselves."""

    def config(self) -> dict[str, Any]:
        """The model's config with the keys of config.json. Raises BadConfig, BadCheckpoint, UnsupportedModel."""


class MappedFile:
    """A file as a read-only memory map. Raises BadCheckpoint where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file
            reason = "it is empty" if isinstance(error, ValueError) else error.strerror or str(error)
            raise BadCheckpoint(f"cannot read {path}: {reason}") from None
        self.size = len(self.data)

    def release(self) -> None:
        """Let the system forget the pages that were read; they come back from the file when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def array(self, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> Array:
        """The bytes at `offset` as a read-only array; copied only where the file does not align them."""
        count = count_elements(shape)
        assert 0 <= offset <= offset + count * dtype.itemsize <= self.size
        if not count:
            return np.empty(shape, dtype)
        if offset % dtype.itemsize:
            copy = np.frombuffer(self.data[offset : offset + count * dtype.itemsize], dtype)
            return copy.reshape(shape)
        return np.frombuffer(self.data, dtype, count, offset).reshape(shape)

    def rows(
        self, info: TensorInfo, offset: int, start: int, stop: int, strides: tuple[int, ...] | None = None
    ) -> Array:
        """Rows of the tensor whose first element is at byte `offset`; `strides` in elements, None: contiguous."""
        dtype = DTYPES[info.dtype]
        check_rows(info, start, stop)
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        if strides is None or not count_elements(shape):
            row = count_elements(info.shape[1:]) * dtype.itemsize
            return self.array(dtype, offset + start * row, shape)
        begin = offset + start * strides[0] * dtype.itemsize
        flat = self.array(dtype, begin, (span(shape, strides),))
        return np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides], writeable=False)


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a tensor that has any."""
    return 1 + sum((dim - 1) * stride for dim, stride in zip(shape, strides, strict=True))


def check_rows(info: TensorInfo, start: int, stop: int) -> None:
    """Callers ask for rows that exist: their shapes were checked against the file's."""
    rows = info.shape[0] if info.shape else 1
    assert 0 <= start <= stop <= rows, f"{info.name} has {rows} rows; asked for [{start}, {stop})"


def count_elements(shape: Iterable[int]) -> int:
    """The product of the dims, exact: numpy's would overflow in silence."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def check_shape(place: str, shape: tuple[int, ...]) -> None:
    """Raises BadCheckpoint where a shape is more than any tensor has. The dims are integers of at least 0."""
    if len(shape) > MAX_DIMS or count_elements(dim for dim in shape if dim) > MAX_ELEMENTS:
        raise BadCheckpoint(f"{place} has the impossible shape {_shorten(str(list(shape)))}; the file is damaged")


def check_overlap(place: str, extents: Iterable[tuple[int, int, str]]) -> None:
    """Raises BadCheckpoint where two (begin, end, name) extents share a byte. Sorts them itself."""
    last_end, last_name = 0, ""
    for begin, end, name in sorted(extents):
        if begin < last_end:
            raise BadCheckpoint(f"{place}: the data of {last_name!r} and {name!r} overlap; the file is damaged")
        if end > begin:
            last_end, last_name = end, name


def listed(names: Iterable[str], limit: int = 10) -> str:
    """`a, b, c and 7 more`."""
    every = list(names)
    shown = ", ".join(_shorten(name) for name in every[:limit])
    return f"{shown} and {len(every) - limit} more" if len(every) > limit else shown


def _shorten(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 120 else f"{text[:117]}..."
