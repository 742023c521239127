"""y = x w^T for quantized weights: exact integer dot products within a group, scaled once per group.

Activations come from `quantize_rows`, weights as `backends.layouts` packs them. An accumulator takes the groups of k in
order, `zero` being what the stored integers exceed the meant ones by:

    acc = fma(float(dot) * scale_x, scale_w, acc)
    acc = fma(offset_w, sum_x, acc)                 offset_w = bias_w - zero * scale_w, where that is not zero
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from tvm.tirx.script.builder import ir as T

from mlc.ir.types import Format

from ..layouts import layout_for
from . import amx
from .choice import Trial
from .dots import dots
from .emit import Registers, const, fma, let, splat
from .group_weights import BoundUnpacked, GroupWeights, PackedWeights, UnpackedWeights, scale_pointers
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .linear import AHEAD, STREAMS, Family, Output, Tiling, each_tile


def linear_quantized(
    n: int,
    k: int,
    format: Format,
    isa: Isa,
    family: Family,
    *,
    tiling: Tiling | None = None,
    bias: bool = False,
    accumulate: bool = False,
) -> Kernel:
    """y f32[rows, n] = dequantize(x) dequantize(w)^T (+ bias) (+ residual), w being `format`[n, k].

    `tiling` is one of `tilings`, by default the first; it makes no difference to the result.
    Pointers: x int8[rows, k], x_scale f32[rows, k / group], x_sum f32[rows, k / group]; w, w_scale and
    perhaps w_bias as packed; bias f32[n] where asked for; residual f32[rows, n] with `accumulate` (y itself may be
    given); y; scratch where the kernel needs it.
    """
    output = Output(n, isa.lanes, 1, bias, accumulate)
    tiling = tiling or tilings(isa, format, family)[0]
    items = tiling.items(output.blocks)
    packed = PackedWeights(k, format, isa, layout_for(isa, format).bytes)
    unpacked = UnpackedWeights(packed, tiling.widths[0]) if tiling.prepared else None
    product = _Product(k // format.group, format, isa)

    def body(f: Frame) -> None:
        def prepare(block: Expr, width: int) -> None:
            assert unpacked is not None
            unpacked.fill(f, block, width)

        def tile(row: Expr, blocks: list[Expr], height: int) -> None:
            weights: GroupWeights
            if unpacked is not None:
                weights = unpacked.bind(f, len(blocks))
            else:
                weights = packed.bind(f, blocks, AHEAD if family == "small" else 0)
            sums = product.tile(f, row, weights, height, len(blocks))
            for b, block in enumerate(blocks):
                output.write(f, row, let(block), height, partial(_column, sums, len(blocks), b))

        with amx.tile_registers(format.group) if isa.tiles and tiling.prepared else nullcontext():
            each_tile(f, tiling, output.blocks, tile, prepare)

    pointers = [Pointer("x", "int8"), Pointer("x_scale", "float32"), Pointer("x_sum", "float32")]
    pointers += [Pointer("w", "uint8"), *scale_pointers(format), *output.pointers()]
    if unpacked is not None:
        pointers.append(Pointer("scratch", "uint8"))
    name = f"linear_{format}_n{n}_k{k}_{family}_{tiling}{output}"
    scratch = unpacked.bytes if unpacked is not None else 0
    return Kernel(name, tuple(pointers), ("rows",), lambda sizes: const(items), body, scratch=scratch)


def _column(sums: Registers, width: int, block: int, t: int, vector: int) -> Expr:
    """The sum of row t with a block that is one vector wide."""
    assert vector == 0
    return sums[t * width + block]


def tilings(isa: Isa, format: Format, family: Family) -> tuple[Tiling, ...]:
    """Tiles whose accumulators stay in registers beside the weights being used; first what is fastest in most cases."""
    if isa.dot == "portable":
        return (Tiling((1,) if family == "vector" else (2, 1), (1,)),)
    if family == "vector":
        return (Tiling((1,), (STREAMS, 1), streams=True),)
    many = family == "matrix"
    if isa.registers == 32:
        # A vpdpbusd reads its activations from memory; elsewhere they take registers as well.
        sides = (_SIDES_VNNI_MANY if many else _SIDES_VNNI_FEW) if isa.dot == "vnni" else _SIDES_32
        found = tuple(Tiling(_falling(high), _falling(wide), cached=4 if many else 1) for high, wide in sides)
        if isa.tiles and many:  # what is left of the rows takes vpdpbusd
            return (Tiling(_falling(amx.ROWS), (1,), prepared=True), *found)
        return found
    sides = _SIDES_MANY[format.bits] if many else _SIDES_FEW
    return tuple(Tiling(_falling(high), _falling(wide), prepared=many) for high, wide in sides)


_Sides = tuple[tuple[int, int], ...]  # rows of x and row blocks of tiles
_SIDES_VNNI_FEW: _Sides = ((12, 1), (6, 2))
_SIDES_VNNI_MANY: _Sides = ((6, 2), (12, 1))
_SIDES_32: _Sides = ((8, 1), (4, 2))
_SIDES_FEW: _Sides = ((8, 1), (4, 2))
_SIDES_MANY: dict[int, _Sides] = {  # by the bits of a weight
    4: ((3, 3), (3, 2), (4, 2)),
    6: ((4, 2), (5, 2)),
    8: ((4, 2), (5, 2), (6, 1)),
}


def _falling(side: int) -> tuple[int, ...]:
    """What a side of a tile falls to where rows or blocks are fewer."""
    lower = {12: 8, 6: 4}.get(side, side // 2)
    return (side, *_falling(lower)) if lower else (side,)


def trial(k: int, format: Format, isa: Isa, family: Family, found: Sequence[Tiling]) -> Trial:
    """What tells which of the tilings `found` is the fastest for products over k.

    Few rows of x wait for memory too: their weights are more than a core's own caches hold. For many rows, some blocks
    will do.
    """
    rows = 8 if family == "small" else 240
    count = _COLD // (k * format.bits // 8) if family == "small" else 24 * isa.lanes
    n = -(-count // (24 * isa.lanes)) * (24 * isa.lanes)  # whole tiles, whatever their width
    kernels = [linear_quantized(n, k, format, isa, family, tiling=t) for t in found]
    groups = k // format.group
    size = {"x": rows * k, "x_scale": 4 * rows * groups, "x_sum": 4 * rows * groups, "y": 4 * rows * n}
    size |= {"w": n * k * format.bits // 8, "w_scale": 8 * n * groups, "w_bias": 8 * n * groups}  # at most
    return Trial(kernels, size, {"rows": rows})


_COLD = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _Product:
    groups: int
    format: Format
    isa: Isa

    def tile(self, f: Frame, row: Expr, weights: GroupWeights, height: int, width: int) -> Registers:
        """The sums of `height` rows of x, from `row` on, with `width` row blocks: row t, block b at t * width + b."""
        lanes = self.isa.lanes
        sums = Registers(height * width, "float32", lanes)
        sums.clear()
        x_start = let(row.astype("int64") * self.groups)

        def x_at(number: Expr) -> list[Expr]:
            return [let(x_start + (number + t * self.groups)) for t in range(height)]

        if self.isa.tiles and height == amx.ROWS and isinstance(weights, BoundUnpacked):
            together, group = amx.groups_together(self.groups), self.format.group
            with T.serial(0, self.groups // together) as turn:
                first = let(turn * together)
                found = amx.group_products(f, x_start + first, self.groups * group, weights, first, together, group)
                with T.serial(0, together) as g:
                    products = [found[g * height + t] for t in range(height)]
                    self._add(f, sums, products, weights, first + g, x_at(first + g))
            return sums
        with T.serial(0, self.groups) as number:
            weights.fetch(number)
            rows = x_at(number)
            self._add(f, sums, self._dots(f, weights, number, rows, width), weights, number, rows)
        return sums

    def _add(
        self,
        f: Frame,
        sums: Registers,
        products: Sequence[Expr],
        weights: GroupWeights,
        number: Expr,
        x_at: Sequence[Expr],
    ) -> None:
        """Add what group `number` gives, `products` being its integer sums; x_at names the group in each row of x."""
        lanes, width = self.isa.lanes, len(products) // len(x_at)
        scales, offsets = weights.scales(number)
        for t, at in enumerate(x_at):
            x_scale = let(splat(f["x_scale"][at], lanes))
            for b in range(width):
                scaled = products[t * width + b].astype(f"float32x{lanes}") * x_scale
                sums[t * width + b] = fma(scaled, scales[b], sums[t * width + b])
            if offsets:
                x_sum = let(splat(f["x_sum"][at], lanes))
                for b in range(width):
                    sums[t * width + b] = fma(offsets[b], x_sum, sums[t * width + b])

    def _dots(self, f: Frame, weights: GroupWeights, number: Expr, x_at: Sequence[Expr], width: int) -> list[Expr]:
        """The int32 vectors of a group's integer products, row t and block b at t * width + b."""
        isa, group = self.isa, self.format.group
        count = len(x_at) * width

        def add(step: Expr, starts: Sequence[Expr | None]) -> list[Expr]:
            sums = dots(isa, starts, width, weight_bits=self.format.bits)
            x_starts = [let(at * group + step * (weights.step * 4)) for at in x_at]
            for quad, vectors in weights.quads(number, step):
                sums.add(f["x"], x_starts, quad, vectors)
            return sums.totals()

        if weights.steps == 1:
            return add(const(0), [None] * count)
        totals = Registers(count, "int32", isa.lanes)
        totals.clear()
        with T.serial(0, weights.steps) as step:
            for i, total in enumerate(add(step, [let(totals[i]) for i in range(count)])):
                totals[i] = total
        return [totals[i] for i in range(count)]
