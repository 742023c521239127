"""Choosing a token from a row of logits: what the passes over a large vocabulary do, and how they share the work.

Nothing is sorted. The tokens that top_k, top_p and min_p leave are those above a threshold, so that is what is looked
for: a histogram narrows it down to one bin, bisection finds it among the tokens of that bin. Then one pass adds up the
weights of what is left in blocks, and the draw picks the block and the token in it, in the order of ids.

`rules` f32[r, RULE] says how each row is sampled: FACTOR is 1 / temperature (0: take the most probable token), TOP_K and
TOP_P as their names say (0 and 1: no limit), MIN_P the smallest weight, that of the most probable token being 1.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, bits, const, exp, f32, intrinsic, let, load, splat, store, vector, when
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .norm import each_piece, row_sum
from .tiles import Scratch, fold, kernel_name, larger

FACTOR, TOP_K, TOP_P, MIN_P, RULE = 0, 1, 2, 3, 4
BROKEN, IMPOSSIBLE = -1, -2  # in place of a token: the logits hold NaN or infinity; all of them are -infinity
BLOCK = 2048  # columns whose maximum and sum are kept
PART = 16 * BLOCK  # columns of one histogram
BINS, BINS_PER_E = 256, 8.0  # a bin spans a factor of e^(1/8) in weight; the last takes all that is left
LEAST = -87.0  # a weight of less than e^-87 is 0
INFINITY = float("inf")


def blocks(vocab: int) -> int:
    return -(-vocab // BLOCK)


def parts(vocab: int) -> int:
    return -(-vocab // PART)


def _each(f: Frame, vocab: int, size: int, handle: Callable[[Expr, Expr, Expr, int], None]) -> None:
    """handle(row, number, first column, columns) for each item, a range of `size` columns of a row, the last shorter."""
    count = -(-vocab // size)
    with T.serial(f.lo, f.hi) as item:
        row, number = let(item // count), let(item % count)
        _ranged(number, vocab, size, lambda first, columns: handle(row, number, first, columns))


def _ranged(number: Expr, vocab: int, size: int, handle: Callable[[Expr, int], None]) -> None:
    """handle(first column, columns) for range `number` of a row."""
    count = -(-vocab // size)
    first, rest = let(number * size), vocab - (count - 1) * size
    if count == 1 or rest == size:
        handle(first, rest)
    else:
        when(number < count - 1, lambda: handle(first, size), lambda: handle(first, rest))


def _start(row: Expr, vocab: int) -> Expr:
    return let(row.astype("int64") * vocab)


def _cell(dtype: str, value: Expr) -> Registers:
    """A variable, read and written as `cell[0]`."""
    cell = Registers(1, dtype, 1)
    cell[0] = value
    return cell


def _rule(f: Frame, row: Expr, field: int) -> Expr:
    return let(f["rules"][row * RULE + field])


def _distance(x: Expr, peak: Expr, factor: Expr, lanes: int) -> Expr:
    """The logarithm of a token's weight, 0 or less."""
    return let(let(x - splat(peak, lanes)) * splat(factor, lanes))


def _weight(distance: Expr, lanes: int) -> Expr:
    return let(tirx.Select(distance < splat(f32(LEAST), lanes), splat(f32(0), lanes), exp(distance, lanes)))


def _bin(distance: Expr, lanes: int) -> Expr:
    scaled = let(distance * splat(f32(-BINS_PER_E), lanes))
    return let(let(tirx.min(splat(f32(BINS - 1), lanes), scaled)).astype(vector("int32", lanes)))


