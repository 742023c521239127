"""Rows of elements in memory: where they lie, and how a range of items walks over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from .emit import const, let, when
from .kernel import Expr, Frame


@dataclass(frozen=True, slots=True)
class Rows:
    """Row r begins at element `offset + r * stride` of its pointer; `stride` 0 makes every row the same.

    Columns `first` .. of rows that are `stride` wide are therefore `Rows(stride, first)`. With `repeats` row r is row
    `r % period`, `period` being a size of the kernel.
    """

    stride: int
    offset: int = 0
    repeats: bool = False

    def __str__(self) -> str:
        return f"{self.stride}o{self.offset}{'r' if self.repeats else ''}"

    def start(self, row: Expr, f: Frame) -> Expr:
        """The element index where `row` begins, bound to a name."""
        row = row % f["period"] if self.repeats else row
        return let(row.astype("int64") * self.stride + self.offset)


def blocks(k: int, block: int) -> int:
    """How many items a row of k columns is, each a block of at most `block` of them."""
    return -(-k // block)


def each_block(f: Frame, k: int, block: int, handle: Callable[[Expr, Expr, int], None]) -> None:
    """handle(row, first column, columns) for each item."""
    count, rest = blocks(k, block), k % block
    with T.serial(f.lo, f.hi) as item:
        if count == 1:
            handle(let(item), const(0), k)
        elif not rest:
            handle(let(item // count), let(item % count * block), block)
        else:
            row, part = let(item // count), let(item % count)
            when(
                part < count - 1,
                lambda: handle(row, let(part * block), block),
                lambda: handle(row, const(k - rest), rest),
            )


def each_item(f: Frame, inner: Expr, handle: Callable[[Expr, Expr], None]) -> None:
    """handle(outer, i) for the items `lo <= item < hi`, item = outer * inner + i."""
    with T.serial(f.lo, f.hi) as item:
        handle(let(item // inner), let(item % inner))
