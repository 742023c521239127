"""What the kernels with many rows share: spans of a row, sums over lanes, outer products, scratch memory.

Every sum has one order, which depends on compile-time constants alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, const, dtype_of, fma, let, splat, vector
from .isa import Isa
from .kernel import Expr

TURN = 4


def kernel_name(*parts: object) -> str:
    """A function name that tells apart whatever differs in `parts`."""
    text = "_".join(str(part) for part in parts)
    return "".join(c if c.isalnum() else {".": "p", "-": "m"}.get(c, "_") for c in text)


def spans(count: int, lanes: int) -> Iterator[tuple[int, int]]:
    """(start, width) of vectors that cover 0..count: `lanes` wide, then halves, down to one element."""
    start = 0
    while start < count:
        while lanes > count - start:
            lanes //= 2
        yield start, lanes
        start += lanes


def divisor_lanes(count: int, isa: Isa) -> int:
    """The widest vector that divides `count`, no wider than a register."""
    lanes = isa.lanes
    while count % lanes:
        lanes //= 2
    return lanes


def larger(a: Expr, b: Expr) -> Expr:
    """max(a, b) in one instruction; b where either is NaN."""
    return tirx.max(a, b)  # a Select would do, but TVM's simplifier takes exponential time on chains of them


def fold(value: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of `value` combined: the lower half with the upper half, and so on."""
    kind = dtype_of(value).split("x")[0]
    while lanes > 2:
        lanes //= 2
        value = let(value)
        low, high = (tirx.call_intrin(vector(kind, lanes), f"tirx.vector{half}", value) for half in ("low", "high"))
        value = combine(let(low), let(high))
    if lanes == 2:
        value = let(value)
        value = combine(*(let(tirx.Shuffle([value], [const(i)])) for i in range(2)))
    return let(value)


def fold_add(value: Expr, lanes: int) -> Expr:
    return fold(value, lanes, lambda a, b: a + b)


def tile_shape(rows: int, vectors: int, isa: Isa) -> tuple[int, int]:
    """(height, width): rows and vectors of the register tile that covers `rows` x `vectors` accumulators fastest.

    A step of the tile costs half a cycle for each fma and each load, and no less than an fma's latency.
    """

    def cost(height: int, width: int) -> tuple[float, int]:
        steps = -(-rows // height) * -(-vectors // width)
        return steps * max(height * width / 2, (height + width) / 2, 5.0), steps * (height + width)

    shapes = [(h, w) for h in range(1, rows + 1) for w in range(1, vectors + 1) if h * w + w + 1 <= isa.registers]
    return min(shapes, key=lambda shape: cost(*shape))


def in_turns(count: Expr, step: Callable[[Expr], None]) -> None:
    """Emit step(0), step(1), ... step(count - 1): a loop that makes `TURN` of them at a time.

    What a step computes from its number modulo TURN is known when the kernel is compiled.
    """
    with T.serial(0, count // TURN) as turn:
        for i in range(TURN):
            step(turn * TURN + i)
    if not isinstance(count, int) or count % TURN:
        with T.serial(0, count % TURN) as i:
            step(count // TURN * TURN + i)


def outer_sum(
    height: int,
    width: int,
    lanes: int,
    depth: Expr,
    left: Callable[[int, Expr], Expr],
    right: Callable[[Expr, int], Expr],
    start: Callable[[int, int], Expr],
    finish: Callable[[int, int, Expr], None],
) -> None:
    """finish(m, v, start(m, v) + sum over k < depth of left(m, k) * right(k, v)), in the order of k.

    `left` gives scalars, `right` and `start` vectors; height * width sums live in registers.
    """
    sums = Registers(height * width, "float32", lanes)
    for m in range(height):
        for v in range(width):
            sums[m * width + v] = start(m, v)

    def step(k: Expr) -> None:
        across = [let(right(k, v)) for v in range(width)]
        for m in range(height):
            factor = let(splat(left(m, k), lanes))
            for v in range(width):
                sums[m * width + v] = fma(across[v], factor, sums[m * width + v])

    in_turns(depth, step)
    for m in range(height):
        for v in range(width):
            finish(m, v, sums[m * width + v])


def parts(total: int, part: int) -> Iterator[tuple[Expr, int]]:
    """Emit code for `total` things, `part` at a time: (first, count), a loop over full parts and then the rest."""
    if total // part > 1:
        with T.serial(0, total // part) as i:
            yield i * part, part
    elif total >= part:
        yield 0, part
    if total % part:
        yield total - total % part, total % part


class Scratch:
    """Named float32 areas of a thread's private memory, each at a multiple of 64 bytes."""

    def __init__(self, **counts: int) -> None:
        self._starts: dict[str, int] = {}
        words = 0
        for name, count in counts.items():
            self._starts[name] = words
            words += -(-count // 16) * 16
        self.bytes = words * 4

    def at(self, thread: Expr) -> Mapping[str, Expr]:
        """The index of each area in the float32 pointer `scratch`."""
        base = let(thread * (self.bytes // 4))
        return {name: let(base + start) for name, start in self._starts.items()}