def row_peaks(vocab: int, isa: Isa) -> Kernel:
    """The largest logit of each block, NaN where the block holds one. Pointers logits f32[rows, vocab], peaks
    f32[rows, blocks]. Sizes rows.
    """
    quiet = 0x7F800000  # the bits of infinity; those of a NaN are more, its sign apart

    def body(f: Frame) -> None:
        def block(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            start = let(_start(row, vocab) + first)
            widest = min(isa.lanes, 1 << (columns.bit_length() - 1))
            best, worst = Registers(1, "float32", widest), Registers(1, "int32", widest)
            best[0], worst[0] = splat(f32(-INFINITY), widest), splat(const(0), widest)
            rest_best, rest_worst = _cell("float32", f32(-INFINITY)), _cell("int32", const(0))

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

        _each(f, vocab, BLOCK, block)

    pointers = (Pointer("logits", "float32"), Pointer("peaks", "float32"))
    return Kernel(kernel_name("row_peaks", vocab), pointers, ("rows",), lambda s: s["rows"] * blocks(vocab), body)


def most_probable(vocab: int) -> Kernel:
    """tokens i32[rows] = the id of each row's largest logit, the lowest among equals, or BROKEN, or IMPOSSIBLE.

    Pointers logits, peaks (of `row_peaks`), peak f32[rows] (the largest logit), tokens. Sizes rows.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            first, peak = let(row * blocks(vocab)), _cell("float32", f32(-INFINITY))
            where, size = _cell("int32", const(0)), _cell("int32", const(0))
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
                start, column = _start(row, vocab), _cell("int32", where[0] * BLOCK)
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
        kernel_name("most_probable", vocab), (*pointers, Pointer("tokens", "int32")), ("rows",), _rows, body, grain=1
    )


def _rows(sizes: object) -> Expr:
    return sizes["rows"]  # type: ignore[index]


def _filters(f: Frame, row: Expr) -> Expr:
    """Whether top_k or top_p leave out tokens of a row."""
    limited = tirx.any(_rule(f, row, TOP_K) > f32(0), _rule(f, row, TOP_P) < f32(1))
    return tirx.all(f["tokens"][row] >= 0, _rule(f, row, FACTOR) > f32(0), limited)


def histogram(vocab: int, isa: Isa) -> Kernel:
    """How many tokens of each part of a row are in each bin of weight, and what these add up to.

    Pointers logits, peak, tokens, rules, bins f64[rows, parts, BINS, 2]. Sizes rows. Rows without top_k and top_p are
    left out.
    """

    def body(f: Frame) -> None:
        def part(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            start, peak, factor = let(_start(row, vocab) + first), let(f["peak"][row]), _rule(f, row, FACTOR)
            base = let((row * parts(vocab) + number) * (BINS * 2))
            with T.serial(0, BINS * 2) as i:
                store(f["bins"], base + i, const(0.0, "float64"), 1)

            def piece(column: Expr, lanes: int) -> None:
                distance = _distance(load(f["logits"], start + column, lanes), peak, factor, lanes)
                weights, numbers = Registers(1, "float32", lanes), Registers(1, "int32", lanes)
                weights[0], numbers[0] = _weight(distance, lanes), _bin(distance, lanes)
                for i in range(lanes):
                    at = let(base + numbers.buffers[0][i] * 2)
                    store(f["bins"], at, f["bins"][at] + const(1.0, "float64"), 1)
                    store(f["bins"], at + 1, f["bins"][at + 1] + weights.buffers[0][i].astype("float64"), 1)

            each_piece(columns, isa.lanes, piece)

        def item(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            when(_filters(f, row), lambda: part(row, number, first, columns))

        _each(f, vocab, PART, item)

    pointers = (*_ROW, Pointer("bins", "float64"))
    return Kernel(
        kernel_name("histogram", vocab), pointers, ("rows",), lambda s: s["rows"] * parts(vocab), body, grain=1
    )


_ROW = (
    Pointer("logits", "float32"),
    Pointer("peak", "float32"),
    Pointer("tokens", "int32"),
    Pointer("rules", "float32"),
)


def threshold(vocab: int, isa: Isa) -> Kernel:
    """The tokens that top_k, then top_p leave: those above `least` f32[rows], and those equal to it up to id `last`.

    Pointers logits, peak, tokens, rules, peaks, bins, least, last i32[rows]. Sizes rows.
    """
    room = -(-vocab // (isa.lanes * _SUMS)) * isa.lanes * _SUMS
    areas = Scratch(logits=room, weights=room)

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            store(f["least"], row, f32(-INFINITY), 1)
            store(f["last"], row, const(vocab), 1)

            def search() -> None:
                one = _Threshold(f, row, vocab, isa, areas)
                with T.If(_rule(f, row, TOP_K) > f32(0)), T.Then():
                    one.find(0, _rule(f, row, TOP_K).astype("float64"))
                with T.If(_rule(f, row, TOP_P) < f32(1)), T.Then():
                    one.find(1, let(_rule(f, row, TOP_P).astype("float64") * one.mass[0]))

            when(_filters(f, row), search)

    pointers = (
        *_ROW,
        Pointer("peaks", "float32"),
        Pointer("bins", "float64"),
        Pointer("least", "float32"),
        Pointer("last", "int32"),
        Pointer("scratch", "float32"),
    )
    return Kernel(
        kernel_name("threshold", vocab), pointers, ("rows",), _rows, body, grain=1, scratch=areas.bytes
    )


class _Threshold:
    """The search in one row. `mass` is the weight of all tokens that are left."""

    def __init__(self, f: Frame, row: Expr, vocab: int, isa: Isa, areas: Scratch) -> None:
        self.f, self.row, self.vocab, self.isa = f, row, vocab, isa
        self.start, self.peak, self.factor = _start(row, vocab), let(f["peak"][row]), _rule(f, row, FACTOR)
        self.areas = areas.at(f.thread)
        self.base = let(row * (parts(vocab) * BINS * 2))
        self.mass = _cell("float64", const(0.0, "float64"))
        with T.serial(0, parts(vocab) * BINS) as i:
            self.mass[0] = self.mass[0] + f["bins"][self.base + i * 2 + 1]

    def find(self, by: int, wanted: Expr) -> None:
        """Leave the fewest most probable tokens that `wanted` of them (by 0) or of weight (by 1) are."""
        zero = const(0.0, "float64")
        number, before, mass = _cell("int32", const(-1)), _cell("float64", zero), _cell("float64", zero)
        here = Registers(2, "float64", 1)
        here[0], here[1] = zero, zero
        with T.While(tirx.all(number[0] < BINS - 1, before[0] + here[by] < wanted)):
            before[0] = before[0] + here[by]
            mass[0] = mass[0] + here[1]
            number[0] = number[0] + 1
            here[0], here[1] = zero, zero
            with T.serial(0, parts(self.vocab)) as part:
                at = let(self.base + (part * BINS + number[0]) * 2)
                here[0] = here[0] + self.f["bins"][at]
                here[1] = here[1] + self.f["bins"][at + 1]
        count, missing, above = self._gather(number[0]), let(wanted - before[0]), let(mass[0])
        with T.If(count > 0), T.Then():  # else rounding made `wanted` more than there is, and all tokens are left
            self._bisect(by, count, missing, above)

    def _gather(self, number: Expr) -> Expr:
        """Copy the tokens of bin `number`, in the order of ids, and fill up the last vector; returns how many."""
        count = _cell("int32", const(0))

        def block(first: Expr, columns: int) -> None:
            def piece(column: Expr, lanes: int) -> None:
                x = Registers(1, "float32", lanes)
                x[0] = load(self.f["logits"], self.start + first + column, lanes)
                inside = _bin(_distance(x[0], self.peak, self.factor, lanes), lanes) == splat(number, lanes)
                found = Registers(1, "int32", lanes)
                found[0] = inside.astype(vector("int32", lanes))
                hits = let(found[0])
                some = intrinsic("int32", "llvm.vector.reduce.or", hits) if lanes > 1 else hits
                with T.If(some != 0), T.Then():
                    for i in range(lanes):
                        store(self.f["scratch"], self.areas["logits"] + count[0], x.buffers[0][i], 1)
                        count[0] = count[0] + found.buffers[0][i]

            each_piece(columns, self.isa.lanes, piece)

        with T.serial(0, blocks(self.vocab)) as i:
            top = let(self.f["peaks"][self.row * blocks(self.vocab) + i])
            with T.If(_bin(_distance(top, self.peak, self.factor, 1), 1) <= number), T.Then():
                _ranged(i, self.vocab, BLOCK, block)
        return let(count[0])

    def _bisect(self, by: int, count: Expr, wanted: Expr, before: Expr) -> None:
        """Find the threshold among `count` gathered tokens; `before` is the weight of those in the bins above theirs."""
        lanes, step = self.isa.lanes, self.isa.lanes * _SUMS
        steps = let((count + (step - 1)) // step)
        self._finish_gathering(count, let(steps * step))
        low, high = self._range(count)

        def total(term: Callable[[Expr, Expr], Expr]) -> Expr:
            """The sum of `term(logits, weights)` over what was gathered."""
            sums = Registers(_SUMS, "float32", lanes)
            sums.clear()
            with T.serial(0, steps) as i:
                for j in range(_SUMS):
                    at = let(i * step + j * lanes)
                    x, weight = (let(load(self.f["scratch"], self.areas[area] + at, lanes)) for area in self.areas)
                    sums[j] = sums[j] + term(x, weight)
            both = [let(sums[j] + sums[j + 1]) for j in range(0, _SUMS, 2)]
            return let(fold(let(both[0] + both[1]), lanes, lambda a, b: a + b).astype("float64"))

        zero, one = splat(f32(0), lanes), splat(f32(1), lanes)
        with T.While(high[0].astype("int64") - low[0].astype("int64") > 1):
            middle = let(((low[0].astype("int64") + high[0].astype("int64")) >> 1).astype("int32"))
            bound = let(splat(bits("float32", _ordered(middle)), lanes))
            reached = total(lambda x, weight: tirx.Select(x >= bound, weight if by else one, zero))
            with T.If(reached >= wanted):
                with T.Then():
                    low[0] = middle
                with T.Else():
                    high[0] = middle
        least = let(bits("float32", _ordered(low[0])))
        bound = let(splat(least, lanes))
        above = total(lambda x, weight: tirx.Select(x > bound, weight, zero))
        missing = wanted - (above if by else total(lambda x, weight: tirx.Select(x > bound, one, zero)))
        weight = let(_weight(_distance(least, self.peak, self.factor, 1), 1).astype("float64"))
        ties = total(lambda x, weight: tirx.Select(x == bound, one, zero))
        kept = _cell("float64", ties)
        with T.If(weight > const(0.0, "float64")), T.Then():  # tokens without weight are never drawn
            needed = let(tirx.ceil(missing / weight if by else missing))
            kept[0] = tirx.min(ties, tirx.max(needed, const(1.0, "float64")))
        self.mass[0] = before + above + kept[0] * weight
        store(self.f["least"], self.row, least, 1)
        store(self.f["last"], self.row, const(self.vocab), 1)
        with T.If(kept[0] < ties), T.Then():
            self._cut(least, kept)

    def _finish_gathering(self, count: Expr, end: Expr) -> None:
        """Add the weights of what was gathered, and fill up to `end` with tokens that count nothing."""
        x_at, w_at = (self.areas[area] for area in self.areas)
        with T.serial(0, end - count) as i:
            store(self.f["scratch"], x_at + count + i, f32(-INFINITY), 1)
        lanes = self.isa.lanes
        with T.serial(0, end // lanes) as i:
            x = load(self.f["scratch"], x_at + i * lanes, lanes)
            store(self.f["scratch"], w_at + i * lanes, _weight(_distance(x, self.peak, self.factor, lanes), lanes), lanes)

    def _range(self, count: Expr) -> tuple[Registers, Registers]:
        """Keys of the smallest gathered logit, and one more than that of the largest."""
        low, high = _cell("int32", const(0x7FFFFFFF)), _cell("int32", const(-0x7FFFFFFF))
        with T.serial(0, count) as i:
            key = let(_ordered(bits("int32", self.f["scratch"][self.areas["logits"] + i])))
            low[0] = tirx.min(low[0], key)
            high[0] = tirx.max(high[0], key + 1)
        return low, high

    def _cut(self, least: Expr, kept: Registers) -> None:
        """Of the tokens at the threshold, leave those with the lowest ids."""
        column = _cell("int32", const(-1))
        with T.While(kept[0] > const(0.0, "float64")):
            column[0] = column[0] + 1
            x = let(self.f["logits"][self.start + column[0]])
            with T.If(x == least), T.Then():
                kept[0] = kept[0] - const(1.0, "float64")
        store(self.f["last"], self.row, column[0], 1)


_SUMS = 4  # vector accumulators


def _ordered(word: Expr) -> Expr:
    """The bits of a float as an integer of the same order, and back."""
    return let(word ^ let((word >> const(31)) & const(0x7FFFFFFF)))


class _Kept:
    """The weights of the tokens of a row that can be drawn; 0 for the others."""

    def __init__(self, f: Frame, row: Expr, vocab: int) -> None:
        self.f, self.start, self.peak, self.factor = f, _start(row, vocab), let(f["peak"][row]), _rule(f, row, FACTOR)
        self.least, self.last, self.min_p = let(f["least"][row]), let(f["last"][row]), _rule(f, row, MIN_P)

    def nothing(self, peak: Expr) -> Expr:
        """Whether no logit up to `peak` can be drawn."""
        weight = _weight(_distance(peak, self.peak, self.factor, 1), 1)
        return tirx.any(peak < self.least, weight < self.min_p)

    def weights(self, column: Expr, lanes: int) -> Expr:
        x = let(load(self.f["logits"], self.start + column, lanes))
        weight = _weight(_distance(x, self.peak, self.factor, lanes), lanes)
        least, zero = let(splat(self.least, lanes)), splat(f32(0), lanes)
        ids = let(column if lanes == 1 else tirx.Ramp(column, 1, lanes))
        heavy = let(tirx.Select(weight >= splat(self.min_p, lanes), weight, zero))
        tie = let(tirx.Select(ids <= splat(self.last, lanes), heavy, zero))
        tie = let(tirx.Select(x >= least, tie, zero))
        return let(tirx.Select(x > least, heavy, tie))


def _draws(f: Frame, row: Expr) -> Expr:
    return tirx.all(f["tokens"][row] >= 0, _rule(f, row, FACTOR) > f32(0))


def kept_masses(vocab: int, isa: Isa) -> Kernel:
    """The weight of what can be drawn in each block. Pointers logits, peak, tokens, rules, least, last, peaks, masses
    f32[rows, blocks]. Sizes rows.
    """

    def body(f: Frame) -> None:
        def block(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            kept, at = _Kept(f, row, vocab), let(row * blocks(vocab) + number)

            def total() -> None:
                mass = row_sum(columns, isa, lambda column, lanes, sums: sums + kept.weights(first + column, lanes))
                store(f["masses"], at, mass, 1)

            when(kept.nothing(f["peaks"][at]), lambda: store(f["masses"], at, f32(0), 1), total)

        def item(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            when(_draws(f, row), lambda: block(row, number, first, columns))

        _each(f, vocab, BLOCK, item)

    pointers = (*_KEPT, Pointer("peaks", "float32"), Pointer("masses", "float32"))
    return Kernel(kernel_name("kept_masses", vocab), pointers, ("rows",), lambda s: s["rows"] * blocks(vocab), body)


_KEPT = (*_ROW, Pointer("least", "float32"), Pointer("last", "int32"))


def draw(vocab: int, isa: Isa) -> Kernel:
    """tokens[row] = the token at `draws` f64[rows], 0 <= u < 1, of the distribution that the rules leave.

    Pointers logits, peak, tokens, rules, least, last, masses, draws. Sizes rows. Rows that take the most probable token
    stay as they are.
    """
    areas = Scratch(weights=BLOCK)

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            when(_draws(f, row), lambda: _draw(f, row, vocab, isa, areas.at(f.thread)["weights"]))

    pointers = (*_KEPT, Pointer("masses", "float32"), Pointer("draws", "float64"), Pointer("scratch", "float32"))
    return Kernel(kernel_name("draw", vocab), pointers, ("rows",), _rows, body, grain=1, scratch=areas.bytes)


def _draw(f: Frame, row: Expr, vocab: int, isa: Isa, area: Expr) -> None:
    kept, first, u = _Kept(f, row, vocab), let(row * blocks(vocab)), let(f["draws"][row])
    block, mass, share = _pick(f["masses"], first, blocks(vocab), u)

    def inside(start: Expr, columns: int) -> None:
        each_piece(
            columns, isa.lanes, lambda c, lanes: store(f["scratch"], area + c, kept.weights(start + c, lanes), lanes)
        )
        column, _, _ = _pick(f["scratch"], area, columns, share)
        store(f["tokens"], row, start + column, 1)

    _ranged(block, vocab, BLOCK, inside)


def _pick(weights: Expr, first: Expr, count: int, u: Expr) -> tuple[Expr, Expr, Expr]:
    """The index at `u` of a cumulative sum, its weight, and how far into it `u` reaches.

    Never an index of weight 0, even if rounding carries `u` to the end.
    """
    zero = const(0.0, "float64")
    total, before, at = _cell("float64", zero), _cell("float64", zero), _cell("int32", const(0))
    with T.serial(0, count) as i:
        total[0] = total[0] + weights[first + i].astype("float64")
    goal, sum_here = let(total[0] * u), _cell("float64", zero)
    with T.serial(0, count) as i:
        weight = let(weights[first + i].astype("float64"))
        with T.If(tirx.all(weight > zero, sum_here[0] <= goal)), T.Then():
            at[0] = i
            before[0] = sum_here[0]
        sum_here[0] = sum_here[0] + weight
    weight = let(weights[first + at[0]].astype("float64"))
    share = let(tirx.min(tirx.max((goal - before[0]) / weight, zero), const(1.0, "float64")))
    return let(at[0]), weight, share


def advance(page: int) -> Kernel:
    """Make the tokens that were chosen the next step of sequences that run one token each.

    Pointers chosen, tokens, positions, slots, tables [rows, stride], tiles [rows, 4], all i32. Sizes rows, stride.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            position = let(f["positions"][row] + 1)
            table_page = let(f["tables"][row * f["stride"] + position // page])
            store(f["tokens"], row, f["chosen"][row], 1)
            store(f["positions"], row, position, 1)
            store(f["slots"], row, table_page * page + position % page, 1)
            store(f["tiles"], row * 4 + 3, position, 1)

    names = ("chosen", "tokens", "positions", "slots", "tables", "tiles")
    pointers = tuple(Pointer(name, "int32") for name in names)
    return Kernel(kernel_name("advance", page), pointers, ("rows", "stride"), _rows, body)
