"""How each op becomes kernel calls on a CPU.

Shapes are constants of the kernels, token counts are run-time sizes. A product has three kernels side by side, for one
row, for a few and for many; guards let exactly one of them run in a step.
"""

from __future__ import annotations

from typing import Any

from mlc.ir import Node, Tensor, Value
from mlc.ir import ops as o

from ..layouts import layout_for, parse_layout
from ..lowering import Lowering, fixed, lowers, rows_of, size_of
from ..program import Guard, KvLayer, Ref, Size
from .attention import paged_attention
from .embed import embed
from .isa import Isa
from .kernel import Kernel
from .kv import kv_append
from .linear_float import linear_float
from .linear_quantized import linear_quantized
from .norm import add_rms_norm, layer_norm, rms_norm
from .quantize_rows import quantize_rows
from .rope import Rotation, qkv_finish, rope
from .rows import Rows

PAGE = 32  # tokens of a KV page
TILE_ROWS = 16  # rows that the attention kernel for many rows takes together
_MANY = (1 << 31) - 1
FAMILIES = (("vector", 1, 1), ("small", 2, 16), ("matrix", 17, _MANY))  # rows of x that each family is for
_TIR = {"f32": "float32", "f16": "float16", "bf16": "uint16", "i32": "int32"}


class CpuLowering(Lowering):
    """A graph being lowered for one instruction set."""

    def __init__(self, graph: Any, isa: Isa) -> None:
        super().__init__(graph, "cpu")
        self.isa = isa

    def row_call(self, node: Node, kernel: Kernel, pointers: dict[str, Ref], rows: Size) -> None:
        """A call whose only size is the number of rows."""
        self.call(node.op.name, kernel, pointers, {"rows": rows})


def _context(x: Lowering) -> CpuLowering:
    assert isinstance(x, CpuLowering)
    return x


def _width(value: Value) -> int:
    return fixed(value.tensor.shape[-1])


def _period(t: Tensor) -> Size:
    return size_of(*t.shape[:-1])


@lowers(o.constant, "cpu")
def _constant(x: Lowering, node: Node) -> None:
    t, name = node.output.tensor, str(node.attrs["name"])
    if t.format:
        parts = ["q", "scale"] if t.format.symmetric else ["q", "scale", "bias"]
        x.place(node.output, {part: Ref("weight", f"{name}.{part}") for part in parts})
    elif t.layout:
        x.place(node.output, {"w": Ref("weight", f"{name}.w")})
    else:
        x.place(node.output, {"": Ref("weight", name)})


@lowers(o.split_heads, "cpu")
@lowers(o.merge_heads, "cpu")
def _same_memory(x: Lowering, node: Node) -> None:
    x.place(node.output, x.parts(node.inputs[0]))


@lowers(o.embed, "cpu")
def _embed(x: Lowering, node: Node) -> None:
    c = _context(x)
    table, ids = node.inputs
    t = table.tensor
    kernel = embed(fixed(t.shape[1]), t.format or t.dtype, parse_layout(t.layout))
    pointers = {_weight_pointer(part): ref for part, ref in x.parts(table).items()}
    pointers |= {"ids": x.ref(ids), "y": x.result(node.output)[""]}
    c.row_call(node, kernel, pointers, size_of(*ids.tensor.shape))


def _weight_pointer(part: str) -> str:
    """The kernels' name for a part of a weight."""
    return {"q": "w", "w": "w", "scale": "w_scale", "bias": "w_bias"}[part]


@lowers(o.quantize_rows, "cpu")
def _quantize_rows(x: Lowering, node: Node) -> None:
    c = _context(x)
    kernel = quantize_rows(_width(node.inputs[0]), int(str(node.attrs["group"])), c.isa)
    pointers = {"x": x.ref(node.inputs[0]), **x.result(node.output)}
    c.row_call(node, kernel, pointers, rows_of(node.output.tensor))


@lowers(o.linear, "cpu")
def _linear(x: Lowering, node: Node) -> None:
    c = _context(x)
    operand, w = node.inputs[:2]
    n, k = (fixed(d) for d in w.tensor.shape)
    biased = len(node.inputs) == 3
    rows = rows_of(operand.tensor)
    pointers = {_weight_pointer(part): ref for part, ref in x.parts(w).items()}
    if biased:
        pointers["bias"] = x.ref(node.inputs[2])
    pointers["y"] = x.result(node.output)[""]
    given = x.parts(operand)
    if w.tensor.format is not None:
        pointers |= {"x": given["q"], "x_scale": given["scale"], "x_sum": given["sum"]}
    else:
        pointers["x"] = given[""]
    for family, low, high in FAMILIES:
        kernel: Kernel
        if w.tensor.format is not None:
            kernel = linear_quantized(n, k, w.tensor.format, c.isa, family, bias=biased)
        else:
            kernel = linear_float(n, k, w.tensor.dtype, c.isa, family, bias=biased)
        used = {p.name: pointers[p.name] for p in kernel.pointers if p.name != "scratch"}
        x.call("linear", kernel, used, {"rows": rows}, Guard(rows, low, high))


@lowers(o.rms_norm, "cpu")
def _rms_norm(x: Lowering, node: Node) -> None:
    c = _context(x)
    kernel = rms_norm(_width(node.output), float(str(node.attrs["eps"])), c.isa)
    pointers = {"x": x.ref(node.inputs[0]), "weight": x.ref(node.inputs[1]), "y": x.result(node.output)[""]}
    c.row_call(node, kernel, pointers, rows_of(node.output.tensor))


