"""What float and quantized products share: families, row blocks, and how a result leaves the registers.

y = x w^T is computed in tiles: some rows of x times some row blocks of w, whose rows are lanes of vectors. One item of
work is the row blocks of a tile. The families are tiles of different shapes:

    vector   one row of x at a time: for a step with one row, which waits for memory; w is read in several streams
    small    for up to 16 or 32 rows: each row block is needed once, so the next ones are fetched ahead
    matrix   for more: a few row blocks stay in the cache while the rows of x pass by

Every family takes any number of rows, and an element of y has one accumulator that goes through k in order: all give
the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import const, let, load, stack, store, when
from .kernel import Expr, Frame, Pointer

Family = Literal["vector", "small", "matrix"]

AHEAD = 2048  # bytes of weights asked for before they are needed


@dataclass(frozen=True, slots=True)
class Output:
    """y f32[rows, n] = result (+ bias f32[n]) (+ residual f32[rows, n], which may be y itself).

    A row block is `vectors` vectors of `lanes` rows of w.
    """

    n: int
    lanes: int
    vectors: int
    bias: bool
    accumulate: bool

    def pointers(self) -> tuple[Pointer, ...]:
        """[bias,] [residual,] y."""
        named = (("bias", self.bias), ("residual", self.accumulate), ("y", True))
        return tuple(Pointer(name, "float32") for name, present in named if present)

    def __str__(self) -> str:
        return f"{'_bias' if self.bias else ''}{'_add' if self.accumulate else ''}"

    @property
    def blocks(self) -> int:
        """Row blocks of w."""
        return -(-self.n // (self.lanes * self.vectors))

    def write(self, f: Frame, row: Expr, block: Expr, height: int, sums: Callable[[int, int], Expr]) -> None:
        """Write sums(t, vector), for `height` rows from `row` on, to the columns of row block `block`."""
        lanes, width = self.lanes, self.lanes * self.vectors
        full, rest = divmod(self.n, width)
        first, column = let(row.astype("int64") * self.n + block * width), let(block * width)

        def whole() -> None:
            for t in range(height):
                for v in range(self.vectors):
                    at = let(first + (t * self.n + v * lanes))
                    store(f["y"], at, self._finish(f, sums(t, v), column + v * lanes, at, lanes), lanes)

        def part() -> None:
            spill = stack(width, "float32")
            for t in range(height):
                for v in range(self.vectors):
                    store(spill, v * lanes, sums(t, v), lanes)
                with T.serial(0, rest) as i:
                    at = let(first + t * self.n + i)
                    store(f["y"], at, self._finish(f, spill[i], column + i, at, 1), 1)

        if rest:
            when(block < full, whole, part)
        else:
            whole()

    def _finish(self, f: Frame, value: Expr, column: Expr, at: Expr, lanes: int) -> Expr:
        if self.bias:
            value = value + load(f["bias"], column, lanes)
        if self.accumulate:
            value = value + load(f["residual"], at, lanes)
        return value


STREAMS = 4  # far apart, in which memory is read faster than in one: 15 % on two Zen 3 cores


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles of a kernel: rows of x (`heights`) and row blocks (`widths`), each list falling to 1.

    `streams`: the blocks of a tile lie far apart, each in a stream of its own; otherwise they are neighbours.
    `prepared`: something is made of the blocks before their tiles, to be used by all of them. `cached` times the width
    blocks share a pass over x.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    streams: bool = False
    prepared: bool = False
    cached: int = 1

    def items(self, blocks: int) -> int:
        """Independent pieces of the work on `blocks` row blocks."""
        return -(-blocks // self.widths[0])

    def __str__(self) -> str:
        """The largest tile and its marks: `3x3p`."""
        marks = f"{'s' if self.streams else ''}{'p' if self.prepared else ''}"
        return f"{self.heights[0]}x{self.widths[0]}{marks}{f'c{self.cached}' if self.cached > 1 else ''}"


Tile = Callable[[Expr, list[Expr], int], None]


def each_tile(f: Frame, tiling: Tiling, blocks: int, tile: Tile, prepare: Callable[[Expr, int], None]) -> None:
    """tile(row, its row blocks, height) for all rows of the step and the items of this call.

    prepare(block, width) comes before all tiles of these neighbours where the tiling says so.
    """
    if tiling.streams:
        _each_stream(f, tiling, blocks, tile)
        return
    begin = let(f.lo * tiling.widths[0])
    last = let(tirx.min(f.hi * tiling.widths[0], blocks))
    for width in tiling.widths:
        together = width * tiling.cached
        end = let(begin + (last - begin) // width * width)
        with T.serial(0, (end - begin + (together - 1)) // together) as number:
            lo = let(begin + number * together)
            hi = let(tirx.min(lo + together, end))
            if tiling.prepared:
                prepare(lo, width)
            for row, height in _heights(f, tiling.heights):
                with T.serial(0, (hi - lo) // width) as j:
                    first = let(lo + j * width)
                    tile(row, [first + b for b in range(width)], height)
        begin = end


def _each_stream(f: Frame, tiling: Tiling, blocks: int, tile: Tile) -> None:
    """Item i has the blocks i, i + items, i + 2 * items ...: as many as there are."""
    width, apart = tiling.widths[0], tiling.items(blocks)
    with T.serial(f.lo, f.hi) as item:

        def whole() -> None:
            for row, height in _heights(f, tiling.heights):
                tile(row, [item + b * apart for b in range(width)], height)

        def part() -> None:
            for row, height in _heights(f, tiling.heights):
                with T.serial(0, (blocks - item + (apart - 1)) // apart) as b:
                    tile(row, [let(item + b * apart)], height)

        if blocks % width:
            when(item + (width - 1) * apart < blocks, whole, part)
        else:
            whole()


def _heights(f: Frame, heights: tuple[int, ...]) -> Iterator[tuple[Expr, int]]:
    """Emit code for the rows of the step: (first row, rows) of tiles, the highest first."""
    done: Expr = const(0)
    for height in heights:
        count = let((f["rows"] - done) // height)
        with T.serial(0, count) as i:
            yield let(done + i * height), height
        done = let(done + count * height)
