"""Causal attention over the paged KV cache, for one query row at a time (decode) or a tile of them (prefill)."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .attend import Tile, up_to
from .emit import let, load, prefetch, store, widen
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .kv import Pages
from .tiles import kernel_name

CHUNK = 64  # positions to one softmax, or a page where that is larger; results depend on it in the last bits
LINE = 64  # bytes


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
    """softmax(scale * q k^T) v of each query row over the cached tokens of its sequence.

    Pointers q f32 [rows, heads * d], out f32 [rows, heads * d], k_pages and v_pages (of the layer; see `kv`), tables
    i32 [sequences, table_stride] of page numbers, tiles i32 [tile_count, 4] = (sequence, first row, rows, position of
    the first row), scratch. Sizes tile_count, table_stride. A tile has 1 .. tile_rows rows at consecutive positions.
    The row at position p reads positions 0 .. p, or the last `window` of them; pages with none of these are not
    touched. With `softcap` a score x is softcap * tanh(x / softcap). An item is a kv head and a tile; its query heads
    go together, so that keys and values are read once. Rows are equal bit by bit for every `tile_rows`.
    """
    group = heads // kv_heads
    pages = Pages(kv_heads, d, page, kv_dtype)
    chunk_pages = max(1, CHUNK // page)
    chunk = chunk_pages * page
    tile = Tile(group * tile_rows, d, page, chunk, scale, softcap, padded=tile_rows > 1, isa=isa)
    layout = tile.scratch()
    line = LINE // (4 if kv_dtype == "float32" else 2)  # elements

    def body(f: Frame) -> None:
        k_pages, v_pages, tiles = f["k_pages"], f["v_pages"], f["tiles"]

        def attend(head: Expr, number: Expr) -> None:
            sequence, row, rows, position = (let(tiles[number * 4 + i]) for i in range(4))
            end = let(position + rows)
            table = let(sequence.astype("int64") * f["table_stride"])
            last_page = let((end - 1) // page)
            first = let(tirx.max(position - (window - 1), 0)) if window else tirx.const(0, "int32")
            bound = tile.bind(f["scratch"], layout.at(f.thread), group if tile_rows == 1 else let(rows * group))
            q_start = let((row.astype("int64") * kv_heads + head) * (group * d))

            def place(m: Expr) -> Expr:
                """Where vector m = row * group + head of the group lies in q and in out."""
                return q_start + m // group * (heads * d) + m % group * d

            def page_base(index: Expr) -> Expr:
                return pages.base(f["tables"][table + index], head)

            def each_page(chunk_number: Expr, handle: Expr) -> None:
                """handle(page index, column of the chunk, base of this page, base of the next)."""
                begin = let(tirx.max(chunk_number * chunk_pages, first // page))
                stop = let(tirx.min((chunk_number + 1) * chunk_pages, last_page + 1))
                with T.serial(0, stop - begin) as i:
                    index = let(begin + i)
                    following = page_base(tirx.min(index + 1, last_page))
                    handle(index, let((index - chunk_number * chunk_pages) * page), page_base(index), following)

            def ahead(buffer: Expr, following: Expr, run: int) -> Expr:
                """A function that fetches run i of the next page: `run` consecutive elements."""

                def fetch(i: Expr) -> None:
                    for part in range(0, run, line):
                        prefetch(buffer, following + i * run + part)

                return fetch

            def score(index: Expr, column: Expr, base: Expr, following: Expr) -> None:
                def key(i: Expr, token: Expr, lanes: int) -> Expr:
                    return widen(load(k_pages, base + i * page + token, lanes), kv_dtype, lanes)

                bound.score(column, key, ahead(k_pages, following, page))

            def add(index: Expr, column: Expr, base: Expr, following: Expr) -> None:
                def value(token: Expr, i: Expr, lanes: int) -> Expr:
                    return widen(load(v_pages, base + token * d + i, lanes), kv_dtype, lanes)

                tokens = let(tirx.min(end - index * page, page))
                bound.add(column, tokens, value, ahead(v_pages, following, d))

            bound.begin(lambda i, lanes, m: load(f["q"], place(m) + i, lanes))
            first_chunk = let(first // chunk)
            with T.serial(0, (end - 1) // chunk + 1 - first_chunk) as i:
                c = let(first_chunk + i)
                each_page(c, score)
                bound.soften(let(c * chunk), lambda m, at, n: up_to(position + m // group, at, n, window))
                each_page(c, add)
            bound.finish(lambda i, lanes, m, x: store(f["out"], place(m) + i, x, lanes))

        with T.serial(f.lo, f.hi) as item:
            attend(let(item // f["tile_count"]), let(item % f["tile_count"]))

    return Kernel(
        kernel_name("paged_attention", heads, pages, tile_rows, scale, window, softcap),
        (
            Pointer("q", "float32"),
            Pointer("out", "float32"),
            Pointer("k_pages", kv_dtype),
            Pointer("v_pages", kv_dtype),
            Pointer("tables", "int32"),
            Pointer("tiles", "int32"),
            Pointer("scratch", "float32"),
        ),
        ("tile_count", "table_stride"),
        lambda sizes: sizes["tile_count"] * kv_heads,
        body,
        scratch=layout.bytes,
    )
