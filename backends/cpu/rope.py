"""Rotation by position, the norm of heads before it, and what lies between the q/k/v product and attention in one pass.

The cosines and sines of every position come as tables f32 [context, rotary / 2], so scaled variants of the rotation are
other tables. The two halves of the rotated columns form the pairs: (i, i + rotary / 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .emit import fma, let, load, store, when
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .kv import Appender, Pages
from .norm import Piece, rms_factor, weigh
from .rows import Rows, each_item
from .tiles import kernel_name, spans

Write = Callable[[int, int, Expr], None]  # (column, lanes, vector)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What happens to a head of `d` columns: an RMS norm where `eps` is given, then the first `rotary` are rotated."""

    d: int
    rotary: int
    eps: float | None = None
    one_plus: bool = False  # the norm multiplies by 1 + weight

    def __str__(self) -> str:
        return f"{self.d}_{self.rotary}_{self.eps}_{self.one_plus}"

    def emit(self, read: Piece, write: Write, tables: tuple[Expr, Expr], at: Expr, weight: Expr, isa: Isa) -> None:
        """Code for one head; `at` is the table index of its position, `weight` the norm's weight or None."""
        if self.eps is None:
            normed = read
        else:
            factor = rms_factor(read, self.d, self.eps, isa)

            def normed(column: Expr, lanes: int) -> Expr:
                w = load(weight, column, lanes)
                return weigh(read(column, lanes), factor, w, lanes, self.one_plus)

        half = self.rotary // 2
        cos, sin = tables
        for i, lanes in spans(half, isa.lanes):
            a, b = let(normed(i, lanes)), let(normed(half + i, lanes))
            c, s = let(load(cos, at + i, lanes)), let(load(sin, at + i, lanes))
            # One product of each pair is rounded by itself; written as fma so that every kernel rounds the same one.
            write(i, lanes, fma(a, c, -let(b * s)))
            write(half + i, lanes, fma(b, c, let(a * s)))
        for i, lanes in spans(self.d - self.rotary, isa.lanes):
            write(self.rotary + i, lanes, normed(self.rotary + i, lanes))

    def pointers(self, *norms: str) -> tuple[Pointer, ...]:
        weights = () if self.eps is None else norms
        return Pointer("positions", "int32"), *(Pointer(name, "float32") for name in ("cos", "sin", *weights))


def rope(heads: int, rotation: Rotation, isa: Isa, *, x: Rows | None = None, y: Rows | None = None) -> Kernel:
    """Rotates each head of x f32 [rows, heads * d] into y, which may be x. Rows are contiguous unless said otherwise.

    Pointers x, positions i32[rows], cos, sin, weight f32[d] (of the norm, where there is one), y. Sizes rows. An item
    is a row and a head.
    """
    d = rotation.d
    x, y = x or Rows(heads * d), y or Rows(heads * d)

    def body(f: Frame) -> None:
        def rotate(row: Expr, head: Expr) -> None:
            source, target = let(x.start(row, f) + head * d), let(y.start(row, f) + head * d)
            at = let(f["positions"][row] * (rotation.rotary // 2))
            weight = None if rotation.eps is None else f["weight"]
            rotation.emit(
                lambda i, lanes: load(f["x"], source + i, lanes),
                lambda i, lanes, value: store(f["y"], target + i, value, lanes),
                (f["cos"], f["sin"]),
                at,
                weight,
                isa,
            )

        each_item(f, heads, rotate)

    return Kernel(
        kernel_name("rope", heads, rotation, x, y),
        (Pointer("x", "float32"), *rotation.pointers("weight"), Pointer("y", "float32")),
        ("rows",),
        lambda sizes: sizes["rows"] * heads,
        body,
    )


def qkv_finish(heads: int, kv_heads: int, rotation: Rotation, page: int, kv_dtype: str, isa: Isa) -> Kernel:
    """Rotates q and k (after their norms), writes q f32 [rows, heads * d], and appends k and v to the pages.

    Bit by bit what `rope` and `kv_append` do on the columns of qkv f32 [rows, (heads + 2 kv_heads) * d]. Pointers qkv,
    positions i32[rows], cos, sin, q_norm and k_norm f32[d] (where there is a norm), slots i32[rows], q, k_pages,
    v_pages (of the layer). Sizes rows. An item is a row and a head of q, k or v.
    """
    d = rotation.d
    pages = Pages(kv_heads, d, page, kv_dtype)
    merged = Rows((heads + 2 * kv_heads) * d)

    def body(f: Frame) -> None:
        appender = Appender(pages, isa)
        tables = f["cos"], f["sin"]

        def finish(head: Expr, row: Expr) -> None:
            source = let(merged.start(row, f) + head * d)
            at = let(f["positions"][row] * (rotation.rotary // 2))

            def read(i: Expr, lanes: int) -> Expr:
                return load(f["qkv"], source + i, lanes)

            def query() -> None:
                target = let((row.astype("int64") * heads + head) * d)
                norm = None if rotation.eps is None else f["q_norm"]
                rotation.emit(read, lambda i, n, x: store(f["q"], target + i, x, n), tables, at, norm, isa)

            def key() -> None:
                norm = None if rotation.eps is None else f["k_norm"]
                rotation.emit(read, appender.key_piece, tables, at, norm, isa)
                appender.key_done(f["k_pages"], let(f["slots"][row]), head - heads)

            def value() -> None:
                slot, number = let(f["slots"][row]), head - (heads + kv_heads)
                for i, lanes in spans(d, isa.lanes):
                    appender.value_piece(f["v_pages"], slot, number, i, lanes, read(i, lanes))
                appender.value_done(f["v_pages"], slot, number)

            when(head < heads, query, lambda: when(head < heads + kv_heads, key, value))

        each_item(f, f["rows"], finish)

    return Kernel(
        kernel_name("qkv_finish", heads, kv_heads, rotation, page, kv_dtype),
        (
            Pointer("qkv", "float32"),
            *rotation.pointers("q_norm", "k_norm"),
            Pointer("slots", "int32"),
            Pointer("q", "float32"),
            Pointer("k_pages", kv_dtype),
            Pointer("v_pages", kv_dtype),
        ),
        ("rows",),
        lambda sizes: sizes["rows"] * (heads + 2 * kv_heads),
        body,
    )