@lowers(o.add_rms_norm, "cpu")
def _add_rms_norm(x: Lowering, node: Node) -> None:
    c = _context(x)
    y, total = node.outputs
    kernel = add_rms_norm(_width(y), float(str(node.attrs["eps"])), c.isa)
    names = ("x", "residual", "weight")
    pointers = {name: x.ref(v) for name, v in zip(names, node.inputs, strict=True)}
    pointers |= {"y": x.result(y)[""], "total": x.result(total)[""]}
    c.row_call(node, kernel, pointers, rows_of(y.tensor))


@lowers(o.layer_norm, "cpu")
def _layer_norm(x: Lowering, node: Node) -> None:
    c = _context(x)
    kernel = layer_norm(_width(node.output), float(str(node.attrs["eps"])), c.isa)
    names = ("x", "weight", "bias")
    pointers = {name: x.ref(v) for name, v in zip(names, node.inputs, strict=True)}
    pointers["y"] = x.result(node.output)[""]
    c.row_call(node, kernel, pointers, rows_of(node.output.tensor))


def _rotation_tables(x: Lowering, frequencies: Value) -> dict[str, Ref]:
    name = x.ref(frequencies).name
    return {"cos": Ref("rope", f"cos.{name}"), "sin": Ref("rope", f"sin.{name}")}


@lowers(o.rope, "cpu")
def _rope(x: Lowering, node: Node) -> None:
    c = _context(x)
    heads, d = (fixed(dim) for dim in node.output.tensor.shape[1:])
    pointers = {"x": x.ref(node.inputs[0]), "positions": x.ref(node.inputs[1]), "y": x.result(node.output)[""]}
    pointers |= _rotation_tables(x, node.inputs[2])
    c.row_call(node, rope(heads, Rotation(d, d), c.isa), pointers, size_of(node.output.tensor.shape[0]))


def _pages(x: Lowering, layer: int, kv_heads: int, d: int) -> dict[str, Ref]:
    x.kv_layers[layer] = KvLayer(layer, kv_heads, d)
    return {"k_pages": Ref("kv", f"k.{layer}"), "v_pages": Ref("kv", f"v.{layer}")}


@lowers(o.kv_append, "cpu")
def _kv_append(x: Lowering, node: Node) -> None:
    c = _context(x)
    k, v = node.inputs[1:]
    heads, d = (fixed(dim) for dim in k.tensor.shape[1:])
    row = Rows(heads * d)
    kernel = kv_append(heads, d, PAGE, _TIR[x.kv_dtype], c.isa, k=row, v=row)
    pointers = {"k": x.ref(k), "v": x.ref(v), "slots": Ref("step", "slots")}
    pointers |= _pages(x, int(str(node.attrs["layer"])), heads, d)
    c.row_call(node, kernel, pointers, size_of(k.tensor.shape[0]))


@lowers(o.qkv_rope_append, "cpu")
def _qkv_rope_append(x: Lowering, node: Node) -> None:
    c = _context(x)
    _, qkv, positions, frequencies, *norms = node.inputs
    heads, kv_heads, layer = (int(str(node.attrs[name])) for name in ("heads", "kv_heads", "layer"))
    d = _width(qkv) // (heads + 2 * kv_heads)
    rotation = Rotation(d, d, float(str(node.attrs["eps"])) if norms else None)
    kernel = qkv_finish(heads, kv_heads, rotation, PAGE, _TIR[x.kv_dtype], c.isa)
    pointers = {"qkv": x.ref(qkv), "positions": x.ref(positions), "slots": Ref("step", "slots")}
    pointers |= {name: x.ref(v) for name, v in zip(("q_norm", "k_norm"), norms, strict=False)}
    pointers |= _rotation_tables(x, frequencies) | _pages(x, layer, kv_heads, d)
    pointers["q"] = x.result(node.outputs[0])[""]
    c.row_call(node, kernel, pointers, size_of(qkv.tensor.shape[0]))


@lowers(o.attention, "cpu")
def _attention(x: Lowering, node: Node) -> None:
    c = _context(x)
    heads, d = (fixed(dim) for dim in node.output.tensor.shape[1:])
    layer, kv_heads, window = (int(str(node.attrs[name])) for name in ("layer", "kv_heads", "window"))
    scale = float(str(node.attrs["scale"]))
    pointers = {"q": x.ref(node.inputs[0]), "out": x.result(node.output)[""]}
    pointers |= {"tables": Ref("step", "tables"), "tiles": Ref("step", "tiles")} | _pages(x, layer, kv_heads, d)
    sizes = {"tile_count": ("tiles",), "table_stride": ("table_stride",)}
    for tile_rows, low, high in ((1, 1, 1), (TILE_ROWS, 2, _MANY)):
        kernel = paged_attention(heads, kv_heads, d, PAGE, _TIR[x.kv_dtype], tile_rows, scale, c.isa, window=window)
        x.call("attention", kernel, pointers, sizes, Guard(("tile_rows",), low, high))


def layout_of(t: Tensor, isa: Isa) -> str:
    """The layout in which this target's kernels read a weight matrix."""
    return str(layout_for(isa, t.format))
