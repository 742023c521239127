"""Ops that move rows."""

from __future__ import annotations

from mlc.ir import Node
from mlc.ir import ops as o

from ...lowering import fixed, lowers, size_of
from ..pointwise import mean_rows, prepend_row, take_rows, take_token
from .context import TIR, CpuLowering, width


@lowers(o.split_heads, "cpu")
@lowers(o.merge_heads, "cpu")
def _same_memory(x: CpuLowering, node: Node) -> None:
    x.place(node.output, x.parts(node.inputs[0]))


@lowers(o.take_rows, "cpu")
def _take_rows(x: CpuLowering, node: Node) -> None:
    t = node.inputs[0].tensor
    row = 1
    for dim in t.shape[1:]:
        row *= fixed(dim)
    pointers = {**x.named(node, "x", "ids"), "y": x.result(node.output)[""]}
    x.row_call(node, take_rows(row, TIR[t.dtype], x.isa), pointers, size_of(node.output.tensor.shape[0]))


@lowers(o.take_token, "cpu")
def _take_token(x: CpuLowering, node: Node) -> None:
    batch, period, _ = node.inputs[0].tensor.shape
    kernel = take_token(width(node.output), node.integer("index"), x.isa)
    pointers = {**x.named(node, "x"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, size_of(batch), period=size_of(period))


@lowers(o.prepend_row, "cpu")
def _prepend_row(x: CpuLowering, node: Node) -> None:
    batch, period, _ = node.output.tensor.shape
    pointers = {**x.named(node, "x", "row"), "y": x.result(node.output)[""]}
    x.row_call(node, prepend_row(width(node.output), x.isa), pointers, size_of(batch, period), period=size_of(period))


@lowers(o.mean_rows, "cpu")
def _mean_rows(x: CpuLowering, node: Node) -> None:
    batch, period, _ = node.inputs[0].tensor.shape
    kernel = mean_rows(width(node.output), x.isa, lengths=len(node.inputs) == 2)
    pointers = {**x.named(node, "x", "lengths"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, size_of(batch), period=size_of(period))
