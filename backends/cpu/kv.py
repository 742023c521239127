"""The paged KV cache: how its pages lie in memory, and appending to it.

A page holds the keys and values of `page` consecutive tokens of one sequence for one layer. Both are cut into blocks
that attention reads from end to end, a cache line after the other. Keys are transposed, [page][kv_head][block of
tokens][d][token], so that scores of many tokens lie in the lanes of one vector; values are
[page][kv_head][block of d][token][d]. A slot, page * tokens per page + offset, names a token's place.
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
BLOCK = 32  # tokens of a key block, columns of a value block, where that divides the page or d


@dataclass(frozen=True, slots=True)
class Pages:
    """The shape of a layer's pages. `dtype` of what is stored: float32 or float16."""

    kv_heads: int
    d: int
    tokens: int  # per page
    dtype: str

    def __str__(self) -> str:
        return f"{self.kv_heads}_{self.d}_{self.tokens}_{self.dtype}"

    @property
    def key_block(self) -> int:
        """Tokens."""
        return BLOCK if self.tokens % BLOCK == 0 else self.tokens

    @property
    def value_block(self) -> int:
        """Columns."""
        return BLOCK if self.d % BLOCK == 0 else self.d

    def base(self, page: Expr, head: Expr) -> Expr:
        """The element index where `head` begins in `page`: the same for keys and for values."""
        return let((page.astype("int64") * self.kv_heads + head) * (self.d * self.tokens))

    def key(self, slot: Expr, head: Expr) -> Expr:
        """The element index of the first column of a key; the next ones are each `key_block` further."""
        token = slot % self.tokens
        block, offset = token // self.key_block, token % self.key_block
        return let(self.base(slot // self.tokens, head) + block * (self.d * self.key_block) + offset)

    def value(self, slot: Expr, head: Expr) -> Expr:
        """The element index of the first column of a value; block i begins `i * value_block * tokens` further."""
        return let(self.base(slot // self.tokens, head) + slot % self.tokens * self.value_block)

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
            T.buffer_store(buffer, self.column[i], [place + i * self.pages.key_block])

    def value_piece(self, buffer: Expr, place: Expr, i: int, lanes: int, value: Expr) -> None:
        """Elements i .. i + lanes of the value."""
        block, column = divmod(i, self.pages.value_block)
        at = place + (block * self.pages.value_block * self.pages.tokens + column)
        store(buffer, at, self.pages.stored(value, lanes), lanes)


def kv_append(kv_heads: int, d: int, page: int, kv_dtype: str, isa: Isa, *, k: Rows, v: Rows) -> Kernel:
    """Writes k and v f32 [rows, kv_heads * d], `k` and `v` saying where their rows lie, to `slots` i32[rows].

    Pointers k, v, slots, k_pages, v_pages (of the layer); k and v may be the same memory. Sizes rows. An item is a row
    and a head.
    """
    pages = Pages(kv_heads, d, page, kv_dtype)

    def body(f: Frame) -> None:
        appender = Appender(pages)

        def append(head: Expr, row: Expr) -> None:
            slot = let(f["slots"][row])
            key, value = pages.key(slot, head), pages.value(slot, head)
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
