"""Rows of logits and how they are sampled: what the kernels that choose tokens have in common.

`rules` f32[rows, RULE] say how each row is sampled: FACTOR is 1 / temperature (0: take the most probable token), TOP_K
and TOP_P limit what is left (0 and 1: they do not), MIN_P is the smallest weight. A token's weight is its probability
divided by that of the most probable token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, exp, f32, let, splat, vector, when
from .kernel import Expr, Frame, Pointer

FACTOR, TOP_K, TOP_P, MIN_P, RULE = 0, 1, 2, 3, 4
BROKEN, IMPOSSIBLE = -1, -2  # in place of a token: the logits hold NaN or infinity; all of them are -infinity
BLOCK = 2048  # columns whose maximum and sum are kept
STRIP = 64  # columns of a block whose sum is kept
STRIPS = BLOCK // STRIP  # of a block
PART = 8 * BLOCK  # columns of one histogram
LEAST = -87.0  # a weight of less than e^-87 is 0
INFINITY = float("inf")


def blocks(vocab: int) -> int:
    return -(-vocab // BLOCK)


def parts(vocab: int) -> int:
    return -(-vocab // PART)


@dataclass(frozen=True, slots=True)
class Bins:
    """A histogram's: `per_e` of them for each factor of e in weight; the last takes all that is left."""

    per_e: int

    @staticmethod
    def of(vocab: int) -> Bins:
        """More of them where more tokens would share one."""
        return Bins(min(64, max(8, 1 << (blocks(vocab).bit_length() - 1))))

    @property
    def count(self) -> int:
        return 32 * self.per_e

    def depth(self, x: Expr, peak: Expr, factor: Expr, lanes: int) -> Expr:
        """How many bins a token lies below the most probable one; its bin is the whole part, or the last."""
        return let(distance_of(x, peak, factor, lanes) * splat(f32(-self.per_e), lanes))

    def number(self, depth: Expr, lanes: int) -> Expr:
        return let(let(tirx.min(splat(f32(self.count - 1), lanes), depth)).astype(vector("int32", lanes)))


def each_range(f: Frame, vocab: int, size: int, handle: Callable[[Expr, Expr, Expr, int], None]) -> None:
    """handle(row, number, first column, columns) for each item, a range of `size` columns of a row or the rest."""
    count = -(-vocab // size)
    with T.serial(f.lo, f.hi) as item:
        row, number = let(item // count), let(item % count)
        in_range(number, vocab, size, lambda first, columns: handle(row, number, first, columns))


def in_range(number: Expr, vocab: int, size: int, handle: Callable[[Expr, int], None]) -> None:
    """handle(first column, columns) for range `number` of a row."""
    count = -(-vocab // size)
    first, rest = let(number * size), vocab - (count - 1) * size
    if count == 1 or rest == size:
        handle(first, rest)
    else:
        when(number < count - 1, lambda: handle(first, size), lambda: handle(first, rest))


def start_of(row: Expr, vocab: int) -> Expr:
    return let(row.astype("int64") * vocab)


def cell(dtype: str, value: Expr) -> Registers:
    """A variable, read and written as `cell[0]`."""
    made = Registers(1, dtype, 1)
    made[0] = value
    return made


def rule(f: Frame, row: Expr, field: int) -> Expr:
    return let(f["rules"][row * RULE + field])


def distance_of(x: Expr, peak: Expr, factor: Expr, lanes: int) -> Expr:
    """The logarithm of a token's weight, 0 or less."""
    return let(let(x - splat(peak, lanes)) * splat(factor, lanes))


def weight_of(distance: Expr, lanes: int) -> Expr:
    return let(tirx.Select(distance < splat(f32(LEAST), lanes), splat(f32(0), lanes), exp(distance, lanes)))


def all_rows(sizes: Mapping[str, Expr]) -> Expr:
    """Kernels that treat a row as one item."""
    return sizes["rows"]


ROW = (
    Pointer("logits", "float32"),
    Pointer("peak", "float32"),
    Pointer("tokens", "int32"),
    Pointer("rules", "float32"),
)
