"""Choosing a token for each row of logits, and making it the next step.

The most probable token comes from the maxima of blocks. To draw one, the weights of what `threshold` and min_p leave
are added up in strips and blocks of them; the draw picks a block, a strip of it, and a token in that, in the order of
ids. Nothing is sorted.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .attention import MEMBER
from .emit import Registers, bits, const, f32, let, load, reduce_add_int, splat, store, vector, when
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .norm import each_piece
from .sync import INTERRUPT, LEFT, MADE, REPEATS, STOPS
from .tiles import Scratch, fold, fold_add, kernel_name, larger
from .tiles import parts as strips_of
from .vocabulary import (
    BLOCK,
    BROKEN,
    FACTOR,
    IMPOSSIBLE,
    INFINITY,
    MIN_P,
    ROW,
    STRIP,
    STRIPS,
    all_rows,
    blocks,
    cell,
    distance_of,
    each_range,
    in_range,
    rule,
    start_of,
    weight_of,
)


def row_peaks(vocab: int, isa: Isa) -> Kernel:
    """The largest logit of each block, NaN where the block holds one. Pointers logits f32[rows, vocab], peaks
    f32[rows, blocks]. Sizes rows.
    """
    quiet = 0x7F800000  # the bits of infinity; those of a NaN are more, its sign apart

    def body(f: Frame) -> None:
        def block(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            start = let(start_of(row, vocab) + first)
            widest = min(isa.lanes, 1 << (columns.bit_length() - 1))
            best, worst = Registers(1, "float32", widest), Registers(1, "int32", widest)
            best[0], worst[0] = splat(f32(-INFINITY), widest), splat(const(0), widest)
            rest_best, rest_worst = cell("float32", f32(-INFINITY)), cell("int32", const(0))

            def piece(column: Expr, lanes: int) -> None:
                x = let(load(f["logits"], start + column, lanes))
                size = let(bits(vector("int32", lanes), x) & splat(const(0x7FFFFFFF), lanes))
                if lanes == widest:
                    best[0] = larger(x, best[0])
                    worst[0] = tirx.max(size, worst[0])
                else:
                    rest_best[0] = larger(fold(x, lanes, larger), rest_best[0])
                    rest_worst[0] = tirx.max(fold(size, lanes, tirx.max), rest_worst[0])

            each_piece(columns, widest, piece)
            peak = let(larger(fold(best[0], widest, larger), rest_best[0]))
            size = let(tirx.max(fold(worst[0], widest, tirx.max), rest_worst[0]))
            nan = bits("float32", const(0x7FC00000))
            store(f["peaks"], row * blocks(vocab) + number, tirx.Select(size > quiet, nan, peak), 1)

        each_range(f, vocab, BLOCK, block)

    pointers = (Pointer("logits", "float32"), Pointer("peaks", "float32"))
    return Kernel(kernel_name("row_peaks", vocab), pointers, ("rows",), lambda s: s["rows"] * blocks(vocab), body)


def most_probable(vocab: int) -> Kernel:
    """tokens i32[rows] = the id of each row's largest logit, the lowest among equals, or BROKEN, or IMPOSSIBLE.

    Pointers logits, peaks (of `row_peaks`), peak f32[rows] (the largest logit), tokens. Sizes rows.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            first, peak = let(row * blocks(vocab)), cell("float32", f32(-INFINITY))
            where, size = cell("int32", const(0)), cell("int32", const(0))
            with T.serial(0, blocks(vocab)) as i:
                x = let(f["peaks"][first + i])
                word = let(bits("int32", x))
                # +infinity and NaN, in integers: a comparison of floats could be optimized away
                size[0] = tirx.max(size[0], tirx.Select(word < 0, word & 0x7FFFFFFF, word + 1))
                with T.If(x > peak[0]), T.Then():
                    peak[0] = x
                    where[0] = i
            store(f["peak"], row, peak[0], 1)

            def find() -> None:
                start, column = start_of(row, vocab), cell("int32", where[0] * BLOCK)
                with T.While(f["logits"][start + column[0]] < peak[0]):
                    column[0] = column[0] + 1
                store(f["tokens"], row, column[0], 1)

            def impossible() -> None:
                store(f["tokens"], row, const(IMPOSSIBLE), 1)

            when(
                size[0] > 0x7F800000,
                lambda: store(f["tokens"], row, const(BROKEN), 1),
                lambda: when(peak[0] > f32(-INFINITY), find, impossible),
            )

    pointers = tuple(Pointer(name, "float32") for name in ("logits", "peaks", "peak"))
    return Kernel(
        kernel_name("most_probable", vocab), (*pointers, Pointer("tokens", "int32")), ("rows",), all_rows, body, grain=1
    )


