"""y = x w^T for quantized weights: exact integer dot products within a group, scaled once per group.

Activations come from `quantize_rows`, weights as `backends.layouts` packs them. An accumulator takes the groups of k in
order, `zero` being what is to be taken from the stored integers:

    acc = fma(float(dot - zero * sum), scale_w * scale_x, acc)
    acc = fma(bias_w, float(sum) * scale_x, acc)                   asymmetric formats only
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from mlc.ir.types import Format

from ..layouts import layout_for
from .dots import dots
from .emit import Registers, bits, const, fma, let, load, prefetch, splat, widen
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .linear import Family, Output, each_tile

FLOATS = {"f16": "float16", "f32": "float32"}


def linear_quantized(
    n: int, k: int, format: Format, isa: Isa, family: Family, *, bias: bool = False, accumulate: bool = False
) -> Kernel:
    """y f32[rows, n] = dequantize(x) dequantize(w)^T (+ bias) (+ residual), w being `format`[n, k].

    Pointers: x int8[rows, k], x_scale f32[rows, k / group], x_sum i32[rows, k / group]; w, w_scale and, asymmetric,
    w_bias as packed; bias f32[n] where asked for; residual f32[rows, n] with `accumulate` (y itself may be given); y.
    """
    output = Output(n, isa.lanes, 1, bias, accumulate)
    product = _Product(k, format, isa)
    heights = _heights(isa)

    def body(f: Frame) -> None:
        def tile(row: Expr, block: Expr, height: int, ahead: int) -> None:
            output.write(f, row, block, product.tile(f, row, block, height, ahead), height)

        each_tile(f, family, heights, tile)

    floats = FLOATS[format.scale]
    weights = [Pointer("w", "uint8"), Pointer("w_scale", floats)]
    if not format.symmetric:
        weights.append(Pointer("w_bias", floats))
    pointers = (
        *(Pointer("x", "int8"), Pointer("x_scale", "float32"), Pointer("x_sum", "int32")),
        *weights,
        *output.pointers(),
    )
    name = f"linear_{format}_n{n}_k{k}_{family}{output}"
    return Kernel(name, pointers, ("rows",), output.blocks, body)


def _heights(isa: Isa) -> tuple[int, ...]:
    """Rows of x in a tile, whose accumulators stay in registers beside the weights being used."""
    if isa.dot == "portable":
        return (2, 1)
    if isa.registers == 16:
        return (6, 3, 1)
    # A vpdpbusd reads its activations from memory; elsewhere they take registers as well.
    return (12, 8, 4, 2, 1) if isa.dot == "vnni" else (8, 4, 2, 1)


def zero_point(format: Format, bytes: str) -> int:
    """What the stored integers exceed the meant ones by; `bytes` is the layout's field of that name."""
    if format.bits == 4:
        return 8 if format.symmetric else 0
    if bytes == "s":
        return 0 if format.symmetric else -128
    return 128 if format.symmetric else 0


@dataclass(frozen=True, slots=True)
class _Product:
    k: int
    format: Format
    isa: Isa

    def tile(self, f: Frame, row: Expr, block: Expr, height: int, ahead: int) -> Registers:
        """The sums of `height` rows of x, from `row` on, with the rows of w in `block`."""
        isa, group = self.isa, self.format.group
        groups = self.k // group
        floats = FLOATS[self.format.scale]
        sums = Registers(height, "float32", isa.lanes)
        sums.clear()
        w_start, x_start = let(block.astype("int64") * groups), let(row.astype("int64") * groups)
        with T.serial(0, groups) as number:
            at = let(w_start + number)  # this group of the row block
            if ahead:
                size = group * self.format.bits // 8 * isa.lanes  # bytes of a group
                for line in range(0, size, 64):
                    prefetch(f["w"], at * size + (ahead + line))
            scale = let(widen(load(f["w_scale"], at * isa.lanes, isa.lanes), floats, isa.lanes))
            x_at = [let(x_start + (number + t * groups)) for t in range(height)]
            for t, dot in enumerate(self._dots(f, at, x_at)):
                x_scale = let(f["x_scale"][x_at[t]])
                factor = scale * splat(x_scale, isa.lanes)
                sums[t] = fma(dot.astype(f"float32x{isa.lanes}"), factor, sums[t])
            if not self.format.symmetric:
                offset = let(widen(load(f["w_bias"], at * isa.lanes, isa.lanes), floats, isa.lanes))
                for t in range(height):
                    total = f["x_sum"][x_at[t]].astype("float32") * f["x_scale"][x_at[t]]
                    sums[t] = fma(offset, splat(total, isa.lanes), sums[t])
        return sums

    def _dots(self, f: Frame, at: Expr, x_at: list[Expr]) -> list[Expr]:
        """The int32 vectors dot - zero * sum of group `at` of the weights and groups `x_at` of rows of x."""
        isa, nibbles = self.isa, self.format.bits == 4
        zero = zero_point(self.format, layout_for(isa, self.format).bytes)
        starts = [let(splat(f["x_sum"][g] * const(-zero), isa.lanes)) if zero else None for g in x_at]
        stored = self.format.group // (8 if nibbles else 4)  # vectors
        step = min(stored, 4 if nibbles else 8)

        def add(first: Expr, starts: list[Expr | None]) -> list[Expr]:
            sums = dots(isa, starts, 1, nibbles=nibbles)
            x_starts = [let(g * self.format.group + first * 4) for g in x_at]
            for vectors in self._weights(f["w"], at * stored + first, stored, step):
                for quad, w in vectors:
                    sums.add(f["x"], x_starts, quad, [w])
            return sums.totals()

        if step == stored:
            return add(const(0), starts)
        totals = Registers(len(x_at), "int32", isa.lanes)
        totals.clear()
        for t, start in enumerate(starts):
            if start is not None:
                totals[t] = start
        with T.serial(0, stored // step) as number:
            added = add(number * step, [let(totals[t]) for t in range(len(x_at))])
            for t, total in enumerate(added):
                totals[t] = total
        return [totals[t] for t in range(len(x_at))]

    def _weights(self, w: Expr, first: Expr, stored: int, count: int) -> Iterator[list[tuple[int, Expr]]]:
        """Vectors `first` .. `first + count` of w, as many at a time as fit, each with its four neighbours' number.

        The numbers count fours of k from that of `first`. A group has `stored` vectors.
        """
        width, nibbles = self.isa.lanes * 4, self.format.bits == 4
        part = {(32, True): 4, (32, False): 8, (16, True): 2, (16, False): 1}[self.isa.registers, nibbles]
        mask, four = splat(const(15, "uint8"), width), splat(const(4, "uint16"), width // 2)
        for start in range(0, count, part):
            vectors: list[tuple[int, Expr]] = []
            for j in range(start, min(start + part, count)):
                raw = let(load(w, (first + j) * width, width))
                if nibbles:
                    high = bits(f"uint8x{width}", bits(f"uint16x{width // 2}", raw) >> four)
                    vectors += [(j, let(raw & mask)), (stored + j, let(high & mask))]
                else:
                    vectors.append((j, raw))
            yield vectors
