"""Rows of a packed weight as float32: token embeddings, read from the layout that the output head multiplies with."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from mlc.ir.types import Format

from ..layouts import Layout
from .emit import const, let, load, splat, store, widen
from .group_weights import load_scale, scale_pointers, zero_point
from .kernel import Expr, Frame, Kernel, Pointer
from .linear_float import DTYPES


def embed(k: int, format: Format | str, layout: Layout) -> Kernel:
    """y f32[rows, k] = rows `ids` i32[rows] of w[n, k], in `format` (f32, f16, bf16, or quantized) and `layout`.

    Pointers: ids; w and, quantized, w_scale and perhaps w_bias; y. `ids` are not checked.
    """
    pointers = [Pointer("ids", "int32")]
    if isinstance(format, Format):
        pointers += [Pointer("w", "uint8" if layout.bytes != "s" else "int8"), *scale_pointers(format)]
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
    stored = format.group * format.bits // 32  # fours of bytes to a group
    zero = splat(const(zero_point(format, layout.bytes)), 4)
    with T.serial(0, k // format.group) as number:
        group = let(block * (k // format.group) + number)
        scale, bias = (
            let(splat(load_scale(f, part, format, layout.rows, group, lane, 1), 4)) if part in format.parts else None
            for part in ("scale", "bias")
        )
        start = let(out + number * format.group)

        def write(at: Expr, stored: Expr) -> None:
            value = (stored - zero).astype("float32x4") * scale
            store(f["y"], at, value if bias is None else value + bias, 4)

        def four(number: Expr) -> Expr:
            at = ((group * stored + number) * layout.rows + lane) * 4
            return let(load(f["w"], at, 4).astype("int32x4"))

        if format.bits == 6:
            with T.serial(0, stored // 3) as cell:
                _sixteen(write, start + cell * 16, [four(cell * 3 + i) for i in range(3)])
            return
        with T.serial(0, stored) as quad:
            numbers = four(quad)
            if format.bits == 4:
                write(start + quad * 4, numbers & splat(const(15), 4))
                write(start + (quad * 4 + format.group // 2), numbers >> splat(const(4), 4))
            else:
                write(start + quad * 4, numbers)


def _sixteen(write: Callable[[Expr, Expr], None], at: Expr, fours: list[Expr]) -> None:
    """Write 16 numbers of 6 bits from `at` on, kept in three times four bytes."""
    rest = const(0)
    for i, numbers in enumerate(fours):
        write(at + i * 4, numbers & splat(const(63), 4))
        rest = (numbers >> splat(const(6), 4) << splat(const(2 * i), 4)) | (rest if i else splat(rest, 4))
    write(at + 12, let(rest))
