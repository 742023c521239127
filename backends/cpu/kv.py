"""The paged KV cache: how its pages lie in memory, and appending to it.

A page holds the keys and values of `page` consecutive tokens of one sequence for one layer. Both are cut into blocks
that attention reads from end to end, a cache line after the other. Keys are transposed, [page][kv_head][block of
tokens][d][token], so that scores of many tokens lie in the lanes of one vector; values are
[page][kv_head][block of d][token][d]. A slot, page * tokens per page + offset, names a token's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, bits, const, f32, let, load, reduce_add_int, rint, splat, stack, store, vector, widen
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .rows import Rows, each_item
from .tiles import fold, kernel_name, spans
from .vmath import clamp

F16_MAX = 65504.0
BLOCK = 32  # tokens of a key block, columns of a value block, where that divides the page or d


@dataclass(frozen=True, slots=True)
class Pages:
    """The shape of a layer's pages. `dtype` of what is stored: float32, float16, or int8.

    Bytes have one f32 scale for each token and head; the scales of a page lie behind its numbers. Bytes stand in fours
    that `isa.Dot` multiplies at once: those of keys are neighbours in d, [block][d / 4][token][4], those of values
    neighbouring tokens, [block][token / 4][d][4]. They have room for d rounded up to 16, and pages hold whole fours.
    """

    kv_heads: int
    d: int
    tokens: int  # per page
    dtype: str

    def __str__(self) -> str:
        return f"{self.kv_heads}_{self.d}_{self.tokens}_{self.dtype}"

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return {"float32": 4, "float16": 2, "int8": 1}[self.dtype]

    @property
    def in_bytes(self) -> bool:
        return self.dtype == "int8"

    @property
    def fours(self) -> int:
        """Numbers that stand together; see above."""
        return 4 if self.in_bytes else 1

    @property
    def depth(self) -> int:
        """Numbers of a key or value in memory."""
        return padded(self.d) if self.in_bytes else self.d

    @property
    def key_block(self) -> int:
        """Tokens."""
        return BLOCK if self.tokens % BLOCK == 0 else self.tokens

    @property
    def value_block(self) -> int:
        """Columns."""
        return BLOCK if self.d % BLOCK == 0 else self.depth

    @property
    def stride(self) -> int:
        """Elements of a page and head: of keys, and as many of values."""
        return (self.depth + (4 if self.in_bytes else 0)) * self.tokens

    def base(self, page: Expr, head: Expr) -> Expr:
        """The element index where `head` begins in `page`: the same for keys and for values."""
        return let((page.astype("int64") * self.kv_heads + head) * self.stride)

    def piece(self, buffer: Expr, at: Expr, lanes: int) -> Expr:
        """`lanes` neighbours from element `at` on, as float32; fours of bytes as they are."""
        return load(buffer, at, lanes * 4) if self.in_bytes else widen(load(buffer, at, lanes), self.dtype, lanes)

    def key(self, slot: Expr, head: Expr) -> Expr:
        """The element index of the first column of a key; the next ones are each `key_block` further, fours of them
        `4 * key_block` where they are bytes.
        """
        token = slot % self.tokens
        block, offset = token // self.key_block, token % self.key_block
        base = self.base(slot // self.tokens, head)
        return let(base + block * (self.depth * self.key_block) + offset * self.fours)

    def value(self, slot: Expr, head: Expr) -> Expr:
        """The element index of the first column of a value; block i begins `i * value_block * tokens` further. The next
        columns are neighbours, or each 4 further where they are bytes.
        """
        token = slot % self.tokens
        place = token // 4 * (4 * self.value_block) + token % 4 if self.in_bytes else token * self.value_block
        return let(self.base(slot // self.tokens, head) + place)

    def scale(self, slot: Expr, head: Expr) -> Expr:
        """The element index of a token's scale, of keys as of values."""
        return let(self.base(slot // self.tokens, head) + self.depth * self.tokens + slot % self.tokens * 4)

    def scales(self, buffer: Expr, base: Expr, token: Expr, lanes: int) -> Expr:
        """The scales of consecutive tokens of the page and head at `base`, as f32."""
        at = base + self.depth * self.tokens + token * 4
        return let(bits(vector("float32", lanes), load(buffer, at, lanes * 4)))

    def stored(self, value: Expr, lanes: int) -> Expr:
        """`value` as it is stored. What float16 cannot hold becomes its largest number, so that a row never reads the
        infinity of a later one (0 * infinity is NaN)."""
        if self.dtype == "float32":
            return value
        return clamp(value, F16_MAX, lanes).astype(vector("float16", lanes))


def padded(d: int) -> int:
    """Elements of a row that `quantize` takes: whole vectors of every instruction set."""
    return -(-d // 16) * 16


def quantize(
    read: Callable[[Expr], Expr], write: Callable[[Expr, Expr], None], count: Expr, isa: Isa
) -> tuple[Expr, Expr]:
    """A vector of `count` numbers as bytes q and one scale: scale = max|x| / 127, q = rint(x * (127 / max|x|)).

    read(i) gives the vector from element i, write(i, q) takes it as int8. Returns the scale, and the sum of q as int32.
    Where max|x| is below 1e-30 everything becomes zero; with a NaN among them, the scale is NaN.
    """
    lanes = isa.lanes
    peak = Registers(1, "int32", lanes)
    peak.clear()
    with T.serial(0, count // lanes) as i:  # floats of one sign compare as integers do, with NaN on top
        magnitude = let(bits(f"int32x{lanes}", read(i * lanes)) & splat(const(0x7FFFFFFF), lanes))
        peak[0] = tirx.max(peak[0], magnitude)
    most = let(bits("float32", fold(peak[0], lanes, lambda a, b: tirx.max(a, b))))
    tiny = most < f32(1e-30)  # 127 / most could overflow
    inverse = let(splat(tirx.Select(tiny, f32(0), f32(127) / most), lanes))
    added = Registers(1, "int32", lanes)
    added.clear()
    with T.serial(0, count // lanes) as i:
        rounded = let(rint(read(i * lanes) * inverse).astype(f"int32x{lanes}"))
        write(i * lanes, rounded.astype(f"int8x{lanes}"))
        added[0] = added[0] + rounded
    return let(tirx.Select(tiny, f32(0), most / f32(127))), let(reduce_add_int(added[0]))


class Appender:
    """Writes one key or value vector, given piece by piece."""

    def __init__(self, pages: Pages, isa: Isa) -> None:
        self.pages, self.isa = pages, isa
        size = padded(pages.d)
        self.column = stack(size, "float32" if pages.in_bytes else pages.dtype)
        if pages.in_bytes:
            self.row, self.bytes = stack(size, "float32"), stack(size, "int8")
            for buffer in (self.column, self.row):
                for i in range(pages.d, size):
                    T.buffer_store(buffer, f32(0), [i])

    def key_piece(self, i: int, lanes: int, value: Expr) -> None:
        """Elements i .. i + lanes of the key."""
        store(self.column, i, value if self.pages.in_bytes else self.pages.stored(value, lanes), lanes)

    def key_done(self, buffer: Expr, slot: Expr, head: Expr) -> None:
        pages = self.pages
        place = pages.key(slot, head)
        if not pages.in_bytes:
            with T.serial(0, pages.d) as i:
                T.buffer_store(buffer, self.column[i], [place + i * pages.key_block])
            return
        self._quantize(self.column, buffer, slot, head)
        with T.serial(0, pages.depth // 4) as quad:
            four = let(load(self.bytes, quad * 4, 4))
            if not self.isa.signed_bytes:  # 128 more
                four = bits("int8x4", bits("int32", four) ^ const(-0x7F7F7F80))
            store(buffer, place + quad * (4 * pages.key_block), four, 4)

    def value_piece(self, buffer: Expr, slot: Expr, head: Expr, i: int, lanes: int, value: Expr) -> None:
        """Elements i .. i + lanes of the value."""
        if self.pages.in_bytes:
            store(self.row, i, value, lanes)
        else:
            block, column = divmod(i, self.pages.value_block)
            at = self.pages.value(slot, head) + (block * self.pages.value_block * self.pages.tokens + column)
            store(buffer, at, self.pages.stored(value, lanes), lanes)

    def value_done(self, buffer: Expr, slot: Expr, head: Expr) -> None:
        if self.pages.in_bytes:
            pages = self.pages
            self._quantize(self.row, buffer, slot, head)
            place = pages.value(slot, head)
            with T.serial(0, pages.depth) as i:
                block, column = i // pages.value_block, i % pages.value_block
                at = place + block * (pages.value_block * pages.tokens) + column * 4
                T.buffer_store(buffer, self.bytes[i], [at])

    def _quantize(self, source: Expr, buffer: Expr, slot: Expr, head: Expr) -> None:
        """`source` into `bytes`, its scale into the page."""
        lanes = self.isa.lanes
        scale, _ = quantize(
            lambda i: load(source, i, lanes),
            lambda i, q: store(self.bytes, i, q, lanes),
            padded(self.pages.d),
            self.isa,
        )
        store(buffer, self.pages.scale(slot, head), bits("int8x4", scale), 4)


def kv_append(kv_heads: int, d: int, page: int, kv_dtype: str, isa: Isa, *, k: Rows, v: Rows) -> Kernel:
    """Writes k and v f32 [rows, kv_heads * d], `k` and `v` saying where their rows lie, to `slots` i32[rows].

    Pointers k, v, slots, k_pages, v_pages (of the layer); k and v may be the same memory. Sizes rows. An item is a row
    and a head.
    """
    pages = Pages(kv_heads, d, page, kv_dtype)

    def body(f: Frame) -> None:
        appender = Appender(pages, isa)

        def append(head: Expr, row: Expr) -> None:
            slot = let(f["slots"][row])
            k_start, v_start = let(k.start(row, f) + head * d), let(v.start(row, f) + head * d)
            for i, lanes in spans(d, isa.lanes):
                appender.key_piece(i, lanes, load(f["k"], k_start + i, lanes))
                appender.value_piece(f["v_pages"], slot, head, i, lanes, load(f["v"], v_start + i, lanes))
            appender.key_done(f["k_pages"], slot, head)
            appender.value_done(f["v_pages"], slot, head)

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
