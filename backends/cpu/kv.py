"""The paged KV cache: how its pages lie in memory, and appending to it.

A page holds the keys and values of `page` consecutive tokens of one sequence for one layer. Keys are transposed,
[page][kv_head][d][token], so that attention scores of many tokens lie in the lanes of one vector; values are plain,
[page][kv_head][token][d]. A slot, page * tokens per page + offset, names a token's place.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from .emit import let, load, stack, store, vector
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .rows import Rows, each_item
from .tiles import kernel_name, spans
from .vmath import clamp

F16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Pages:
    """The shape of a layer's pages. `dtype` of what is stored: float32 or float16."""

    kv_heads: int
    d: int
    tokens: int  # per page
    dtype: str

    def __str__(self) -> str:
        return f"{self.kv_heads}_{self.d}_{self.tokens}_{self.dtype}"

    def base(self, page: Expr, head: Expr) -> Expr:
        """The element index where `head` begins in `page`: the same for keys and for values."""
        return let((page.astype("int64") * self.kv_heads + head) * (self.d * self.tokens))

    def place(self, slot: Expr, head: Expr) -> tuple[Expr, Expr]:
        """Element indices of `slot`'s first key and first value; the next key is `tokens` further, the next value 1."""
        base, offset = self.base(slot // self.tokens, head), slot % self.tokens
        return let(base + offset), let(base + offset * self.d)

    def stored(self, value: Expr, lanes: int) -> Expr:
        """`value` as it is stored. What float16 cannot hold becomes its largest number, so that a row never reads the
        infinity of a later one (0 * infinity is NaN)."""
        if self.dtype == "float32":
            return value
        return clamp(value, F16_MAX, lanes).astype(vector("float16", lanes))


class Appender:
    """Writes one key or value vector, given piece by piece."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.column = stack(pages.d, pages.dtype)

    def key_piece(self, i: int, lanes: int, value: Expr) -> None:
        """Elements i .. i + lanes of the key."""
        store(self.column, i, self.pages.stored(value, lanes), lanes)

    def key_done(self, buffer: Expr, place: Expr) -> None:
        with T.serial(0, self.pages.d) as i:
            T.buffer_store(buffer, self.column[i], [place + i * self.pages.tokens])

    def value_piece(self, buffer: Expr, place: Expr, i: int, lanes: int, value: Expr) -> None:
        store(buffer, place + i, self.pages.stored(value, lanes), lanes)


def kv_append(kv_heads: int, d: int, page: int, kv_dtype: str, isa: Isa, *, k: Rows, v: Rows) -> Kernel:
    """Writes k and v f32 [rows, kv_heads * d], `k` and `v` saying where their rows lie, to `slots` i32[rows].

    Pointers k, v, slots, k_pages, v_pages (of the layer); k and v may be the same memory. Sizes rows. An item is a row
    and a head.
    """
    pages = Pages(kv_heads, d, page, kv_dtype)

    def body(f: Frame) -> None:
        appender = Appender(pages)

        def append(head: Expr, row: Expr) -> None:
            key, value = pages.place(let(f["slots"][row]), head)
            k_start, v_start = let(k.start(row, f) + head * d), let(v.start(row, f) + head * d)
            for i, lanes in spans(d, isa.lanes):
                appender.key_piece(i, lanes, load(f["k"], k_start + i, lanes))
                appender.value_piece(f["v_pages"], value, i, lanes, load(f["v"], v_start + i, lanes))
            appender.key_done(f["k_pages"], key)

        each_item(f, f["rows"], append)

    return Kernel(
        kernel_name("kv_append", pages, k, v),
        (
            Pointer("k", "float32"),
            Pointer("v", "float32"),
            Pointer("slots", "int32"),
            Pointer("k_pages", kv_dtype),
            Pointer("v_pages", kv_dtype),
        ),
        ("rows",),
        lambda sizes: sizes["rows"] * kv_heads,
        body,
    )
