"""A tile of integer products: rows of activations by row blocks of weights, through one group of k."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from .emit import bits, const, intrinsic, let, load, splat
from .isa import Dot, Isa
from .kernel import Expr


class Dots:
    """A `Dot` for each row of x and row block of w: row t, block b at t * blocks + b."""

    def __init__(self, isa: Isa, starts: Sequence[Expr | None], blocks: int, *, weight_bits: int) -> None:
        """`starts` are the int32 vectors to add to, None for zero, in that order."""
        self.isa, self.starts, self.blocks = isa, starts, blocks
        self._dots = [Dot(isa, start, weight_bits=weight_bits) for start in starts]

    def add(self, x: Expr, at: Sequence[Expr], quad: int, weights: Sequence[Expr]) -> None:
        """Add the products of one vector of each block with the bytes `at[t] + 4 * quad` .. + 3 of each row of x.

        A quad's neighbour (0 and 1, 2 and 3, ...) follows before the totals are asked for; `at` is a multiple of 16.
        """
        for t, start in enumerate(at):
            values = let(self.isa.repeat_four(x, start, quad))
            for b, w in enumerate(weights):
                self._dots[t * self.blocks + b].add(w, values)

    def totals(self) -> list[Expr]:
        """The int32 vectors."""
        return [dot.total() for dot in self._dots]


class PairedDots(Dots):
    """The same by `smmla`: two rows of x times two of w, eight bytes of each, into a 2 x 2 square of sums.

    It multiplies twice as many bytes as `sdot` does. A vector of weights holds four bytes of four rows: with its
    neighbour's they make eight bytes of two rows twice.
    """

    def __init__(self, isa: Isa, starts: Sequence[Expr | None], blocks: int) -> None:
        self.isa, self.starts, self.blocks = isa, starts, blocks
        pairs = len(starts) // (2 * blocks)
        zero = splat(const(0), 4)
        # Of a pair of rows p and a block: rows of w 0, 1 and then 2, 3; a square is x0 w0, x0 w1, x1 w0, x1 w1.
        self._squares = [[[zero, zero] for _ in range(blocks)] for _ in range(pairs)]
        self._waiting: dict[int, Sequence[Expr]] = {}

    def add(self, x: Expr, at: Sequence[Expr], quad: int, weights: Sequence[Expr]) -> None:
        self._waiting[quad] = weights
        even, odd = quad & ~1, quad | 1
        if even not in self._waiting or odd not in self._waiting:
            return
        words = [[bits("int32x4", v) for v in self._waiting.pop(q)] for q in (even, odd)]
        rows = [
            [let(bits("int8x16", tirx.Shuffle(list(both), [i, 4 + i, i + 1, 5 + i]))) for i in (0, 2)]
            for both in zip(*words, strict=True)
        ]
        for p, squares in enumerate(self._squares):
            eights = [load(x, at[2 * p + i] + even * 4, 8) for i in range(2)]
            values = let(tirx.Shuffle(eights, list(range(16))))
            for square, two in zip(squares, rows, strict=True):
                for i, w in enumerate(two):
                    square[i] = let(intrinsic("int32x4", "llvm.aarch64.neon.smmla", square[i], values, w))

    def totals(self) -> list[Expr]:
        assert not self._waiting, "a quad without its neighbour"
        found: list[Expr] = []
        for squares in self._squares:
            for row in range(2):
                for square in squares:
                    halves = [bits("int64x2", s) for s in square]
                    found.append(bits("int32x4", tirx.Shuffle(halves, [row, 2 + row])))
        return [let(v if s is None else v + s) for v, s in zip(found, self.starts, strict=True)]


def dots(isa: Isa, starts: Sequence[Expr | None], blocks: int, *, weight_bits: int) -> Dots:
    """The fastest of these for so many rows."""
    if isa.pairs and len(starts) // blocks % 2 == 0:
        return PairedDots(isa, starts, blocks)
    return Dots(isa, starts, blocks, weight_bits=weight_bits)
