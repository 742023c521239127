"""How packed weights lie in memory, so that a kernel reads them front to back.

The rows of a weight [n, k] are taken so many at a time, one for each lane of a vector (float weights: of two vectors or
more). Inside such a row block k runs outermost, so a block is one contiguous stream: a large tensor is packed block by
block, and a thread that owns a block owns a slice of every part. Rows beyond n are zeros. With blocks of 16 rows:

    r16     float      w      [blocks][k][16]
    r16k4   4 bits     q      [blocks][k / group][group / 8][16][4], low halves of bytes from the group's first half
    r16k4   6 bits     q      [blocks][k / 16][3][16][4]: a byte's low six bits are a number of quad 0, 1 or 2; the top
                              bits of the three are one of quad 3, its lowest two bits first
    r16k4u  8 bits     q      [blocks][k / group][group / 4][16][4], unsigned: symmetric numbers have 128 added
    r16k4s  8 bits     q      the same, signed: asymmetric numbers have 128 taken away
            quantized  scale  [blocks][k / group][16], and bias likewise
            two-level  scale  [blocks][k / 256][bytes], as one stream: super_scale f16[16] (and super_bias), then for
                              each group scale i8[16] (and bias)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlc.errors import CompileError
from mlc.ir.arrays import QuantizedArray
from mlc.ir.types import Format

Array = np.ndarray[Any, Any]

_TOP_BITS = np.array([[0], [2], [4]], np.uint8)  # places of the pieces of a fourth number of 6 bits


@dataclass(frozen=True, slots=True)
class Layout:
    """`rows` in a row block; `quads`: four neighbours in k stay together; `bytes`: "u", "s", or "" (no 8-bit data)."""

    rows: int
    quads: bool = False
    bytes: str = ""

    def __str__(self) -> str:
        return f"r{self.rows}{'k4' if self.quads else ''}{self.bytes}"

    def blocks(self, n: int) -> int:
        """Row blocks of a weight with n rows."""
        return -(-n // self.rows)


_LAYOUT = re.compile(r"r(\d+)(k4)?([us]?)")


def parse_layout(text: str) -> Layout:
    """The inverse of `str`. Raises CompileError for an unknown layout."""
    match = _LAYOUT.fullmatch(text)
    if not match:
        raise CompileError(f"unknown weight layout {text!r}; expected one such as r16, r16k4 or r16k4u")
    return Layout(int(match[1]), bool(match[2]), match[3])


class _Isa(Protocol):
    """What of `cpu.isa.Isa` decides a layout."""

    @property
    def lanes(self) -> int: ...
    @property
    def float_rows(self) -> int: ...
    @property
    def signed_bytes(self) -> bool: ...


def layout_for(isa: _Isa, format: Format | None) -> Layout:
    """The layout that the kernels of `isa` read; `format` is None for float weights."""
    if format is None:
        return Layout(isa.float_rows)
    return Layout(isa.lanes, True, "" if format.bits < 8 else "s" if isa.signed_bytes else "u")


def pack(array: Array | QuantizedArray, layout: Layout) -> dict[str, Array]:
    """The parts of `array` [n, k]: {"w"} for floats, those of the format for a quantized one.

    Packing rows [a, b) of an array, a being a multiple of `layout.rows`, gives the slice of each part from block
    a / layout.rows on.
    """
    if not isinstance(array, QuantizedArray):
        return {"w": _interleave(array, layout.rows)}
    array.check()
    f = array.format
    n, k = array.q.shape
    if f.bits == 4:
        halves = array.q.reshape(n, k // f.group, 2, f.group // 2)
        stored = halves[:, :, 1] << 4
        stored |= halves[:, :, 0]
    elif f.bits == 6:
        quads = array.q.reshape(n, k // 16, 4, 4)
        stored = quads[:, :, 3:] >> _TOP_BITS << 6
        stored |= quads[:, :, :3]
    else:
        stored = array.q.view(np.uint8)
        if f.symmetric == (layout.bytes == "u"):
            stored = stored ^ np.uint8(128)  # adds or takes away 128
    words = np.ascontiguousarray(stored).reshape(n, -1).view(np.uint32)
    q = _interleave(words, layout.rows).view(np.uint8)
    shared = {name: _interleave(part, layout.rows) for name, part in array.parts.items() if name != "q"}
    if f.scale == "i8":
        shared = {"scale": _join_levels(shared)}
    return {"q": q.reshape(q.shape[0], k // f.group, -1, layout.rows, 4), **shared}


def packed_parts(format: Format) -> tuple[str, ...]:
    """The names of what `pack` makes of an array."""
    return ("q", "scale") if format.symmetric or format.scale == "i8" else ("q", "scale", "bias")


def unpack(parts: Mapping[str, Array], layout: Layout, n: int, format: Format | None) -> Array | QuantizedArray:
    """The first `n` rows of what `pack` was given. `format` is None for float weights."""
    if format is None:
        return _separate(parts["w"], n)
    q = parts["q"]
    words = _separate(np.ascontiguousarray(q).view(np.uint32).reshape(q.shape[0], -1, layout.rows), n)
    stored = words.view(np.uint8)
    if format.bits == 4:
        grouped = stored.reshape(n, -1, format.group // 2)
        stored = np.concatenate([grouped & 15, grouped >> 4], axis=-1).reshape(n, -1)
    elif format.bits == 6:
        threes = stored.reshape(n, -1, 3, 4)
        last = np.bitwise_or.reduce(threes >> 6 << _TOP_BITS, axis=-2, keepdims=True)
        stored = np.concatenate([threes & 63, last], axis=-2).reshape(n, -1)
    elif format.symmetric == (layout.bytes == "u"):
        stored = stored ^ np.uint8(128)
    if format.bits == 8 and format.symmetric:
        stored = stored.view(np.int8)
    levels = _split_levels(parts["scale"], layout.rows, format) if format.scale == "i8" else parts
    shared = {name: _separate(part, n) for name, part in levels.items() if name != "q"}
    return QuantizedArray.of({"q": stored, **shared}, format)


def _join_levels(parts: Mapping[str, Array]) -> Array:
    """Interleaved scales, biases and what is above them, [blocks, .., rows], as u8[blocks, k / 256, bytes]."""
    blocks, supers, rows = parts["super_scale"].shape
    above = [part.view(np.uint8) for name, part in parts.items() if name.startswith("super_")]
    groups = [part.reshape(blocks, supers, -1, rows) for name, part in parts.items() if not name.startswith("super_")]
    below = np.stack(groups, axis=3).view(np.uint8).reshape(blocks, supers, -1)
    return np.concatenate([*above, below], axis=-1)


def _split_levels(joined: Array, rows: int, format: Format) -> dict[str, Array]:
    """The inverse of `_join_levels`."""
    names = ("scale",) if format.symmetric else ("scale", "bias")
    above = np.split(np.ascontiguousarray(joined[..., : 2 * rows * len(names)]).view(np.float16), len(names), axis=-1)
    below = joined[..., 2 * rows * len(names) :].view(np.int8).reshape(*joined.shape[:2], -1, len(names), rows)
    found = {name: below[..., i, :].reshape(len(joined), -1, rows) for i, name in enumerate(names)}
    return found | {f"super_{name}": part for name, part in zip(names, above, strict=True)}


def _interleave(array: Array, rows: int) -> Array:
    """[n, m] -> [blocks, m, rows]."""
    n, m = array.shape
    full, rest = divmod(n, rows)
    out = np.zeros((full + bool(rest), m, rows), array.dtype)
    out[:full] = array[: full * rows].reshape(full, rows, m).transpose(0, 2, 1)
    if rest:
        out[full, :, :rest] = array[full * rows :].T
    return out


def _separate(part: Array, n: int) -> Array:
    """The inverse of `_interleave`."""
    blocks, m, rows = part.shape
    return np.ascontiguousarray(part.transpose(0, 2, 1)).reshape(blocks * rows, m)[:n]
