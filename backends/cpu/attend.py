"""A tile of query vectors attending to keys and values: scores, softmax over a span of tokens, weighted sum, merging.

Each element has one chain of operations. A score sums over d in order. A span, a fixed stretch of positions, gives a
`Partial` by itself: its largest score, its total weight and its weighted sum, token by token. Partials are merged in
the order of position. Masked tokens have the weight 0.0 exactly, so it makes no difference whether a part of a span is
masked or absent. A row's result therefore depends on its own tokens alone, wherever its partials are computed.

The tile's state lies in scratch memory: queries [vectors][depth] times the scale, scores [vectors][span], and for each
vector the partial of the span at hand and the one merged so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, const, exp, f32, fma, let, load, splat, store
from .isa import Isa
from .kernel import Expr
from .kv import padded
from .tiles import Scratch, divisor_lanes, fold, fold_add, larger, outer_sum, parts, spans, tile_shape
from .vmath import tanh

LOWEST = -1e30  # below every score
HEAD = 16  # elements of a `Partial` before its sums
Ahead = Callable[[Expr, int], None]
Visible = Callable[[Expr, Expr, int], Expr]  # (vector m, first position, lanes) -> mask
Piece = Callable[[Expr, Expr, int], Expr]  # a vector of keys or values; see `BoundTile.score` and `add`
Scales = Callable[[Expr, int], Expr]  # (first token, lanes) -> scales of keys in bytes
PanelScales = Callable[[Expr, int, int], Expr]  # (column of a panel, token of it, lanes) -> scales of values in bytes


@dataclass(frozen=True, slots=True)
class Partial:
    """Softmax attention over some tokens, not yet divided: the largest score, the total weight, and sums f32[d].

    The sums may be written in whole vectors of up to 16.
    """

    memory: Expr
    at: Expr
    d: int
    isa: Isa

    @staticmethod
    def size(d: int) -> int:
        """Elements of one, a multiple of 16."""
        return HEAD + padded(d)

    def clear(self) -> None:
        """No token seen."""
        self.forget_sums()
        self.note(f32(LOWEST), f32(0))

    def forget_sums(self) -> None:
        for i, lanes in spans(self.d, self.isa.lanes):
            store(self.memory, self.sums + i, splat(f32(0), lanes), lanes)

    def note(self, top: Expr, total: Expr) -> None:
        store(self.memory, self.at, top, 1)
        store(self.memory, self.at + 1, total, 1)

    @property
    def top(self) -> Expr:
        return self.memory[self.at]

    @property
    def total(self) -> Expr:
        return self.memory[self.at + 1]

    @property
    def sums(self) -> Expr:
        """The index of the first sum."""
        return self.at + HEAD

    def merge(self, later: Partial) -> None:
        """Take in the tokens of `later`."""
        lanes = self.isa.lanes
        now = let(larger(self.top, later.top))
        old, new = (let(exp(splat(let(x - now), lanes), lanes)) for x in (self.top, later.top))
        first, second = (let(_first_lane(x, lanes)) for x in (old, new))
        self.note(now, fma(later.total, second, let(self.total * first)))
        for i, width in spans(self.d, lanes):
            faded = let(load(self.memory, self.sums + i, width) * splat(first, width))
            mine = fma(load(later.memory, later.sums + i, width), splat(second, width), faded)
            store(self.memory, self.sums + i, mine, width)

    def copy(self, source: Partial) -> None:
        for i, lanes in spans(self.d, self.isa.lanes):
            store(self.memory, self.sums + i, load(source.memory, source.sums + i, lanes), lanes)
        self.note(source.top, source.total)

    def finish(self, write: Callable[[Expr, int, Expr], None]) -> None:
        """write(column, lanes, result)."""
        inverse = let(f32(1) / self.total)
        for i, lanes in spans(self.d, self.isa.lanes):
            write(i, lanes, load(self.memory, self.sums + i, lanes) * splat(inverse, lanes))


@dataclass(frozen=True, slots=True)
class Tile:
    """Up to `vectors` query vectors of `d` elements; keys come `panel` tokens at a time, `span` to a softmax; values
    come in blocks of `columns` columns.

    `padded`: the count is known at run time only, and rows up to the next multiple of the register tile are computed in
    vain. Otherwise it is `vectors`.
    """

    vectors: int
    d: int
    panel: int
    columns: int
    span: int
    scale: float
    softcap: float
    padded: bool
    isa: Isa

    @property
    def depth(self) -> int:
        """Elements of a query's row."""
        return self.d

    def scratch(self, **more: int) -> Scratch:
        rows = self.vectors + (max(self.score_shape()[0], self.sum_shape()[0]) if self.padded else 0)
        record = Partial.size(self.d)
        return Scratch(
            queries=rows * self.depth, scores=rows * self.span, here=rows * record, merged=rows * record, **more
        )

    def score_shape(self) -> tuple[int, int]:
        """Rows and vectors of the register tile that makes scores."""
        return tile_shape(self.vectors, self.panel // divisor_lanes(self.panel, self.isa), self.isa)

    def sum_shape(self) -> tuple[int, int]:
        """The same for weighted sums."""
        return tile_shape(self.vectors, self.columns // divisor_lanes(self.columns, self.isa), self.isa)

    def bind(self, memory: Expr, areas: Mapping[str, Expr], used: Expr) -> BoundTile:
        """The tile in `memory` at the indices of `areas`, see `scratch`, with `used` vectors."""
        return BoundTile(self, memory, used, **self.places(areas))

    @staticmethod
    def places(areas: Mapping[str, Expr]) -> dict[str, Expr]:
        return {
            "queries": areas["queries"],
            "scores": areas["scores"],
            "here_at": areas["here"],
            "merged_at": areas["merged"],
        }


@dataclass(frozen=True, slots=True)
class BoundTile:
    """A tile inside a kernel body. `used` is the number of vectors in this item, the rest are indices of areas."""

    tile: Tile
    memory: Expr
    used: Expr
    queries: Expr
    scores: Expr
    here_at: Expr
    merged_at: Expr

    def here(self, m: Expr) -> Partial:
        """The partial of vector `m` in the span at hand."""
        return self._partial(self.here_at, m)

    def merged(self, m: Expr) -> Partial:
        """The partials of vector `m` merged so far."""
        return self._partial(self.merged_at, m)

    def _partial(self, area: Expr, m: Expr) -> Partial:
        t = self.tile
        return Partial(self.memory, area + m * Partial.size(t.d), t.d, t.isa)

    def blocks(self, height: int) -> Iterator[tuple[Expr, int]]:
        if not self.tile.padded:
            yield from parts(self.tile.vectors, height)
            return
        with T.serial(0, (self.used + (height - 1)) // height) as block:
            yield let(block * height), height

    def begin(self, query: Callable[[Expr, int, Expr], Expr]) -> None:
        """Take the vectors from query(column, lanes, vector m), and forget what came before."""
        with T.serial(0, self.used) as m:
            self.take(let(self.queries + m * self.tile.depth), lambda i, lanes: query(i, lanes, m))
            self.merged(m).clear()

    def take(self, row: Expr, query: Callable[[int, int], Expr]) -> None:
        """Put the query(column, lanes) into the row at `row`."""
        t = self.tile
        for i, lanes in spans(t.d, t.isa.lanes):
            store(self.memory, row + i, query(i, lanes) * splat(f32(t.scale), lanes), lanes)

    def score(self, column: Expr, key: Piece, ahead: Ahead, scales: Scales | None = None) -> None:
        """Scores of `panel` tokens from `column` of the span; key(i, token, lanes) gives element i of many keys.

        ahead(i * panel + token, offset) is called for each key vector of the first rows, to fetch what is read later.
        """
        t = self.tile
        lanes = divisor_lanes(t.panel, t.isa)
        height, width = t.score_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            def right(i: Expr, v: int) -> Expr:
                if number == 0:
                    ahead(i * t.panel + first * lanes, v * lanes)
                return key(i, (first + v) * lanes, lanes)

            def write(m: int, v: int, x: Expr) -> None:
                store(self.memory, self.scores + (row + m) * t.span + column + (first + v) * lanes, x, lanes)

            def left(m: int, i: Expr) -> Expr:
                return self.memory[self.queries + (row + m) * t.depth + i]

            outer_sum(rows, vectors, lanes, t.d, left, right, lambda m, v: splat(f32(0), lanes), write)

        for number, (row, rows) in enumerate(self.blocks(height)):
            for first, vectors in parts(t.panel // lanes, width):
                block(number, row, rows, first, vectors)

    def soften(
        self, start: Expr, count: Expr, position: Expr, visible: Visible, scales: PanelScales | None = None
    ) -> None:
        """Turn the scores of `count` panels from panel `start` of the span at `position` into weights.

        scales(column of a panel, token of it, lanes) are factors of the values, which go into the weights.
        """
        t = self.tile
        lanes = divisor_lanes(t.panel, t.isa)
        memory = self.memory

        def cap(x: Expr) -> Expr:
            return tanh(let(x * splat(f32(1 / t.softcap), lanes)), lanes) * splat(f32(t.softcap), lanes)

        def columns(m: Expr) -> Iterator[tuple[Expr, int, Expr]]:
            """(column of the panel, token of it, place) of each vector of scores."""
            with T.serial(0, count) as i:
                column = let((start + i) * t.panel)
                for v in range(0, t.panel, lanes):
                    yield column, v, let(self.scores + m * t.span + column + v)

        with T.serial(0, self.used) as m:
            top, total = Registers(1, "float32", lanes), Registers(1, "float32", lanes)
            top[0], total[0] = splat(f32(LOWEST), lanes), splat(f32(0), lanes)
            for column, v, at in columns(m):
                x = let(load(memory, at, lanes))
                if t.softcap:
                    x = let(cap(x))
                    store(memory, at, x, lanes)
                mask = visible(m, let(position + column + v), lanes)
                top[0] = larger(top[0], let(tirx.Select(mask, x, splat(f32(LOWEST), lanes))))
            highest = let(fold(top[0], lanes, larger))
            for column, v, at in columns(m):
                mask = visible(m, let(position + column + v), lanes)
                weight = let(exp(let(load(memory, at, lanes) - splat(highest, lanes)), lanes))
                weight = let(tirx.Select(mask, weight, splat(f32(0), lanes)))
                total[0] = total[0] + weight
                if scales is not None:  # what is not visible may have any scale
                    scaled = let(weight * scales(column, v, lanes))
                    weight = let(tirx.Select(mask, scaled, splat(f32(0), lanes)))
                store(memory, at, weight, lanes)
            self.here(m).forget_sums()
            self.here(m).note(highest, fold_add(total[0], lanes))

    def add(self, column: Expr, tokens: Expr, start: Expr, value: Piece, ahead: Ahead) -> None:
        """Add the weighted values of `tokens` tokens from `column` of the span, in the block of columns from `start`.

        value(token, i, lanes) gives elements from i of the block; ahead(token * columns + i, offset) is called for each
        value vector of the first rows.
        """
        t = self.tile
        lanes = divisor_lanes(t.columns, t.isa)
        height, width = t.sum_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            def right(token: Expr, v: int) -> Expr:
                if number == 0:
                    ahead(token * t.columns + first * lanes, v * lanes)
                return value(token, (first + v) * lanes, lanes)

            def at(m: int, v: int) -> Expr:
                return self.here(row + m).sums + start + (first + v) * lanes

            outer_sum(
                rows,
                vectors,
                lanes,
                tokens,
                lambda m, token: self.memory[self.scores + (row + m) * t.span + column + token],
                right,
                lambda m, v: load(self.memory, at(m, v), lanes),
                lambda m, v, x: store(self.memory, at(m, v), x, lanes),
            )

        for number, (row, rows) in enumerate(self.blocks(height)):
            for first, vectors in parts(t.columns // lanes, width):
                block(number, row, rows, first, vectors)

    def merge(self) -> None:
        """The span is complete: merge its partials."""
        with T.serial(0, self.used) as m:
            self.merged(m).merge(self.here(m))

    def finish(self, write: Callable[[Expr, int, Expr, Expr], None]) -> None:
        """write(column, lanes, vector m, result)."""
        with T.serial(0, self.used) as m:
            self.merged(m).finish(lambda i, lanes, x: write(i, lanes, m, x))


def _first_lane(vector: Expr, lanes: int) -> Expr:
    return tirx.Shuffle([vector], [const(0)]) if lanes > 1 else vector


def no_fetch(start: Expr, offset: int) -> None:
    """Where everything is in the cache already."""


def up_to(last: Expr, position: Expr, lanes: int, window: int = 0) -> Expr:
    """A mask of `lanes` positions: those at most `last`, and less than `window` before it where there is a window."""
    # A constant vector against a scalar: a vector of positions would be made lane by lane.
    ramp = tirx.Ramp(const(0), const(1), lanes) if lanes > 1 else const(0)
    mask = ramp <= splat(let(last - position), lanes)
    if not window:
        return mask
    return tirx.And(mask, ramp > splat(let(last - window - position), lanes))
