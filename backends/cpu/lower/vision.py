"""From pixels to rows, and attention within them."""

from __future__ import annotations

from mlc.ir import Node
from mlc.ir import ops as o

from ...lowering import fixed, lowers, size_of
from ..encoder import conv2d, full_attention, permute
from .context import CpuLowering


@lowers(o.conv2d, "cpu")
def _conv2d(x: CpuLowering, node: Node) -> None:
    batch, c, h, w = node.inputs[0].tensor.shape
    channels, _, kh, kw = (fixed(d) for d in node.inputs[1].tensor.shape)
    kernel = conv2d(
        (fixed(c), fixed(h), fixed(w)),
        channels,
        (kh, kw),
        node.integer("stride"),
        node.integer("padding"),
        x.isa,
        bias=len(node.inputs) == 3,
    )
    pointers = {**x.named(node, "x", "w", "bias"), "y": x.result(node.output)[""]}
    x.call("conv2d", kernel, pointers, {"batch": size_of(batch)})


@lowers(o.patches_to_rows, "cpu")
def _patches_to_rows(x: CpuLowering, node: Node) -> None:
    batch, channels, height, width = node.inputs[0].tensor.shape
    kernel = permute((fixed(channels), fixed(height) * fixed(width)), (1, 0), x.isa)
    pointers = {**x.named(node, "x"), "y": x.result(node.output)[""]}
    x.row_call(node, kernel, pointers, size_of(batch))


@lowers(o.full_attention, "cpu")
def _full_attention(x: CpuLowering, node: Node) -> None:
    batch, period, heads, d = node.output.tensor.shape
    kernel = full_attention(fixed(heads), fixed(d), node.number("scale"), x.isa, lengths=len(node.inputs) == 4)
    pointers = {**x.named(node, "q", "k", "v", "lengths"), "out": x.result(node.output)[""]}
    x.call("full_attention", kernel, pointers, {"batch": size_of(batch), "period": size_of(period)})
