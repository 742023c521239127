"""y = x w^T for float weights: acc = fma(w, x, acc), over k in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm.tirx.script.builder import ir as T

from .emit import Registers, const, fma, let, load, prefetch, splat, store, widen
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .linear import AHEAD, STREAMS, Family, Output, Tiling, each_tile

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "uint16"}  # of weights in memory
_CACHED = 4  # row blocks that share a pass over x where there are many rows
_BYTES = {"float32": 4, "float16": 2, "uint16": 2}


def linear_float(
    n: int, k: int, format: str, isa: Isa, family: Family, *, bias: bool = False, accumulate: bool = False
) -> Kernel:
    """y f32[rows, n] = x w^T (+ bias) (+ residual), `format` (f32, f16 or bf16) being the dtype of w [n, k].

    Pointers: x f32[rows, k]; w as packed; bias f32[n] where asked for; residual f32[rows, n] with `accumulate` (y
    itself may be given); y; scratch where the kernel needs it.
    """
    output = Output(n, isa.lanes, isa.float_rows // isa.lanes, bias, accumulate)
    product = _Product(k, DTYPES[format], isa)
    # Few registers make low tiles, which would widen each weight many times over: do it once for all rows of x.
    widened = family == "matrix" and isa.registers == 16 and format != "f32"

    cached = family == "matrix" and not widened
    if family == "vector":
        tiling = Tiling((1,), (STREAMS, 1), streams=True)
    else:
        tiling = Tiling(product.heights(), (1,), prepared=widened, cached=_CACHED if cached else 1)
    items = tiling.items(output.blocks)

    def body(f: Frame) -> None:
        w = Weights(f["w"], product.dtype)
        start = let(f.thread.astype("int64") * (k * isa.float_rows))

        def widen_block(block: Expr, width: int) -> None:
            product.widen(w, block, f["scratch"], start)

        def tile(row: Expr, blocks: list[Expr], height: int) -> None:
            if widened:
                sums = product.tile(f["x"], row, Weights(f["scratch"], "float32"), [start], height, 0)
            else:
                starts = [product.start(block) for block in blocks]
                sums = product.tile(f["x"], row, w, starts, height, AHEAD if family == "small" else 0)
            for b, block in enumerate(blocks):
                output.write(f, row, let(block), height, partial(_vector, sums, len(blocks), output.vectors, b))

        each_tile(f, tiling, output.blocks, tile, widen_block)

    pointers = [Pointer("x", "float32"), Pointer("w", DTYPES[format]), *output.pointers()]
    if widened:
        pointers.append(Pointer("scratch", "float32"))
    name = f"linear_{format}_n{n}_k{k}_{family}{output}"
    scratch = k * isa.float_rows * 4 if widened else 0
    return Kernel(name, tuple(pointers), ("rows",), lambda sizes: const(items), body, scratch=scratch)


def _vector(sums: Registers, blocks: int, vectors: int, block: int, t: int, v: int) -> Expr:
    """The sum of row t of x with vector v of a tile's row block."""
    return sums[(t * blocks + block) * vectors + v]


@dataclass(frozen=True, slots=True)
class Weights:
    """A buffer of weights [.., k, rows of a block] and its dtype."""

    buffer: Expr
    dtype: str

    def load(self, at: Expr, lanes: int) -> Expr:
        return widen(load(self.buffer, at, lanes), self.dtype, lanes)


@dataclass(frozen=True, slots=True)
class _Product:
    k: int
    dtype: str
    isa: Isa

    @property
    def vectors(self) -> int:
        """Vectors in a row block."""
        return self.isa.float_rows // self.isa.lanes

    def heights(self) -> tuple[int, ...]:
        """Rows of x in a tile, whose accumulators stay in registers beside one step's weights."""
        highest = (self.isa.registers - self.vectors - 1) // self.vectors
        return tuple(h for h in ((12, 8, 4, 2, 1) if highest >= 12 else (6, 4, 2, 1)) if h <= highest)

    def start(self, block: Expr) -> Expr:
        """The first element of a row block."""
        return let(block.astype("int64") * (self.k * self.isa.float_rows))

    def widen(self, w: Weights, block: Expr, out: Expr, out_start: Expr) -> None:
        """Write a row block as float32 to `out`."""
        start = self.start(block)
        with T.serial(0, self.k * self.vectors) as i:
            store(
                out, out_start + i * self.isa.lanes, w.load(start + i * self.isa.lanes, self.isa.lanes), self.isa.lanes
            )

    def tile(self, x: Expr, row: Expr, w: Weights, starts: list[Expr], height: int, ahead: int) -> Registers:
        """The sums of `height` rows of x, from `row` on, with the row blocks that begin at `starts`; see `_vector`."""
        k, lanes, width = self.k, self.isa.lanes, self.isa.float_rows
        across = len(starts) * self.vectors
        sums = Registers(height * across, "float32", lanes)
        sums.clear()
        x_start = let(row.astype("int64") * k)

        def step(i: Expr) -> None:
            numbers: list[Expr] = []
            for start in starts:
                at = let(start + i * width)
                if ahead:
                    size = _BYTES[w.dtype]
                    for line in range(0, width * size, 64):
                        prefetch(w.buffer, at + (ahead + line) // size)
                numbers += [let(w.load(at + v * lanes, lanes)) for v in range(self.vectors)]
            for t in range(height):
                factor = let(splat(x[x_start + (i + t * k)], lanes))
                for v in range(across):
                    sums[t * across + v] = fma(numbers[v], factor, sums[t * across + v])

        unroll = 4 if height * len(starts) <= 2 else 2
        with T.serial(0, k // unroll) as i:
            for u in range(unroll):
                step(i * unroll + u)
        for i in range(k // unroll * unroll, k):
            step(i)
        return sums