class _Kept:
    """The weights of the tokens of a row that can be drawn; 0 for the others."""

    def __init__(self, f: Frame, row: Expr, vocab: int) -> None:
        self.f, self.start, self.peak, self.factor = f, start_of(row, vocab), let(f["peak"][row]), rule(f, row, FACTOR)
        self.least, self.last, self.min_p = let(f["least"][row]), let(f["last"][row]), rule(f, row, MIN_P)

    def nothing(self, peak: Expr) -> Expr:
        """Whether no logit up to `peak` can be drawn."""
        weight = weight_of(distance_of(peak, self.peak, self.factor, 1), 1)
        return tirx.any(peak < self.least, weight < self.min_p)

    def weights(self, column: Expr, lanes: int, *, cut: bool) -> Expr:
        """`cut`: some of the tokens from `column` on may be beyond `last`."""
        x = let(load(self.f["logits"], self.start + column, lanes))
        weight = weight_of(distance_of(x, self.peak, self.factor, lanes), lanes)
        least, zero = let(splat(self.least, lanes)), splat(f32(0), lanes)
        heavy = let(tirx.Select(weight >= splat(self.min_p, lanes), weight, zero))
        if not cut:
            return let(tirx.Select(x >= least, heavy, zero))
        ids = let(column if lanes == 1 else tirx.Ramp(column, 1, lanes))
        tie = let(tirx.Select(ids <= splat(self.last, lanes), heavy, zero))
        tie = let(tirx.Select(x >= least, tie, zero))
        return let(tirx.Select(x > least, heavy, tie))


def _draws(f: Frame, row: Expr) -> Expr:
    return tirx.all(f["tokens"][row] >= 0, rule(f, row, FACTOR) > f32(0))


