"""Norms and element-wise ops."""

from __future__ import annotations

from mlc.ir import Node
from mlc.ir import ops as o

from ...lowering import lowers, rows_of, size_of
from ..norm import add_rms_norm, layer_norm, rms_norm
from ..pointwise import cast, glu, pointwise
from ..rows import Rows
from .context import TIR, CpuLowering, width


@lowers(o.rms_norm, "cpu")
def _rms_norm(x: CpuLowering, node: Node) -> None:
    kernel = rms_norm(width(node.output), node.number("eps"), x.isa)
    pointers = {**x.named(node, "x", "weight"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, rows_of(node.output.tensor))


@lowers(o.add_rms_norm, "cpu")
def _add_rms_norm(x: CpuLowering, node: Node) -> None:
    y, total = node.outputs
    kernel = add_rms_norm(width(y), node.number("eps"), x.isa)
    pointers = {**x.named(node, "x", "residual", "weight"), "y": x.result(y)[""], "total": x.result(total)[""]}
    x.row_call(node, kernel, pointers, rows_of(y.tensor))


@lowers(o.layer_norm, "cpu")
def _layer_norm(x: CpuLowering, node: Node) -> None:
    kernel = layer_norm(width(node.output), node.number("eps"), x.isa)
    pointers = {**x.named(node, "x", "weight", "bias"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, rows_of(node.output.tensor))


@lowers(o.add, "cpu")
@lowers(o.mul, "cpu")
@lowers(o.div, "cpu")
def _binary(x: CpuLowering, node: Node) -> None:
    """The second operand may be the end of the first's shape: its rows then repeat."""
    a, b = (v.tensor for v in node.inputs)
    k = width(node.output)
    period = {}
    rows = Rows(k)
    if len(b.shape) == 1 and len(a.shape) > 1:
        rows = Rows(0)
    elif a.shape != b.shape:
        rows, period = Rows(k, repeats=True), {"period": size_of(*b.shape[:-1])}
    kernel = pointwise(node.op.name, k, x.isa, b=rows)
    pointers = {**x.named(node, "a", "b"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, rows_of(node.output.tensor), **period)


@lowers(o.silu, "cpu")
@lowers(o.tanh, "cpu")
@lowers(o.gelu, "cpu")
def _unary(x: CpuLowering, node: Node) -> None:
    name = "gelu_tanh" if node.attrs.get("approximate") == "tanh" else node.op.name
    pointers = {**x.named(node, "a"), "y": x.result(node.output)[""]}
    x.row_call(node, pointwise(name, width(node.output), x.isa), pointers, rows_of(node.output.tensor))


@lowers(o.swiglu, "cpu")
def _swiglu(x: CpuLowering, node: Node) -> None:
    pointers = {**x.named(node, "x"), "y": x.result(node.output)[""]}
    x.row_call(node, glu("swiglu", width(node.output), x.isa), pointers, rows_of(node.output.tensor))


@lowers(o.cast, "cpu")
def _cast(x: CpuLowering, node: Node) -> None:
    kernel = cast(width(node.output), TIR[node.inputs[0].tensor.dtype], TIR[node.text("dtype")], x.isa)
    pointers = {**x.named(node, "x"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, rows_of(node.output.tensor))


@lowers(o.columns, "cpu")
def _columns(x: CpuLowering, node: Node) -> None:
    source = Rows(width(node.inputs[0]), node.integer("start"))
    pointers = {**x.named(node, "a"), "y": x.result(node.output)[""]}
    kernel = pointwise("copy", width(node.output), x.isa, a=source)
    x.row_call(node, kernel, pointers, rows_of(node.output.tensor))
