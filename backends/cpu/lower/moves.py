"""Ops that move rows."""

from __future__ import annotations

import math

from mlc.ir import Dim, Node
from mlc.ir import ops as o

from ...lowering import fixed, lowers, size_of
from ..pointwise import copy_rows, mean_rows, prepend_row, take_rows, take_token
from .context import TIR, CpuLowering, width


@lowers(o.split_heads, "cpu")
@lowers(o.merge_heads, "cpu")
def _same_memory(x: CpuLowering, node: Node) -> None:
    x.place(node.output, x.parts(node.inputs[0]))


@lowers(o.take_rows, "cpu")
def _take_rows(x: CpuLowering, node: Node) -> None:
    t = node.inputs[0].tensor
    row = math.prod(fixed(dim) for dim in t.shape[1:])
    pointers = {**x.named(node, "x", "ids"), "y": x.result(node.output)[""]}
    x.row_call(node, take_rows(row, TIR[t.dtype], x.isa), pointers, size_of(node.output.tensor.shape[0]))


@lowers(o.concat, "cpu")
def _concat(x: CpuLowering, node: Node) -> None:
    """Along the first axis: each operand's rows go behind those of the operands before it."""
    y = x.result(node.output)[""]
    before: Dim = 0
    for value in node.inputs:
        t = value.tensor
        kernel = copy_rows(math.prod(fixed(d) for d in t.shape[1:]), TIR[t.dtype], x.isa)
        sizes = {"rows": size_of(t.shape[0]), "start": size_of(0), "to": size_of(before)}
        x.call("concat", kernel, {"x": x.ref(value), "y": y}, sizes)
        before = before + t.shape[0]


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