def kept_masses(vocab: int, isa: Isa) -> Kernel:
    """The weight of what can be drawn in each block, and in each strip of one that has any.

    Pointers logits, peak, tokens, rules, least, last, peaks, masses f32[rows, blocks], strips f32[rows, blocks,
    STRIPS]. Sizes rows.
    """

    def body(f: Frame) -> None:
        def block(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            kept, at = _Kept(f, row, vocab), let(row * blocks(vocab) + number)

            def total(*, cut: bool) -> None:
                mass, strip = cell("float32", f32(0)), cell("int32", const(0))
                for begin, count in strips_of(columns, STRIP):
                    weight = cell("float32", f32(0))
                    none = kept.nothing(_peak(f["logits"], kept.start + first + begin, count, isa))
                    with T.If(tirx.Not(none)), T.Then():
                        weight[0] = strip_weight(begin, count, cut)
                    store(f["strips"], at * STRIPS + strip[0], weight[0], 1)
                    mass[0] = mass[0] + weight[0]
                    strip[0] = strip[0] + 1
                store(f["masses"], at, mass[0], 1)

            def strip_weight(begin: Expr, count: int, cut: bool) -> Expr:
                sums, rest = Registers(1, "float32", isa.lanes), cell("float32", f32(0))
                sums.clear()

                def piece(column: Expr, lanes: int) -> None:
                    # one sum: several at once would need more registers than the polynomial of `exp` leaves
                    weights = kept.weights(first + begin + column, lanes, cut=cut)
                    if lanes == isa.lanes:
                        sums[0] = sums[0] + weights
                    else:
                        rest[0] = rest[0] + fold_add(weights, lanes)

                each_piece(count, isa.lanes, piece)
                return let(fold_add(sums[0], isa.lanes) + rest[0])

            def some() -> None:
                when(kept.last < first + (columns - 1), lambda: total(cut=True), lambda: total(cut=False))

            when(kept.nothing(f["peaks"][at]), lambda: store(f["masses"], at, f32(0), 1), some)

        def item(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            when(_draws(f, row), lambda: block(row, number, first, columns))

        each_range(f, vocab, BLOCK, item)

    pointers = (*_KEPT, *(Pointer(name, "float32") for name in ("peaks", "masses", "strips")))
    return Kernel(kernel_name("kept_masses", vocab), pointers, ("rows",), lambda s: s["rows"] * blocks(vocab), body)


def _peak(logits: Expr, start: Expr, columns: int, isa: Isa) -> Expr:
    """The largest of `columns` logits from `start` on, none of which is NaN."""
    best, rest = Registers(1, "float32", isa.lanes), cell("float32", f32(-INFINITY))
    best[0] = splat(f32(-INFINITY), isa.lanes)

    def piece(column: Expr, lanes: int) -> None:
        x = let(load(logits, start + column, lanes))
        if lanes == isa.lanes:
            best[0] = larger(x, best[0])
        else:
            rest[0] = larger(fold(x, lanes, larger), rest[0])

    each_piece(columns, isa.lanes, piece)
    return let(larger(fold(best[0], isa.lanes, larger), rest[0]))


_KEPT = (*ROW, Pointer("least", "float32"), Pointer("last", "int32"))


def draw(vocab: int, isa: Isa) -> Kernel:
    """tokens[row] = the token at `draws` f64[steps, rows], 0 <= u < 1, of the distribution that the rules leave.

    Pointers logits, peak, tokens, rules, least, last, masses, strips, draws, progress i32[4] (see `sync`). Sizes rows.
    Rows that take the most probable token stay as they are.
    """
    areas = Scratch(weights=STRIP)

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            when(_draws(f, row), lambda: _draw(f, row, vocab, isa, areas.at(f.thread)["weights"]))

    pointers = (
        *_KEPT,
        Pointer("masses", "float32"),
        Pointer("strips", "float32"),
        Pointer("draws", "float64"),
        Pointer("progress", "int32"),
        Pointer("scratch", "float32"),
    )
    return Kernel(kernel_name("draw", vocab), pointers, ("rows",), all_rows, body, grain=1, scratch=areas.bytes)


def _draw(f: Frame, row: Expr, vocab: int, isa: Isa, area: Expr) -> None:
    kept, first = _Kept(f, row, vocab), let(row * blocks(vocab))
    u = let(f["draws"][f["progress"][MADE] * f["rows"] + row])
    block, share = _pick(f["masses"], first, blocks(vocab), u)

    def in_block(start: Expr, columns: int) -> None:
        strip, part = _pick(f["strips"], let((first + block) * STRIPS), -(-columns // STRIP), share)
        in_range(strip, columns, STRIP, lambda begin, count: in_strip(let(start + begin), count, part))

    def in_strip(start: Expr, columns: int, part: Expr) -> None:
        def weigh(column: Expr, lanes: int) -> None:
            store(f["scratch"], area + column, kept.weights(start + column, lanes, cut=True), lanes)

        each_piece(columns, isa.lanes, weigh)
        column, _ = _pick(f["scratch"], area, columns, part)
        store(f["tokens"], row, start + column, 1)

    in_range(block, vocab, BLOCK, in_block)


def _pick(weights: Expr, first: Expr, count: int, u: Expr) -> tuple[Expr, Expr]:
    """The index at `u` of a cumulative sum, and how far into its weight `u` reaches.

    Never an index of weight 0, even if rounding carries `u` to the end.
    """
    zero = const(0.0, "float64")
    total, before, at = cell("float64", zero), cell("float64", zero), cell("int32", const(0))
    with T.serial(0, count) as i:
        total[0] = total[0] + weights[first + i].astype("float64")
    goal, sum_here = let(total[0] * u), cell("float64", zero)
    with T.serial(0, count) as i:
        weight = let(weights[first + i].astype("float64"))
        with T.If(tirx.all(weight > zero, sum_here[0] <= goal)), T.Then():
            at[0] = i
            before[0] = sum_here[0]
        sum_here[0] = sum_here[0] + weight
    weight = let(weights[first + at[0]].astype("float64"))
    share = let(tirx.min(tirx.max((goal - before[0]) / weight, zero), const(1.0, "float64")))
    return let(at[0]), share


def tally(isa: Isa) -> Kernel:
    """Count a step, keep its tokens, and decide whether another one follows.

    Pointers chosen i32[rows], stops i32[rows, STOPS], history i32[steps, rows], progress i32[4] (see `sync`). Sizes
    rows. No step follows one in which a row got one of its stops, or none, nor one in which INTERRUPT was set.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi):
            made, left = let(f["progress"][MADE]), cell("int32", f["progress"][LEFT] - 1)
            with T.If(f["progress"][INTERRUPT] != 0), T.Then():
                left[0] = const(0)
            with T.serial(0, f["rows"]) as row:
                token, same = let(f["chosen"][row]), Registers(1, "int32", isa.lanes)
                store(f["history"], made * f["rows"] + row, token, 1)
                same.clear()
                with T.serial(0, STOPS // isa.lanes) as i:
                    stops = let(load(f["stops"], row * STOPS + i * isa.lanes, isa.lanes))
                    one, zero = (splat(const(value), isa.lanes) for value in (1, 0))
                    same[0] = same[0] + tirx.Select(stops == splat(token, isa.lanes), one, zero)
                with T.If(tirx.any(token < 0, reduce_add_int(same[0]) > 0)), T.Then():
                    left[0] = const(0)
            store(f["progress"], const(MADE), made + 1, 1)
            store(f["progress"], const(LEFT), left[0], 1)
            repeats = let(tirx.max(f["progress"][REPEATS] - 1, const(0)))
            store(f["progress"], const(REPEATS), tirx.min(repeats, left[0]), 1)

    pointers = tuple(Pointer(name, "int32") for name in ("chosen", "stops", "history", "progress"))
    return Kernel(kernel_name("tally", STOPS), pointers, ("rows",), lambda s: const(1), body)


def advance(page: int) -> Kernel:
    """Make the tokens that were chosen the next step of sequences that run one token each, if `tally` wants one.

    Pointers chosen, tokens, positions, slots, tables [rows, stride], members (see `attention`), progress, all i32.
    Sizes rows, stride. An item is a member.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as member, T.If(f["progress"][LEFT] > 0), T.Then():
            row = let(f["members"][member * MEMBER])
            position = let(f["positions"][row] + 1)
            table_page = let(f["tables"][row * f["stride"] + position // page])
            store(f["tokens"], row, f["chosen"][row], 1)
            store(f["positions"], row, position, 1)
            store(f["slots"], row, table_page * page + position % page, 1)
            store(f["members"], member * MEMBER + 1, position, 1)

    names = ("chosen", "tokens", "positions", "slots", "tables", "members", "progress")
    pointers = tuple(Pointer(name, "int32") for name in names)
    return Kernel(kernel_name("advance", page), pointers, ("rows", "stride"), all_rows, body)
