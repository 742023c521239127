"""Rows of a packed weight as float32: token embeddings, read from the layout that the output head multiplies with."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from mlc.ir.types import Format

from ..layouts import Layout
from .emit import const, let, load, splat, store, widen
from .group_weights import FLOATS, zero_point
from .kernel import Expr, Frame, Kernel, Pointer
from .linear_float import DTYPES


def embed(k: int, format: Format | str, layout: Layout) -> Kernel:
    """y f32[rows, k] = rows `ids` i32[rows] of w[n, k], in `format` (f32, f16, bf16, or quantized) and `layout`.

    Pointers: ids; w and, quantized, w_scale and perhaps w_bias; y. `ids` are not checked.
    """
    pointers = [Pointer("ids", "int32")]
    if isinstance(format, Format):
        pointers += [Pointer("w", "uint8" if layout.bytes != "s" else "int8"), Pointer("w_scale", FLOATS[format.scale])]
        if not format.symmetric:
            pointers.append(Pointer("w_bias", FLOATS[format.scale]))
    else:
        pointers.append(Pointer("w", DTYPES[format]))
    pointers.append(Pointer("y", "float32"))

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            token = let(f["ids"][row])
            block, lane = let((token // layout.rows).astype("int64")), let(token % layout.rows)
            out = let(row.astype("int64") * k)
            if isinstance(format, Format):
                _quantized(f, k, format, layout, block, lane, out)
            else:
                with T.serial(0, k) as i:
                    number = f["w"][(block * k + i) * layout.rows + lane]
                    store(f["y"], out + i, widen(number, DTYPES[format], 1), 1)

    return Kernel(f"embed_{format}_{layout}_k{k}", tuple(pointers), ("rows",), lambda sizes: sizes["rows"], body)


def _quantized(f: Frame, k: int, format: Format, layout: Layout, block: Expr, lane: Expr, out: Expr) -> None:
    nibbles = format.bits == 4
    quads = format.group // (8 if nibbles else 4)  # groups of four bytes in a group
    floats = FLOATS[format.scale]
    zero = splat(const(zero_point(format, layout.bytes)), 4)
    with T.serial(0, k // format.group) as number:
        group = let(block * (k // format.group) + number)
        scale = let(splat(widen(f["w_scale"][group * layout.rows + lane], floats, 1), 4))
        bias = None if format.symmetric else let(splat(widen(f["w_bias"][group * layout.rows + lane], floats, 1), 4))
        start = let(out + number * format.group)

        def write(at: Expr, stored: Expr) -> None:
            value = (stored - zero).astype("float32x4") * scale
            store(f["y"], at, value if bias is None else value + bias, 4)

        with T.serial(0, quads) as quad:
            four = load(f["w"], ((group * quads + quad) * layout.rows + lane) * 4, 4)
            stored = let(four.astype("int32x4"))
            if nibbles:
                write(start + quad * 4, stored & splat(const(15), 4))
                write(start + (quad * 4 + format.group // 2), stored >> splat(const(4), 4))
            else:
                write(start + quad * 4, stored)
