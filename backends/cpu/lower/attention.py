"""Rotation, the paged cache, and attention over it."""

from __future__ import annotations

from mlc.ir import Node, Value
from mlc.ir import ops as o

from ...lowering import fixed, lowers, size_of
from ...program import Guard, KvLayer, Ref
from ..attend import Partial
from ..attention import merge_partials, paged_attention
from ..kv import Pages, kv_append
from ..rope import Rotation, qkv_finish, rope
from ..rows import Rows
from .context import MANY, PAGE, TILE, TIR, CpuLowering, width


def _rotation_tables(x: CpuLowering, frequencies: Value) -> dict[str, Ref]:
    name = x.ref(frequencies).name
    return {"cos": Ref("rope", f"cos.{name}"), "sin": Ref("rope", f"sin.{name}")}


def _pages(x: CpuLowering, layer: int, kv_heads: int, d: int) -> dict[str, Ref]:
    pages = Pages(kv_heads, d, PAGE, TIR[x.kv_dtype])
    x.kv_layers[layer] = KvLayer(layer, kv_heads, pages.stride * pages.item * kv_heads)
    return {"k_pages": Ref("kv", f"k.{layer}"), "v_pages": Ref("kv", f"v.{layer}")}


@lowers(o.rope, "cpu")
def _rope(x: CpuLowering, node: Node) -> None:
    tokens, heads, d = node.output.tensor.shape
    pointers = {**x.named(node, "x", "positions"), "y": x.result(node.output)[""]}
    pointers |= _rotation_tables(x, node.inputs[2])
    x.row_call(node, rope(fixed(heads), Rotation(fixed(d), fixed(d)), x.isa), pointers, size_of(tokens))


@lowers(o.kv_append, "cpu")
def _kv_append(x: CpuLowering, node: Node) -> None:
    k, v = node.inputs[1:]
    heads, d = (fixed(dim) for dim in k.tensor.shape[1:])
    row = Rows(heads * d)
    kernel = kv_append(heads, d, PAGE, TIR[x.kv_dtype], x.isa, k=row, v=row)
    pointers = {"k": x.ref(k), "v": x.ref(v), "slots": Ref("step", "slots")}
    pointers |= _pages(x, node.integer("layer"), heads, d)
    x.row_call(node, kernel, pointers, size_of(k.tensor.shape[0]))


@lowers(o.qkv_rope_append, "cpu")
def _qkv_rope_append(x: CpuLowering, node: Node) -> None:
    _, qkv, positions, frequencies, *norms = node.inputs
    heads, kv_heads = node.integer("heads"), node.integer("kv_heads")
    d = width(qkv) // (heads + 2 * kv_heads)
    rotation = Rotation(d, d, node.number("eps") if norms else None)
    kernel = qkv_finish(heads, kv_heads, rotation, PAGE, TIR[x.kv_dtype], x.isa)
    pointers = {"qkv": x.ref(qkv), "positions": x.ref(positions), "slots": Ref("step", "slots")}
    pointers |= {name: x.ref(v) for name, v in zip(("q_norm", "k_norm"), norms, strict=False)}
    pointers |= _rotation_tables(x, frequencies) | _pages(x, node.integer("layer"), kv_heads, d)
    pointers["q"] = x.result(node.outputs[0])[""]
    x.row_call(node, kernel, pointers, size_of(qkv.tensor.shape[0]))


@lowers(o.attention, "cpu")
def _attention(x: CpuLowering, node: Node) -> None:
    heads, d = (fixed(dim) for dim in node.output.tensor.shape[1:])
    kv_heads = node.integer("kv_heads")
    window = node.integer("window")
    out = x.result(node.output)[""]
    step = {name: Ref("step", name) for name in ("tables", "members", "partials")}
    pointers = {"q": x.ref(node.inputs[0]), "out": out, **step, **_pages(x, node.integer("layer"), kv_heads, d)}
    x.tile_rows = min(x.tile_rows, max(1, TILE // (heads // kv_heads)))
    for name, tile_rows in (("single_tiles", 1), ("tiles", x.tile_rows)):
        kernel = paged_attention(
            heads, kv_heads, d, PAGE, TIR[x.kv_dtype], tile_rows, node.number("scale"), x.isa, window=window
        )
        sizes = {"tile_count": (name,), "table_stride": ("table_stride",)}
        x.call("attention", kernel, {**pointers, "tiles": Ref("step", name)}, sizes, Guard((name,), 1, MANY))
    merge = merge_partials(heads, d, PAGE, x.isa, window=window)
    pointers = {"members": step["members"], "partials": step["partials"], "out": out}
    x.call("attention", merge, pointers, {"merge_count": ("merges",)}, Guard(("merges",), 1, MANY))
    x.partial = max(x.partial, heads * Partial.size(d) * 4)
