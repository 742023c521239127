"""A tile of query vectors attending to keys and values that arrive in chunks: scores, online softmax, weighted sum.

Each element has one chain of operations: a score sums over d in order; the chunks come in order of position, each
rescales what came before; the weighted sum adds token by token. Masked tokens have the weight 0.0 exactly, so it makes
no difference whether a chunk is masked or absent. A row's result therefore depends on its own tokens alone.

The tile's state lies in scratch memory: queries [vectors][d] times the scale, scores [vectors][chunk], sums
[vectors][d], and for each vector its largest score so far and its total weight (one partial total per lane).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, const, exp, f32, fma, let, load, splat, store
from .isa import Isa
from .kernel import Expr
from .tiles import Scratch, divisor_lanes, fold, fold_add, larger, outer_sum, parts, spans, tile_shape
from .vmath import tanh

LOWEST = -1e30  # below every score; its exp is never used
Visible = Callable[[Expr, Expr, int], Expr]  # (vector m, first position, lanes) -> mask


@dataclass(frozen=True, slots=True)
class Tile:
    """Up to `vectors` query vectors of `d` elements; keys come `panel` tokens at a time, `chunk` to a softmax.

    `padded`: the count is known at run time only, and rows up to the next multiple of the register tile are computed in
    vain. Otherwise it is `vectors`.
    """

    vectors: int
    d: int
    panel: int
    chunk: int
    scale: float
    softcap: float
    padded: bool
    isa: Isa

    def scratch(self, **more: int) -> Scratch:
        rows = self.vectors + (max(self._score_shape()[0], self._sum_shape()[0]) if self.padded else 0)
        lanes = self._lanes()
        return Scratch(
            queries=rows * self.d,
            scores=rows * self.chunk,
            sums=rows * self.d,
            tops=rows,
            totals=rows * lanes,
            **more,
        )

    def _score_shape(self) -> tuple[int, int]:
        return tile_shape(self.vectors, self.panel // divisor_lanes(self.panel, self.isa), self.isa)

    def _sum_shape(self) -> tuple[int, int]:
        return tile_shape(self.vectors, self.d // divisor_lanes(self.d, self.isa), self.isa)

    def _lanes(self) -> int:
        return divisor_lanes(self.chunk, self.isa)

    def bind(self, memory: Expr, areas: Mapping[str, Expr], used: Expr) -> BoundTile:
        """The tile in `memory` at the indices of `areas`, see `scratch`, with `used` vectors."""
        names = ("queries", "scores", "sums", "tops", "totals")
        return BoundTile(self, memory, used, *(areas[name] for name in names))


@dataclass(frozen=True, slots=True)
class BoundTile:
    """A tile inside a kernel body. `used` is the number of vectors in this item, the rest are indices of areas."""

    tile: Tile
    memory: Expr
    used: Expr
    queries: Expr
    scores: Expr
    sums: Expr
    tops: Expr
    totals: Expr

    def _blocks(self, height: int) -> Iterator[tuple[Expr, int]]:
        if not self.tile.padded:
            yield from parts(self.tile.vectors, height)
            return
        with T.serial(0, (self.used + (height - 1)) // height) as block:
            yield let(block * height), height

    def begin(self, query: Callable[[Expr, int, Expr], Expr]) -> None:
        """Take the vectors from query(column, lanes, vector m), and forget what came before."""
        t = self.tile
        zero = f32(0)
        with T.serial(0, self.used) as m:
            for i, lanes in spans(t.d, t.isa.lanes):
                store(self.memory, self.queries + m * t.d + i, query(i, lanes, m) * splat(f32(t.scale), lanes), lanes)
                store(self.memory, self.sums + m * t.d + i, splat(zero, lanes), lanes)
            store(self.memory, self.tops + m, f32(LOWEST), 1)
            store(self.memory, self.totals + m * t._lanes(), splat(zero, t._lanes()), t._lanes())

    def score(self, column: Expr, key: Callable[[Expr, Expr, int], Expr], ahead: Callable[[Expr], None]) -> None:
        """Scores of `panel` tokens from `column` of the chunk; key(i, token, lanes) gives element i of many keys.

        ahead(i) is called once for each i < d, to fetch what is needed next.
        """
        t = self.tile
        lanes = divisor_lanes(t.panel, t.isa)
        height, width = t._score_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            def right(i: Expr, v: int) -> Expr:
                if v == 0 and number == 0:
                    ahead(i)
                return key(i, (first + v) * lanes, lanes)

            def write(m: int, v: int, x: Expr) -> None:
                store(self.memory, self.scores + (row + m) * t.chunk + column + (first + v) * lanes, x, lanes)

            def left(m: int, i: Expr) -> Expr:
                return self.memory[self.queries + (row + m) * t.d + i]

            outer_sum(rows, vectors, lanes, t.d, left, right, lambda m, v: splat(f32(0), lanes), write)

        for number, (row, rows) in enumerate(self._blocks(height)):
            for first, vectors in parts(t.panel // lanes, width):
                block(number, row, rows, first, vectors)

    def soften(self, position: Expr, visible: Visible) -> None:
        """Turn the scores of the chunk that begins at `position` into weights, and rescale what came before."""
        t = self.tile
        lanes = t._lanes()
        memory = self.memory

        def cap(x: Expr) -> Expr:
            if not t.softcap:
                return x
            return tanh(let(x * splat(f32(1 / t.softcap), lanes)), lanes) * splat(f32(t.softcap), lanes)

        with T.serial(0, self.used) as m:
            at = let(self.scores + m * t.chunk)
            scores = Registers(t.chunk // lanes, "float32", lanes)
            top = splat(f32(LOWEST), lanes)
            for v in range(scores.count):
                mask = visible(m, let(position + v * lanes), lanes)
                x = let(cap(let(load(memory, at + v * lanes, lanes))))
                scores[v] = tirx.Select(mask, x, splat(f32(LOWEST), lanes))
                top = let(larger(top, scores[v]))
            before = let(memory[self.tops + m])
            now = let(larger(fold(top, lanes, larger), before))
            store(memory, self.tops + m, now, 1)
            now, fade = let(splat(now, lanes)), let(exp(splat(before - now, lanes), lanes))
            total = splat(f32(0), lanes)
            for v in range(scores.count):
                mask = visible(m, let(position + v * lanes), lanes)
                x = let(exp(let(scores[v] - now), lanes))
                scores[v] = tirx.Select(mask, x, splat(f32(0), lanes))
                store(memory, at + v * lanes, scores[v], lanes)
                total = let(total + scores[v])
            partial = self.totals + m * lanes
            store(memory, partial, fma(load(memory, partial, lanes), fade, total), lanes)
            self._fade(m, fade, lanes)

    def _fade(self, m: Expr, fade: Expr, lanes: int) -> None:
        d = self.tile.d
        one = let(_first_lane(fade, lanes))
        for i, width in spans(d, self.tile.isa.lanes):
            at = self.sums + m * d + i
            store(self.memory, at, load(self.memory, at, width) * splat(one, width), width)

    def add(
        self, column: Expr, tokens: Expr, value: Callable[[Expr, Expr, int], Expr], ahead: Callable[[Expr], None]
    ) -> None:
        """Add the weighted values of `tokens` tokens from `column` of the chunk; value(token, i, lanes) from element i.

        ahead(token) is called once for each token, to fetch what is needed next.
        """
        t = self.tile
        lanes = divisor_lanes(t.d, t.isa)
        height, width = t._sum_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            def right(token: Expr, v: int) -> Expr:
                if v == 0 and number == 0:
                    ahead(token)
                return value(token, (first + v) * lanes, lanes)

            def at(m: int, v: int) -> Expr:
                return self.sums + (row + m) * t.d + (first + v) * lanes

            outer_sum(
                rows,
                vectors,
                lanes,
                tokens,
                lambda m, token: self.memory[self.scores + (row + m) * t.chunk + column + token],
                right,
                lambda m, v: load(self.memory, at(m, v), lanes),
                lambda m, v, x: store(self.memory, at(m, v), x, lanes),
            )

        for number, (row, rows) in enumerate(self._blocks(height)):
            for first, vectors in parts(t.d // lanes, width):
                block(number, row, rows, first, vectors)

    def finish(self, write: Callable[[Expr, int, Expr, Expr], None]) -> None:
        """write(column, lanes, vector m, result)."""
        t = self.tile
        with T.serial(0, self.used) as m:
            total = fold_add(load(self.memory, self.totals + m * t._lanes(), t._lanes()), t._lanes())
            inverse = let(f32(1) / total)
            for i, lanes in spans(t.d, t.isa.lanes):
                write(i, lanes, m, load(self.memory, self.sums + m * t.d + i, lanes) * splat(inverse, lanes))


def _first_lane(vector: Expr, lanes: int) -> Expr:
    return tirx.Shuffle([vector], [const(0)]) if lanes > 1 else vector


def no_fetch(i: Expr) -> None:
    """Where everything is in the cache already."""


def up_to(last: Expr, position: Expr, lanes: int, window: int = 0) -> Expr:
    """A mask of `lanes` positions: those at most `last`, and less than `window` before it where there is a window."""
    positions = let(tirx.Ramp(position, const(1), lanes) if lanes > 1 else position)
    mask = positions <= splat(last, lanes)
    if not window:
        return mask
    return tirx.And(mask, positions > splat(last - window, lanes))
