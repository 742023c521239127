"""Byte products by Intel's AMX: tile registers of up to 16 rows of 64 bytes, multiplied whole (its manual, volume 2).

They are given shapes before their use, and Linux gives them to a process that asks (`native.request_tiles`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import const, let, stack
from .group_weights import BoundUnpacked
from .kernel import Expr, Frame

ROWS = 16  # of x in a tile
_BYTES = 64  # of a row, at most
_SUMS, _X, _W = 0, 1, 2  # tile registers


@contextmanager
def tile_registers(group: int) -> Iterator[None]:
    """The code emitted inside may call `group_products` for groups of `group` numbers."""
    depth = _depth(group)
    rows, widths = (ROWS, ROWS, depth // 4), (_BYTES, depth, _BYTES)
    shapes = struct.pack("<2B14x16H16B", 1, 0, *widths, *[0] * 13, *rows, *[0] * 13)
    memory = stack(len(shapes) // 4, "int32")
    for i, word in enumerate(np.frombuffer(shapes, np.int32)):
        T.buffer_store(memory, const(int(word)), [i])
    _amx("ldtilecfg", _address(memory, 0))
    yield
    _amx("tilerelease")


def group_products(f: Frame, x_group: Expr, k: int, weights: BoundUnpacked, number: Expr, group: int) -> list[Expr]:
    """The int32 vectors of the products of group `number` with 16 rows of x int8[.., k], in the order of the rows.

    `x_group` counts the groups of x before this one of the first row.
    """
    sums, depth = stack(ROWS, "int32x16"), _depth(group)  # of vectors: numbers would not lie at a multiple of 64 bytes
    _amx("tilezero", _SUMS)
    for start in range(0, group, depth):
        _amx("tileloadd64", _X, _address(f["x"], let(x_group * group + start)), const(k, "int64"))
        quad = let(weights.quad_at(number, start // 4))
        _amx("tileloadd64", _W, _address(f["scratch"], quad), const(weights.quad_bytes, "int64"))
        _amx("tdpbsud", _SUMS, _X, _W)
    _amx("tilestored64", _SUMS, _address(sums, 0), const(_BYTES, "int64"))
    return [sums[t] for t in range(ROWS)]


def _depth(group: int) -> int:
    """Numbers of a row of x that are multiplied at once."""
    return min(group, _BYTES)


def _address(buffer: Expr, index: Expr) -> Expr:
    return tirx.address_of(buffer[index])


def _amx(name: str, *arguments: Expr) -> None:
    """An instruction; ints are numbers of tile registers."""
    given = [const(a, "int8") if isinstance(a, int) else a for a in arguments]
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *given))
