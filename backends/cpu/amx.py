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
_GROUPS = 8  # of which the products are made before the first is read: a tile register takes its time to reach memory
_SUMS, _X, _W = (0, 1, 2, 3), (4, 5), (6, 7)  # tile registers, used in turn


@contextmanager
def tile_registers(group: int) -> Iterator[None]:
    """The code emitted inside may call `group_products` for groups of `group` numbers."""
    depth = _depth(group)
    shapes = {_SUMS: (ROWS, _BYTES), _X: (ROWS, depth), _W: (depth // 4, _BYTES)}  # rows, and the bytes of each
    rows, widths = ([shape[i] for registers, shape in shapes.items() for _ in registers] for i in range(2))
    palette = struct.pack("<2B14x16H16B", 1, 0, *widths, *[0] * 8, *rows, *[0] * 8)
    memory = stack(len(palette) // 4, "int32")
    for i, word in enumerate(np.frombuffer(palette, np.int32)):
        T.buffer_store(memory, const(int(word)), [i])
    _amx("ldtilecfg", _address(memory, 0))
    yield
    _amx("tilerelease")


def groups_together(groups: int) -> int:
    """How many of a row's groups one `group_products` is for."""
    return max(count for count in range(1, _GROUPS + 1) if groups % count == 0)


def group_products(
    f: Frame, x_group: Expr, k: int, weights: BoundUnpacked, first: Expr, count: int, group: int
) -> Expr:
    """The products of groups `first` .. + count with 16 rows of x int8[.., k]: int32x16[count * ROWS], group by group.

    `x_group` counts the groups of x before the first one of the first row.
    """
    sums, depth = stack(count * ROWS, "int32x16"), _depth(group)  # of vectors: numbers would lie at no multiple of 64
    for g in range(count):
        total = _SUMS[g % len(_SUMS)]
        _amx("tilezero", total)
        for part in range(group // depth):
            x, w = (registers[(g * (group // depth) + part) % len(registers)] for registers in (_X, _W))
            _amx("tileloadd64", x, _address(f["x"], let((x_group + g) * group + part * depth)), const(k, "int64"))
            quad = let(weights.quad_at(first + g, part * depth // 4))
            _amx("tileloadd64", w, _address(f["scratch"], quad), const(weights.quad_bytes, "int64"))
            _amx("tdpbsud", total, x, w)
        _amx("tilestored64", total, _address(sums, g * ROWS), const(_BYTES, "int64"))
    return sums


def _depth(group: int) -> int:
    """Numbers of a row of x that are multiplied at once."""
    return min(group, _BYTES)


def _address(buffer: Expr, index: Expr) -> Expr:
    return tirx.address_of(buffer[index])


def _amx(name: str, *arguments: Expr) -> None:
    """An instruction; ints are numbers of tile registers."""
    given = [const(a, "int8") if isinstance(a, int) else a for a in arguments]
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *given))
