"""Causal attention over the paged KV cache: one row at a time (decode), or a tile of rows that read the same tokens.

The context of a row is cut into spans at fixed positions. Each span gives a partial result, and the partials of a row
are merged in order, so the bits do not depend on who computes which span: one item all of them, several items some each
(the partials then meet in memory, and `merge_partials` finishes), or one item a span that several sequences share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .attend import Ahead, Partial, Tile, no_fetch, up_to
from .attend_bytes import ByteTile
from .emit import const, let, load, opaque, prefetch, stack, store, when
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .kv import Pages
from .rows import each_item
from .tiles import TURN, Scratch, kernel_name

SPAN = 256  # tokens, or a page where that is larger; results depend on it in the last bits
LINE = 64  # bytes
MEMBER, TILE = 3, 7  # columns of the tables that say what a step attends to; see `paged_attention`
Block = Callable[[Expr, Expr, Expr, Ahead], None]
Fetch = Callable[[Expr], Ahead]  # given how many elements were read before


@dataclass(frozen=True, slots=True)
class _TileAt:
    """A row of `tiles`, as it is read: positions start .. end of the sequence whose pages begin at `table`."""

    table: Expr
    first: Expr
    rows: Expr
    start: Expr
    end: Expr
    split: Expr


def span_tokens(page: int) -> int:
    """Tokens of a span: whole pages."""
    return max(1, SPAN // page) * page


def paged_attention(
    heads: int,
    kv_heads: int,
    d: int,
    page: int,
    kv_dtype: str,
    tile_rows: int,
    scale: float,
    isa: Isa,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Kernel:
    """softmax(scale * q k^T) v of each query row over cached tokens.

    Pointers q f32 [rows, heads * d], out f32 [rows, heads * d], k_pages and v_pages (of the layer; see `kv`), tables
    i32 [sequences, table_stride] of page numbers, members i32 [any, 3] = (row, its position, number of its partial for
    span 0), tiles i32 [tile_count, 7] = (sequence, first member, members, lowest position, begin, end, split), partials
    f32 (see `merge_partials`), scratch. Sizes tile_count, table_stride.

    A tile is 1 .. tile_rows members that read tokens begin .. end of one table; begin is where a span begins, and a
    single member may end earlier, at its own position. The row at position p reads those up to p, or of the last
    `window`; pages with none of these are not touched. A tile that is not split covers all of its rows' context and
    writes `out`; one that is writes the partials of its spans. With `softcap` a score x is softcap * tanh(x / softcap).
    An item is a kv head and a tile; its query heads go together, so that keys and values are read once.
    """
    group = heads // kv_heads
    pages = Pages(kv_heads, d, page, kv_dtype)
    span = span_tokens(page)
    span_pages = span // page
    tile = (ByteTile if pages.in_bytes else Tile)(
        group * tile_rows,
        d,
        pages.key_block,
        pages.value_block,
        span,
        scale,
        softcap,
        tile_rows > 1,
        isa,
    )
    layout = tile.scratch()
    record = Partial.size(d)

    def body(f: Frame) -> None:
        k_pages, v_pages, members = f["k_pages"], f["v_pages"], f["members"]
        streams = stack(TURN, "int64")

        def tile_at(number: Expr) -> _TileAt:
            sequence, first, rows, lowest, begin, end, split = (let(f["tiles"][number * TILE + i]) for i in range(TILE))
            if tile_rows == 1:
                lowest = let(members[first * MEMBER + 1])
                end = let(tirx.min(end, lowest + 1))
            start = let(tirx.max(lowest - (window - 1), begin)) if window else begin
            return _TileAt(let(sequence.astype("int64") * f["table_stride"]), first, rows, start, end, split)

        def aim(table: Expr, head: Expr, first: Expr, last: Expr) -> None:
            """Let the streams begin at the quarters of pages `first` .. `last`, of a span at most."""
            count = let(tirx.min(last - first + 1, span_pages))
            whole = (count + TURN - 1) // TURN * TURN
            count = opaque(tirx.Select(count > 2, whole, count))  # quarters end where pages do
            for i in range(TURN):
                quarter = let(i * count)  # of a page
                number = f["tables"][table + let(tirx.min(first + quarter // TURN, last))]
                T.buffer_store(streams, pages.base(number, head) + quarter % TURN * (pages.depth * page // TURN), [i])

        def attend(item: Expr, later: Expr) -> None:
            head, here = let(item // f["tile_count"]), tile_at(let(item % f["tile_count"]))
            table, first, start, end = here.table, here.first, here.start, here.end
            last_page, last_span = let((end - 1) // page), let((end - 1) // span)
            bound = tile.bind(f["scratch"], layout.at(f.thread), group if tile_rows == 1 else let(here.rows * group))

            def member(m: Expr, column: int) -> Expr:
                return members[(first + m // group) * MEMBER + column]

            def place(m: Expr) -> Expr:
                """Where vector m = member * group + head of the group lies in q and in out."""
                return let((member(m, 0).astype("int64") * kv_heads + head) * (group * d) + m % group * d)

            def page_base(index: Expr) -> Expr:
                return pages.base(f["tables"][table + index], head)

            def walk(low: Expr, high: Expr, blocks: int, buffer: Expr, fetch: Fetch, handle: Block) -> None:
                """handle(page index, block, its address, ahead) for each block of the pages low .. high of `buffer`."""
                size = pages.depth * page // blocks
                with T.serial(0, (high - low) * blocks) as i:
                    index, block = let(low + i // blocks), let(i % blocks)
                    handle(index, block, let(page_base(index) + block * size), fetch(i * size))

            def fetch_from(buffer: Expr) -> Fetch:
                """Ask for what the streams are aimed at in `buffer`, a line for each line that is read meanwhile.

                They are asked for in turns, since memory answers several streams faster than one.
                """
                per_line = LINE // pages.item

                def fetch(done: Expr) -> Ahead:
                    def ahead(place: Expr, offset: int) -> None:
                        if offset % per_line == 0:
                            line = (done + place + offset) // per_line
                            prefetch(buffer, streams[line % TURN] + line // TURN * per_line, level=2)

                    return ahead

                return fetch

            def values_of(c: Expr) -> Fetch:
                """The values of span `c` are read next."""
                if tile_rows > 1:
                    return lambda done: no_fetch  # many rows take so long that the hardware keeps up
                aim(table, head, c * span_pages, last_page)
                return fetch_from(v_pages)

            def keys_after(c: Expr) -> Fetch:
                """The keys of the span after `c` are read next, or those of the item `later`."""
                if tile_rows > 1:
                    return lambda done: no_fetch

                after = tile_at(let(later % f["tile_count"]))

                def aim_at_later() -> None:
                    first_page, last = let(after.start // span * span_pages), let((after.end - 1) // page)
                    aim(after.table, let(later // f["tile_count"]), first_page, last)

                when(c < last_span, lambda: aim(table, head, let((c + 1) * span_pages), last_page), aim_at_later)
                return fetch_from(k_pages)

            def one_span(c: Expr) -> None:
                low = let(tirx.max(c * span_pages, start // page))
                high = let(tirx.min((c + 1) * span_pages, last_page + 1))
                key_blocks, value_blocks = page // pages.key_block, pages.depth // pages.value_block

                def score(index: Expr, block: Expr, at: Expr, ahead: Ahead) -> None:
                    column = let((index - c * span_pages) * page + block * pages.key_block)

                    def key(i: Expr, token: Expr, lanes: int) -> Expr:
                        return pages.piece(k_pages, at + (i * pages.key_block + token) * pages.fours, lanes)

                    def key_scales(token: Expr, lanes: int) -> Expr:
                        return pages.scales(k_pages, page_base(index), block * pages.key_block + token, lanes)

                    bound.score(column, key, ahead, key_scales if pages.in_bytes else None)

                def add(index: Expr, block: Expr, at: Expr, ahead: Ahead) -> None:
                    def value(i: Expr, column: Expr, lanes: int) -> Expr:
                        return pages.piece(v_pages, at + (i * pages.value_block + column) * pages.fours, lanes)

                    column, tokens = let((index - c * span_pages) * page), let(tirx.min(end - index * page, page))
                    bound.add(column, tokens, let(block * pages.value_block), value, ahead)

                def visible(m: Expr, position: Expr, lanes: int) -> Expr:
                    return up_to(member(m, 1), position, lanes, window)

                def value_scales(column: Expr, token: int, lanes: int) -> Expr:
                    base = page_base(let(c * span_pages + column // page))
                    return pages.scales(v_pages, base, column % page + token, lanes)

                walk(low, high, key_blocks, k_pages, values_of(c), score)
                panels = let((low - c * span_pages) * key_blocks), let((high - low) * key_blocks)
                bound.soften(*panels, let(c * span), visible, value_scales if pages.in_bytes else None)
                walk(low, high, value_blocks, v_pages, keys_after(c), add)
                when(here.split > 0, lambda: keep(c), bound.merge)

            def keep(c: Expr) -> None:
                with T.serial(0, bound.used) as m:
                    at = let(((member(m, 2) + c).astype("int64") * heads + head * group + m % group) * record)
                    Partial(f["partials"], at, d, isa).copy(bound.here(m))

            bound.begin(lambda i, lanes, m: load(f["q"], place(m) + i, lanes))
            first_span = let(start // span)
            with T.serial(0, last_span + 1 - first_span) as i:
                one_span(let(first_span + i))
            when(here.split == 0, lambda: bound.finish(lambda i, lanes, m, x: store(f["out"], place(m) + i, x, lanes)))

        # Odd threads claim items from the end (see `sync`), so what they claim next probably lies before this claim.
        beside = let(tirx.Select(f.thread % 2 == 1, f.lo - 1, f.hi))
        beside = let(tirx.max(0, tirx.min(beside, f["tile_count"] * kv_heads - 1)))
        with T.serial(f.lo, f.hi) as item:
            attend(item, opaque(tirx.Select(item + 1 < f.hi, item + 1, beside)))

    return Kernel(
        kernel_name("paged_attention", heads, pages, tile_rows, scale, window, softcap),
        (
            Pointer("q", "float32"),
            Pointer("out", "float32"),
            Pointer("k_pages", kv_dtype),
            Pointer("v_pages", kv_dtype),
            *(Pointer(name, "int32") for name in ("tables", "members", "tiles")),
            Pointer("partials", "float32"),
            Pointer("scratch", "float32"),
        ),
        ("tile_count", "table_stride"),
        lambda sizes: sizes["tile_count"] * kv_heads,
        body,
        scratch=layout.bytes,
    )


def merge_partials(heads: int, d: int, page: int, isa: Isa, *, window: int = 0) -> Kernel:
    """Rows whose context was split into tiles: their partials merged in order, and divided.

    Pointers members i32 [merge_count, 3] as in `paged_attention`, partials f32 [any, heads, Partial.size(d)], out f32
    [rows, heads * d], scratch. Sizes merge_count. An item is a member and a head.
    """
    record = Partial.size(d)
    span = span_tokens(page)
    layout = Scratch(merged=record)

    def body(f: Frame) -> None:
        merged = Partial(f["scratch"], layout.at(f.thread)["merged"], d, isa)

        def finish(number: Expr, head: Expr) -> None:
            row, position, partial = (let(f["members"][number * MEMBER + i]) for i in range(MEMBER))
            first = let(tirx.max(position - (window - 1), 0) // span) if window else const(0)
            merged.clear()
            with T.serial(0, position // span + 1 - first) as i:
                at = let(((partial + first + i).astype("int64") * heads + head) * record)
                merged.merge(Partial(f["partials"], at, d, isa))
            out = let((row.astype("int64") * heads + head) * d)
            merged.finish(lambda i, lanes, x: store(f["out"], out + i, x, lanes))

        each_item(f, heads, finish)

    return Kernel(
        kernel_name("merge_partials", heads, d, page, window),
        (Pointer("members", "int32"), *(Pointer(name, "float32") for name in ("partials", "out", "scratch"))),
        ("merge_count",),
        lambda sizes: sizes["merge_count"] * heads,
        body,
        scratch=layout.bytes,
    )
