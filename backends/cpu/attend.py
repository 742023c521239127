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

from .emit import Registers, bits, const, exp, f32, fma, let, load, splat, store, vector
from .isa import Dot, Isa
from .kernel import Expr
from .kv import padded, quantize
from .tiles import Scratch, divisor_lanes, fold, fold_add, larger, outer_sum, parts, spans, tile_shape
from .vmath import tanh

LOWEST = -1e30  # below every score
Ahead = Callable[[Expr, int], None]
Visible = Callable[[Expr, Expr, int], Expr]  # (vector m, first position, lanes) -> mask


@dataclass(frozen=True, slots=True)
class Partial:
    """Softmax attention over some tokens, not yet divided: sums f32[d], then the largest score and the total weight."""

    memory: Expr
    at: Expr
    d: int
    isa: Isa

    @staticmethod
    def size(d: int) -> int:
        """Elements of one, a multiple of 16."""
        return -(-(d + 2) // 16) * 16

    def clear(self) -> None:
        """No token seen."""
        self.forget_sums()
        self.note(f32(LOWEST), f32(0))

    def forget_sums(self) -> None:
        for i, lanes in spans(self.d, self.isa.lanes):
            store(self.memory, self.at + i, splat(f32(0), lanes), lanes)

    def note(self, top: Expr, total: Expr) -> None:
        store(self.memory, self.at + self.d, top, 1)
        store(self.memory, self.at + (self.d + 1), total, 1)

    @property
    def top(self) -> Expr:
        return self.memory[self.at + self.d]

    @property
    def total(self) -> Expr:
        return self.memory[self.at + (self.d + 1)]

    def merge(self, later: Partial) -> None:
        """Take in the tokens of `later`."""
        lanes = self.isa.lanes
        now = let(larger(self.top, later.top))
        old, new = (let(exp(splat(let(x - now), lanes), lanes)) for x in (self.top, later.top))
        first, second = (let(_first_lane(x, lanes)) for x in (old, new))
        self.note(now, fma(later.total, second, let(self.total * first)))
        for i, width in spans(self.d, lanes):
            faded = let(load(self.memory, self.at + i, width) * splat(first, width))
            mine = fma(load(later.memory, later.at + i, width), splat(second, width), faded)
            store(self.memory, self.at + i, mine, width)

    def copy(self, source: Partial) -> None:
        for i, lanes in spans(self.d, self.isa.lanes):
            store(self.memory, self.at + i, load(source.memory, source.at + i, lanes), lanes)
        self.note(source.top, source.total)

    def finish(self, write: Callable[[Expr, int, Expr], None]) -> None:
        """write(column, lanes, result)."""
        inverse = let(f32(1) / self.total)
        for i, lanes in spans(self.d, self.isa.lanes):
            write(i, lanes, load(self.memory, self.at + i, lanes) * splat(inverse, lanes))


@dataclass(frozen=True, slots=True)
class Tile:
    """Up to `vectors` query vectors of `d` elements; keys come `panel` tokens at a time, `span` to a softmax; values
    come in blocks of `columns` columns.

    `padded`: the count is known at run time only, and rows up to the next multiple of the register tile are computed in
    vain. Otherwise it is `vectors`. `in_bytes`: keys are bytes with a scale each, so queries become bytes as well. The
    row of a query then holds its bytes, its scale, and what `isa.Dot` has to begin with.
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
    in_bytes: bool = False

    @property
    def depth(self) -> int:
        """Elements of a query's row."""
        return padded(self.d) if self.in_bytes else self.d

    def scratch(self, **more: int) -> Scratch:
        rows = self.vectors + (max(self._score_shape()[0], self._sum_shape()[0]) if self.padded else 0)
        record = Partial.size(self.d)
        return Scratch(
            queries=rows * self.depth, scores=rows * self.span, here=rows * record, merged=rows * record, **more
        )

    def _score_shape(self) -> tuple[int, int]:
        across = self.panel // divisor_lanes(self.panel, self.isa)
        if self.in_bytes:  # products of bytes take registers for themselves, and wait little for each other
            return min(4, self.vectors), min(2, across)
        return tile_shape(self.vectors, across, self.isa)

    def _sum_shape(self) -> tuple[int, int]:
        return tile_shape(self.vectors, self.columns // divisor_lanes(self.columns, self.isa), self.isa)

    def bind(self, memory: Expr, areas: Mapping[str, Expr], used: Expr) -> BoundTile:
        """The tile in `memory` at the indices of `areas`, see `scratch`, with `used` vectors."""
        return BoundTile(self, memory, used, *(areas[name] for name in ("queries", "scores", "here", "merged")))


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

    def _blocks(self, height: int) -> Iterator[tuple[Expr, int]]:
        if not self.tile.padded:
            yield from parts(self.tile.vectors, height)
            return
        with T.serial(0, (self.used + (height - 1)) // height) as block:
            yield let(block * height), height

    def begin(self, query: Callable[[Expr, int, Expr], Expr]) -> None:
        """Take the vectors from query(column, lanes, vector m), and forget what came before."""
        t = self.tile
        with T.serial(0, self.used) as m:
            row = let(self.queries + m * t.depth)
            scale = f32(1 if t.in_bytes else t.scale)
            for i, lanes in spans(t.d, t.isa.lanes):
                store(self.memory, row + i, query(i, lanes, m) * splat(scale, lanes), lanes)
            if t.in_bytes:
                self._quantize(row)
            self.merged(m).clear()

    def _quantize(self, row: Expr) -> None:
        """Bytes in the place of a query: they end before what is yet to be read begins."""
        t, memory, lanes = self.tile, self.memory, self.tile.isa.lanes
        for i in range(t.d, t.depth):
            store(memory, row + i, f32(0), 1)

        def write(i: int, q: Expr) -> None:
            store(memory, row + i // 4, bits(vector("float32", lanes // 4), q), lanes // 4)

        scale, total = quantize(lambda i: load(memory, row + i, lanes), write, t.depth, t.isa)
        store(memory, row + t.depth // 4, scale * f32(t.scale), 1)
        start = f32(0) if t.isa.signed_bytes else bits("float32", let(total * -128))  # keys have 128 added
        store(memory, row + (t.depth // 4 + 1), start, 1)

    def score_bytes(
        self,
        column: Expr,
        key: Callable[[Expr, Expr, int], Expr],
        scales: Callable[[Expr, int], Expr],
        ahead: Ahead,
    ) -> None:
        """As `score`; key(i, token, lanes) gives elements 4 i .. 4 i + 3 of many keys as bytes, scales(token, lanes)
        their scales; ahead(i * 4 * panel + 4 * token, offset).
        """
        t, memory = self.tile, self.memory
        lanes = divisor_lanes(t.panel, t.isa)
        assert lanes == t.isa.lanes, f"keys in bytes come by the {t.isa.lanes}, {t.panel} of them do not"
        height, width = t._score_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            places = [let(self.queries + (row + m) * t.depth) for m in range(rows)]
            sums = Registers(rows * vectors, "int32", lanes)
            for m in range(rows):
                start = let(splat(bits("int32", memory[places[m] + (t.depth // 4 + 1)]), lanes))
                for v in range(vectors):
                    sums[m * vectors + v] = start
            with T.serial(0, -(-t.d // 4)) as i:
                if number == 0:
                    for v in range(vectors):
                        ahead((i * t.panel + first * lanes) * 4, v * lanes * 4)
                keys = [let(key(i, (first + v) * lanes, lanes)) for v in range(vectors)]
                for m in range(rows):
                    four = let(bits(f"int8x{lanes * 4}", splat(bits("int32", memory[places[m] + i]), lanes)))
                    for v in range(vectors):
                        dot = Dot(t.isa, sums[m * vectors + v], weight_bits=8)
                        dot.add(keys[v], four)
                        sums[m * vectors + v] = dot.total()
            for v in range(vectors):
                factors = let(scales((first + v) * lanes, lanes))
                for m in range(rows):
                    factor = let(factors * splat(memory[places[m] + t.depth // 4], lanes))
                    x = sums[m * vectors + v].astype(vector("float32", lanes)) * factor
                    store(memory, self.scores + (row + m) * t.span + column + (first + v) * lanes, x, lanes)

        for number, (row, rows) in enumerate(self._blocks(height)):
            for first, vectors in parts(t.panel // lanes, width):
                block(number, row, rows, first, vectors)

    def score(self, column: Expr, key: Callable[[Expr, Expr, int], Expr], ahead: Ahead) -> None:
        """Scores of `panel` tokens from `column` of the span; key(i, token, lanes) gives element i of many keys.

        ahead(i * panel + token, offset) is called for each key vector of the first rows, to fetch what is read later.
        """
        t = self.tile
        lanes = divisor_lanes(t.panel, t.isa)
        height, width = t._score_shape()

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

        for number, (row, rows) in enumerate(self._blocks(height)):
            for first, vectors in parts(t.panel // lanes, width):
                block(number, row, rows, first, vectors)

    def soften(
        self,
        start: Expr,
        count: Expr,
        position: Expr,
        visible: Visible,
        scales: Callable[[Expr, int, int], Expr] | None = None,
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

    def add(
        self,
        column: Expr,
        tokens: Expr,
        start: Expr,
        value: Callable[[Expr, Expr, int], Expr],
        ahead: Ahead,
    ) -> None:
        """Add the weighted values of `tokens` tokens from `column` of the span, in the block of columns from `start`.

        value(token, i, lanes) gives elements from i of the block; ahead(token * columns + i, offset) is called for each
        value vector of the first rows.
        """
        t = self.tile
        lanes = divisor_lanes(t.columns, t.isa)
        height, width = t._sum_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            def right(token: Expr, v: int) -> Expr:
                if number == 0:
                    ahead(token * t.columns + first * lanes, v * lanes)
                return value(token, (first + v) * lanes, lanes)

            def at(m: int, v: int) -> Expr:
                return self.here(row + m).at + start + (first + v) * lanes

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

        for number, (row, rows) in enumerate(self._blocks(height)):
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
