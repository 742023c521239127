"""Which tokens top_k and top_p leave: those above a threshold, found without sorting.

A histogram over weights narrows the threshold down to one bin; bisection finds it among the tokens of that bin. A small
top_k does without: the tokens it leaves are at least as probable as the k-th largest of the maxima of blocks.

A bin is one integer of 64 bits: how many tokens it has, above the sum of their weights in units of 2^-22 of the weight
at which the bin begins. Such sums are exact, whatever their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, bits, const, f32, fma, intrinsic, let, load, splat, stack, store, vector, when
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .norm import each_piece
from .tiles import Scratch, fold, kernel_name
from .tiles import parts as stages
from .vocabulary import (
    BLOCK,
    FACTOR,
    INFINITY,
    PART,
    ROW,
    TOP_K,
    TOP_P,
    Bins,
    all_rows,
    blocks,
    cell,
    distance_of,
    each_range,
    in_range,
    parts,
    rule,
    start_of,
    weight_of,
)


def _filters(f: Frame, row: Expr) -> Expr:
    """Whether top_k or top_p leave out tokens of a row."""
    limited = tirx.any(rule(f, row, TOP_K) > f32(0), rule(f, row, TOP_P) < f32(1))
    return tirx.all(f["tokens"][row] >= 0, rule(f, row, FACTOR) > f32(0), limited)


def _few(f: Frame, row: Expr, vocab: int) -> Expr:
    """Whether top_k is so small that the maxima of blocks tell where to look."""
    return tirx.all(rule(f, row, TOP_K) > f32(0), rule(f, row, TOP_K) <= f32(blocks(vocab)))


def histogram(vocab: int, isa: Isa) -> Kernel:
    """How many tokens of each part of a row are in each bin of weight, and what these add up to.

    Pointers logits, peak, tokens, rules, bins i64[rows, parts, Bins.count]. Sizes rows. Rows without top_p, and those
    with a small top_k, are left out.
    """
    assert vocab < 1 << (64 - _MASS_BITS), "a bin has no room for so many tokens"
    bins, half = Bins.of(vocab), max(1, isa.lanes // 2)  # int64 of a vector

    def body(f: Frame) -> None:
        own = let(f.thread * (_COPIES * bins.count))  # successive tokens, often of one bin, count in different copies
        numbers, masses = stack(_STAGE, "int32"), stack(_STAGE, "int32")

        def part(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            start, peak, factor = let(start_of(row, vocab) + first), let(f["peak"][row]), rule(f, row, FACTOR)
            with T.serial(0, _COPIES * bins.count // half) as i:
                store(f["scratch"], own + i * half, splat(const(0, "int64"), half), half)

            def stage(begin: Expr, count: int) -> None:
                """Vectors first, then one token after another: mixed, each number would have to leave its vector."""

                def piece(column: Expr, lanes: int) -> None:
                    depth = bins.depth(load(f["logits"], start + begin + column, lanes), peak, factor, lanes)
                    number = bins.number(depth, lanes)
                    store(numbers, column, number, lanes)
                    store(masses, column, _mass_in_bin(bins, depth, number, lanes), lanes)

                def add(column: Expr, copy: int) -> None:
                    at = let(own + (copy * bins.count) + numbers[column])
                    one = masses[column].astype("int64") + const(1 << _MASS_BITS, "int64")
                    store(f["scratch"], at, f["scratch"][at] + one, 1)

                each_piece(count, isa.lanes, piece)
                with T.serial(0, count // _COPIES) as i:
                    for copy in range(_COPIES):
                        add(i * _COPIES + copy, copy)
                for copy in range(count % _COPIES):
                    add(const(count - count % _COPIES + copy), copy)

            for begin, count in stages(columns, _STAGE):
                stage(begin, count)
            base = let((row * parts(vocab) + number) * bins.count)
            with T.serial(0, bins.count // half) as i:
                copies = [load(f["scratch"], own + copy * bins.count + i * half, half) for copy in range(_COPIES)]
                store(f["bins"], base + i * half, sum(copies[1:], copies[0]), half)

        def item(row: Expr, number: Expr, first: Expr, columns: int) -> None:
            wanted = tirx.all(_filters(f, row), tirx.Not(_few(f, row, vocab)))
            when(wanted, lambda: part(row, number, first, columns))

        each_range(f, vocab, PART, item)

    pointers = (*ROW, Pointer("bins", "int64"), Pointer("scratch", "int64"))
    return Kernel(
        kernel_name("histogram", vocab),
        pointers,
        ("rows",),
        lambda s: s["rows"] * parts(vocab),
        body,
        grain=1,
        scratch=_COPIES * bins.count * 8,
    )


def _mass_in_bin(bins: Bins, depth: Expr, number: Expr, lanes: int) -> Expr:
    """e^((number - depth) / bins.per_e) in units of 2^-22, for less than one bin of difference; of no meaning in the
    last bin.
    """
    scale, step = 2.0**_UNIT * math.exp(-0.5 / bins.per_e), -1.0 / bins.per_e
    inside = let(depth - number.astype(vector("float32", lanes)))
    x = let(tirx.min(inside, splat(f32(1), lanes)) - splat(f32(0.5), lanes))  # the middle of the bin is 0
    total = splat(f32(scale * step**4 / 24), lanes)  # the next term of the series is less than 10^-8
    for power in (3, 2, 1, 0):
        total = fma(
            total, x, splat(f32(scale * step**power / math.factorial(power) + (0.5 if not power else 0)), lanes)
        )
    return let(total).astype(vector("int32", lanes))


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
                with T.If(rule(f, row, TOP_K) > f32(0)), T.Then():
                    one.find(0, rule(f, row, TOP_K).astype("float64"))
                with T.If(rule(f, row, TOP_P) < f32(1)), T.Then():
                    one.find(1, let(rule(f, row, TOP_P).astype("float64") * one.mass[0]))

            when(_filters(f, row), search)

    pointers = (
        *ROW,
        Pointer("peaks", "float32"),
        Pointer("bins", "int64"),
        Pointer("least", "float32"),
        Pointer("last", "int32"),
        Pointer("scratch", "float32"),
    )
    return Kernel(kernel_name("threshold", vocab), pointers, ("rows",), all_rows, body, grain=1, scratch=areas.bytes)


class _Threshold:
    """The search in one row. `mass` is the weight of all tokens that are left."""

    def __init__(self, f: Frame, row: Expr, vocab: int, isa: Isa, areas: Scratch) -> None:
        self.f, self.row, self.vocab, self.isa = f, row, vocab, isa
        self.start, self.peak, self.factor = start_of(row, vocab), let(f["peak"][row]), rule(f, row, FACTOR)
        self.areas = areas.at(f.thread)
        self.bins = Bins.of(vocab)
        self.base = let(row * (parts(vocab) * self.bins.count))
        self.mass = cell("float64", const(0.0, "float64"))
        self.few = let(_few(f, row, vocab))
        when(tirx.Not(self.few), self._add_parts)

    def _add_parts(self) -> None:
        """Add the histograms of all parts up in that of the first one, and `mass`."""
        words, count, per_e = self.f["bins"], self.bins.count, self.bins.per_e
        lanes = max(1, self.isa.lanes // 2)
        with T.serial(1, parts(self.vocab)) as part, T.serial(0, count // lanes) as i:
            at = let(self.base + i * lanes)
            store(words, at, load(words, at, lanes) + load(words, at + part * count, lanes), lanes)
        sums, scales = Registers(_SUMS, "float64", 1), Registers(_SUMS, "float64", 1)
        for j in range(_SUMS):
            sums[j], scales[j] = const(0.0, "float64"), const(2.0**-_UNIT * math.exp(-j / per_e), "float64")

        def add(number: Expr, j: int) -> None:
            sums[j] = sums[j] + self._content(number, 1) * scales[j]
            scales[j] = scales[j] * const(math.exp(-_SUMS / per_e), "float64")

        for first, several in stages(count - 1, _SUMS):  # sums that need not wait for each other
            for j in range(several):
                add(first + j, j)
        self.mass[0] = let(sums[0] + sums[1]) + let(sums[2] + sums[3])

    def _content(self, number: Expr, by: int) -> Expr:
        """How many tokens a bin has (by 0), or what they weigh together, in the bin's units (by 1)."""
        word = let(self.f["bins"][self.base + number])
        return let((word & const((1 << _MASS_BITS) - 1, "int64") if by else word >> _MASS_BITS).astype("float64"))

    @staticmethod
    def _first_scale() -> Registers:
        """A unit of the first bin, as a weight."""
        return cell("float64", const(2.0**-_UNIT, "float64"))

    def _next_scale(self, scale: Registers) -> None:
        scale[0] = scale[0] * const(math.exp(-1.0 / self.bins.per_e), "float64")

    def find(self, by: int, wanted: Expr) -> None:
        """Leave the fewest most probable tokens that `wanted` of them (by 0) or of weight (by 1) are."""
        zero = const(0.0, "float64")
        above, number = cell("int32", const(-1)), cell("int32", const(-1))  # the last bin before, the last one searched
        before, mass = cell("float64", zero), cell("float64", zero)
        when(
            self.few,
            lambda: self._find_few(number),
            lambda: self._find_bin(by, wanted, above, number, before, mass),
        )
        last = self.bins.count - 1
        floor = self._edge(tirx.Select(number[0] < last, (number[0] + 1).astype("float32"), f32(INFINITY)))
        top = self._edge((above[0] + 1).astype("float32"))
        count, missing, heavier = self._gather(floor, top), let(wanted - before[0]), let(mass[0])
        with T.If(count > 0), T.Then():  # else rounding made `wanted` more than there is, and all tokens are left
            self._bisect(by, count, missing, heavier, floor, top)

    def _edge(self, depth: Expr) -> Expr:
        """The key (see `_ordered`) of the largest logit that lies at `depth` or deeper."""
        low, high = (cell("int32", _ordered(bits("int32", x))) for x in (f32(-INFINITY), self.peak))
        high[0] = high[0] + 1
        with T.While(high[0].astype("int64") - low[0].astype("int64") > 1):
            middle = _middle(low, high)
            x = let(bits("float32", _ordered(middle)))
            deep = self.bins.depth(x, self.peak, self.factor, 1) >= depth
            with T.If(deep):
                with T.Then():
                    low[0] = middle
                with T.Else():
                    high[0] = middle
        return let(low[0])

    def _find_few(self, number: Registers) -> None:
        """The first bin up to which top_k blocks have their largest token."""
        count = cell("float32", f32(0))
        with T.While(count[0] < rule(self.f, self.row, TOP_K)):
            number[0] = number[0] + 1
            count[0] = f32(0)
            with T.serial(0, blocks(self.vocab)) as i:
                count[0] = count[0] + (self._bin_of_peak(i) <= number[0]).astype("float32")

    def _bin_of_peak(self, block: Expr) -> Expr:
        peak = let(self.f["peaks"][self.row * blocks(self.vocab) + block])
        return self.bins.number(self.bins.depth(peak, self.peak, self.factor, 1), 1)

    def _find_bin(
        self, by: int, wanted: Expr, above: Registers, number: Registers, before: Registers, mass: Registers
    ) -> None:
        """The bin in which `wanted` is reached, and what the bins before it hold: `before` by `by`, and `mass`."""
        zero = const(0.0, "float64")
        here, scale = Registers(2, "float64", 1), self._first_scale()
        here[0], here[1] = zero, zero
        with T.While(tirx.all(number[0] < self.bins.count - 1, before[0] + here[by] < wanted)):
            before[0] = before[0] + here[by]
            mass[0] = mass[0] + here[1]
            above[0] = number[0]
            number[0] = number[0] + 1
            here[0], here[1] = self._content(number[0], 0), self._content(number[0], 1) * scale[0]
            self._next_scale(scale)

    def _gather(self, floor: Expr, top: Expr) -> Expr:
        """Copy the tokens above `floor` up to `top` (keys), in the order of ids; returns how many."""
        count = cell("int32", const(0))
        low, high = (let(bits("float32", _ordered(key))) for key in (floor, top))

        def block(first: Expr, columns: int) -> None:
            def piece(column: Expr, lanes: int) -> None:
                x = Registers(1, "float32", lanes)
                x[0] = load(self.f["logits"], self.start + first + column, lanes)
                found, none = Registers(1, "int32", lanes), splat(const(0), lanes)
                inside = let(tirx.Select(x[0] > splat(low, lanes), splat(const(1), lanes), none))
                found[0] = tirx.Select(x[0] <= splat(high, lanes), inside, none)
                hits = let(found[0])
                some = intrinsic("int32", "llvm.vector.reduce.or", hits) if lanes > 1 else hits
                with T.If(some != 0), T.Then():
                    for i in range(lanes):
                        store(self.f["scratch"], self.areas["logits"] + count[0], x.buffers[0][i], 1)
                        count[0] = count[0] + found.buffers[0][i]

            each_piece(columns, self.isa.lanes, piece)

        peaks = let(self.row * blocks(self.vocab))
        with T.serial(0, blocks(self.vocab)) as i, T.If(self.f["peaks"][peaks + i] > low), T.Then():
            in_range(i, self.vocab, BLOCK, block)
        return let(count[0])

    def _bisect(self, by: int, count: Expr, wanted: Expr, before: Expr, floor: Expr, top: Expr) -> None:
        """Find the threshold among `count` gathered tokens; `before` is the weight of those above `top`."""
        lanes, step = self.isa.lanes, self.isa.lanes * _SUMS
        steps = let((count + (step - 1)) // step)
        self._finish_gathering(count, let(steps * step))
        low, high = cell("int32", floor + 1), cell("int32", top + 1)

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
            middle = _middle(low, high)
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
        weight = let(weight_of(distance_of(least, self.peak, self.factor, 1), 1).astype("float64"))
        ties = total(lambda x, weight: tirx.Select(x == bound, one, zero))
        kept = cell("float64", ties)
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
            distance = distance_of(load(self.f["scratch"], x_at + i * lanes, lanes), self.peak, self.factor, lanes)
            store(self.f["scratch"], w_at + i * lanes, weight_of(distance, lanes), lanes)

    def _cut(self, least: Expr, kept: Registers) -> None:
        """Of the tokens at the threshold, leave those with the lowest ids."""
        column = cell("int32", const(-1))
        with T.While(kept[0] > const(0.0, "float64")):
            column[0] = column[0] + 1
            x = let(self.f["logits"][self.start + column[0]])
            with T.If(x == least), T.Then():
                kept[0] = kept[0] - const(1.0, "float64")
        store(self.f["last"], self.row, column[0], 1)


_SUMS = 4  # vector accumulators
_COPIES, _STAGE = 2, 512  # of a histogram; tokens whose bins are found before they are counted
_UNIT, _MASS_BITS = 22, 44  # binary digits of a weight within its bin, and of the sum of weights in a bin


def _ordered(word: Expr) -> Expr:
    """The bits of a float as an integer of the same order, and back."""
    return let(word ^ let((word >> const(31)) & const(0x7FFFFFFF)))


def _middle(low: Registers, high: Registers) -> Expr:
    """Halfway between two keys."""
    return let(((low[0].astype("int64") + high[0].astype("int64")) >> 1).astype("int32"))
