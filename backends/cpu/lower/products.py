"""Weights, products with them, and what feeds these.

A product has three kernels side by side, for one row, for a few and for many; guards let exactly one of them run.
"""

from __future__ import annotations

from mlc.ir import Node
from mlc.ir import ops as o
from mlc.ir.types import Format

from ...layouts import packed_parts, parse_layout
from ...lowering import Parts, fixed, lowers, rows_of, size_of
from ...program import Guard, Ref
from ..embed import embed
from ..isa import Isa
from ..kernel import Kernel, then
from ..linear import Family
from ..linear_float import linear_float
from ..linear_quantized import linear_quantized, tilings, trial
from ..quantize_rows import quantize_rows
from .context import MANY, CpuLowering, width

FEW, FEW_BYTES = 16, 32  # rows of x up to which unpacking weights before costs more than it saves; weights of 8 bits
LARGE = 1 << 21  # weights of a product for which it is worth a second of compiling to find the best tiles


def _weight_pointers(parts: Parts) -> dict[str, Ref]:
    """The parts of a weight by the kernels' names of them."""
    return {"w" if part in ("q", "w") else f"w_{part}": ref for part, ref in parts.items()}


@lowers(o.constant, "cpu")
def _constant(x: CpuLowering, node: Node) -> None:
    t, name = node.output.tensor, node.text("name")
    if t.format:
        x.place(node.output, {part: Ref("weight", f"{name}.{part}") for part in packed_parts(t.format)})
    elif t.layout:
        x.place(node.output, {"w": Ref("weight", f"{name}.w")})
    else:
        x.place(node.output, {"": Ref("weight", name)})


@lowers(o.embed, "cpu")
def _embed(x: CpuLowering, node: Node) -> None:
    table, ids = node.inputs
    t = table.tensor
    kernel = embed(fixed(t.shape[1]), t.format or t.dtype, parse_layout(t.layout))
    pointers = _weight_pointers(x.parts(table))
    pointers |= {"ids": x.ref(ids), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, size_of(*ids.tensor.shape))


@lowers(o.quantize_rows, "cpu")
def _quantize_rows(x: CpuLowering, node: Node) -> None:
    """Where the call before made the operand in whole groups, it quantizes each of its items at once."""
    (operand,) = node.inputs
    k, group = width(operand), node.integer("group")
    maker = x.maker(operand)
    if maker and maker.strip and maker.sizes == ("rows",) and maker.strip % group == 0:
        x.join(node, then(maker, quantize_rows(k, group, x.isa, maker.strip)), x.result(node.output))
        return
    pointers = {"x": x.ref(operand), **x.result(node.output)}
    x.row_call(node, quantize_rows(k, group, x.isa), pointers, rows_of(node.output.tensor))


@lowers(o.linear, "cpu")
def _linear(x: CpuLowering, node: Node) -> None:
    operand, w = node.inputs[:2]
    n, k = (fixed(d) for d in w.tensor.shape)
    biased = len(node.inputs) == 3
    rows = rows_of(operand.tensor)
    pointers = _weight_pointers(x.parts(w))
    if biased:
        pointers["bias"] = x.ref(node.inputs[2])
    pointers["y"] = x.result(node.output)[""]
    given = x.parts(operand)
    if w.tensor.format is not None:
        pointers |= {"x": given["q"], "x_scale": given["scale"], "x_sum": given["sum"]}
    else:
        pointers["x"] = given[""]
    for family, low, high in families(x.isa, w.tensor.format):
        kernel: Kernel
        if w.tensor.format is not None:
            kernel = _fastest(x, n, k, w.tensor.format, family, biased)
        else:
            kernel = linear_float(n, k, w.tensor.dtype, x.isa, family, bias=biased)
        x.call("linear", kernel, pointers, {"rows": rows}, Guard(rows, low, high))


def families(isa: Isa, format: Format | None) -> tuple[tuple[Family, int, int], ...]:
    """Which rows of x each family is for."""
    unpacks = format is not None and format.bits == 8 and not isa.tiles and tilings(isa, format, "matrix")[0].prepared
    few = FEW_BYTES if unpacks else FEW
    return ("vector", 1, 1), ("small", 2, few), ("matrix", few + 1, MANY)


def _fastest(x: CpuLowering, n: int, k: int, format: Format, family: Family, biased: bool) -> Kernel:
    """The product in the tiles that suit its shape."""
    found = tilings(x.isa, format, family)
    kernels = [linear_quantized(n, k, format, x.isa, family, tiling=t, bias=biased) for t in found]
    if len(kernels) == 1 or n * k < LARGE:
        return kernels[0]
    return x.choose(kernels, trial(k, format, x.isa, family, found))
