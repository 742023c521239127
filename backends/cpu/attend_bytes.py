"""Attention over keys and values that are bytes with a scale each: queries and weights become bytes as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from .attend import Ahead, BoundTile, PanelScales, Piece, Scales, Tile, Visible
from .emit import Registers, bits, f32, fma, let, load, splat, store, vector
from .isa import Dot
from .kernel import Expr
from .kv import padded, quantize
from .tiles import divisor_lanes, in_turns, parts, spans


@dataclass(frozen=True, slots=True)
class ByteTile(Tile):
    """A `Tile` whose query rows hold the query's bytes, its scale, what `isa.Dot` has to begin with, and the scale of
    the weights in the span at hand, which lie as bytes at the beginning of its row of scores.
    """

    @property
    def depth(self) -> int:
        return padded(self.d)

    def score_shape(self) -> tuple[int, int]:
        # Products of bytes take registers for themselves, and wait little for each other.
        return min(4, self.vectors), min(2, self.panel // divisor_lanes(self.panel, self.isa))

    def sum_shape(self) -> tuple[int, int]:
        return min(4, self.vectors), min(2, self.columns // self.isa.lanes)

    def bind(self, memory: Expr, areas: Mapping[str, Expr], used: Expr) -> BoundByteTile:
        return BoundByteTile(self, memory, used, **self.places(areas))


@dataclass(frozen=True, slots=True)
class BoundByteTile(BoundTile):
    def _place(self, m: Expr, i: int) -> Expr:
        """Element i after the bytes of query m."""
        return self.queries + m * self.tile.depth + (self.tile.depth // 4 + i)

    def take(self, row: Expr, query: Callable[[int, int], Expr]) -> None:
        """Bytes in the place of a query: they end before what is yet to be read begins."""
        t, memory, lanes = self.tile, self.memory, self.tile.isa.lanes
        for i, width in spans(t.d, lanes):
            store(memory, row + i, query(i, width), width)
        for i in range(t.d, t.depth):
            store(memory, row + i, f32(0), 1)
        scale, total = quantize(lambda i: load(memory, row + i, lanes), self._writer(row), t.depth, t.isa)
        store(memory, row + t.depth // 4, scale * f32(t.scale), 1)
        start = f32(0) if t.isa.signed_bytes else bits("float32", let(total * -128))  # keys have 128 added
        store(memory, row + (t.depth // 4 + 1), start, 1)

    def _writer(self, row: Expr) -> Callable[[Expr, Expr], None]:
        """Puts a vector of bytes q as number i and following of those at `row`."""
        lanes = self.tile.isa.lanes // 4
        return lambda i, q: store(self.memory, row + i // 4, bits(vector("float32", lanes), q), lanes)

    def score(self, column: Expr, key: Piece, ahead: Ahead, scales: Scales | None = None) -> None:
        """key(i, token, lanes) gives elements 4 i .. 4 i + 3 of many keys as bytes, scales(token, lanes) their scales;
        ahead(i * 4 * panel + 4 * token, offset).
        """
        assert scales is not None, "bytes have scales"
        t, memory = self.tile, self.memory
        lanes = divisor_lanes(t.panel, t.isa)
        assert lanes == t.isa.lanes, f"keys in bytes come by the {t.isa.lanes}, {t.panel} of them do not"
        height, width = t.score_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            places = [let(self.queries + (row + m) * t.depth) for m in range(rows)]
            sums = Registers(rows * vectors, "int32", lanes)
            for m in range(rows):
                start = let(splat(bits("int32", memory[self._place(row + m, 1)]), lanes))
                for v in range(vectors):
                    sums[m * vectors + v] = start

            def step(i: Expr) -> None:
                if number == 0:
                    for v in range(vectors):
                        ahead((i * t.panel + first * lanes) * 4, v * lanes * 4)
                keys = [let(bits(f"uint8x{lanes * 4}", key(i, (first + v) * lanes, lanes))) for v in range(vectors)]
                for m in range(rows):
                    four = let(bits(f"int8x{lanes * 4}", splat(bits("int32", memory[places[m] + i]), lanes)))
                    for v in range(vectors):
                        dot = Dot(t.isa, sums[m * vectors + v], weight_bits=8)
                        dot.add(keys[v], four)
                        sums[m * vectors + v] = dot.total()

            in_turns(-(-t.d // 4), step)
            for v in range(vectors):
                factors = let(scales((first + v) * lanes, lanes))
                for m in range(rows):
                    factor = let(factors * splat(memory[self._place(row + m, 0)], lanes))
                    x = sums[m * vectors + v].astype(vector("float32", lanes)) * factor
                    store(memory, self.scores + (row + m) * t.span + column + (first + v) * lanes, x, lanes)

        for number, (row, rows) in enumerate(self.blocks(height)):
            for first, vectors in parts(t.panel // lanes, width):
                block(number, row, rows, first, vectors)

    def soften(
        self, start: Expr, count: Expr, position: Expr, visible: Visible, scales: PanelScales | None = None
    ) -> None:
        """Then the weights of these panels become bytes 0 .. 127."""
        BoundTile.soften(self, start, count, position, visible, scales)
        t, memory = self.tile, self.memory
        begin = let(start * t.panel)
        with T.serial(0, self.used) as m:
            row = let(self.scores + m * t.span)
            write = self._writer(row)
            scale, _ = quantize(
                lambda i: load(memory, row + begin + i, t.isa.lanes),
                lambda i, q: write(begin + i, q),
                count * t.panel,
                t.isa,
            )
            store(memory, self._place(m, 2), scale, 1)

    def add(self, column: Expr, tokens: Expr, start: Expr, value: Piece, ahead: Ahead) -> None:
        """value(i, column, lanes) gives many columns of tokens 4 i .. 4 i + 3 as bytes; `ahead` gets the place of a
        byte, 4 * (i * columns + column).
        """
        t, memory, lanes = self.tile, self.memory, self.tile.isa.lanes
        height, width = t.sum_shape()

        def block(number: int, row: Expr, rows: int, first: Expr, vectors: int) -> None:
            places = [let(self.scores + (row + m) * t.span + column // 4) for m in range(rows)]
            sums = Registers(rows * vectors, "int32", lanes)
            sums.clear()

            def step(i: Expr) -> None:
                if number == 0:
                    for v in range(vectors):
                        ahead((i * t.columns + first * lanes) * 4, v * lanes * 4)
                values = [let(value(i, (first + v) * lanes, lanes)) for v in range(vectors)]
                for m in range(rows):
                    four = let(bits(f"uint8x{lanes * 4}", splat(bits("int32", memory[places[m] + i]), lanes)))
                    for v in range(vectors):
                        dot = Dot(t.isa, sums[m * vectors + v], weight_bits=7)
                        dot.add(four, values[v])
                        sums[m * vectors + v] = dot.total()

            in_turns((tokens + 3) // 4, step)
            for m in range(rows):
                scale = let(splat(memory[self._place(row + m, 2)], lanes))
                for v in range(vectors):
                    at = let(self.here(row + m).sums + start + (first + v) * lanes)
                    x = sums[m * vectors + v].astype(vector("float32", lanes))
                    store(memory, at, fma(x, scale, load(memory, at, lanes)), lanes)

        for number, (row, rows) in enumerate(self.blocks(height)):
            for first, vectors in parts(t.columns // lanes, width):
                block(number, row, rows, first, vectors)
