"""Kernels of encoders and images: attention within a batch item, convolution, matrix product, softmax, permutation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .attend import Tile, no_fetch, up_to
from .emit import const, exp, f32, let, load, splat, store
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .norm import each_piece, row_sum
from .rows import Rows
from .tiles import Scratch, divisor_lanes, fold, kernel_name, larger, outer_sum, parts, spans, tile_shape

TILE_ROWS = 32  # query rows of full_attention that share a pass over the keys
CHUNK = 64  # keys
CHANNELS = 128  # output channels of conv2d in one item


def _floats(*names: str) -> tuple[Pointer, ...]:
    return tuple(Pointer(name, "float32") for name in names)


def full_attention(
    heads: int,
    d: int,
    scale: float,
    isa: Isa,
    *,
    lengths: bool = False,
    q: Rows | None = None,
    k: Rows | None = None,
    v: Rows | None = None,
) -> Kernel:
    """softmax(scale * q k^T) v within each batch item: f32 [batch, period, heads * d] each.

    Pointers q, k, v, lengths i32[batch] (where wanted), out, scratch. Sizes batch, period (rows of a batch item). With
    `lengths` only the first lengths[b] keys count, at least one. Rows are contiguous unless said otherwise. An item is
    a head and up to TILE_ROWS rows of a batch item.
    """
    places = {"q": q or Rows(heads * d), "k": k or Rows(heads * d), "v": v or Rows(heads * d)}
    tile = Tile(TILE_ROWS, d, CHUNK, d, CHUNK, scale, 0.0, padded=True, isa=isa)
    layout = tile.scratch(keys=d * CHUNK)

    def body(f: Frame) -> None:
        period, memory = f["period"], f["scratch"]
        tiles = let((period + (TILE_ROWS - 1)) // TILE_ROWS)

        def attend(item: Expr) -> None:
            first = let(item % tiles * TILE_ROWS)
            head, batch = let(item // tiles % heads), let(item // tiles // heads)
            rows = let(tirx.min(period - first, TILE_ROWS))
            count = let(tirx.max(f["lengths"][batch], 1)) if lengths else period
            areas = layout.at(f.thread)
            bound = tile.bind(memory, areas, rows)

            def start(name: str, row: Expr) -> Expr:
                return places[name].start(batch * period + row, f) + head * d

            bound.begin(lambda i, lanes, m: load(f["q"], start("q", first + m) + i, lanes))
            with T.serial(0, (count + (CHUNK - 1)) // CHUNK) as number:
                position = let(number * CHUNK)
                tokens = let(tirx.min(count - position, CHUNK))
                with T.serial(0, tokens) as token:
                    source = let(start("k", position + token))
                    with T.serial(0, d) as i:
                        T.buffer_store(memory, f["k"][source + i], [areas["keys"] + i * CHUNK + token])
                values = let(start("v", position))

                def key(i: Expr, token: Expr, lanes: int) -> Expr:
                    return load(memory, areas["keys"] + i * CHUNK + token, lanes)

                def value(token: Expr, i: Expr, lanes: int) -> Expr:
                    return load(f["v"], values + token.astype("int64") * places["v"].stride + i, lanes)

                bound.score(const(0), key, no_fetch)
                bound.soften(const(0), const(1), position, lambda m, at, n: up_to(count - 1, at, n))
                bound.add(const(0), tokens, const(0), value, no_fetch)
                bound.merge()
            out = let((batch * period + first).astype("int64") * (heads * d) + head * d)
            bound.finish(lambda i, lanes, m, x: store(f["out"], out + m * (heads * d) + i, x, lanes))

        with T.serial(f.lo, f.hi) as item:
            attend(item)

    pointers = (
        *_floats("q", "k", "v"),
        *([Pointer("lengths", "int32")] if lengths else []),
        *_floats("out", "scratch"),
    )
    return Kernel(
        kernel_name("full_attention", heads, d, scale, lengths, *places.values()),
        pointers,
        ("batch", "period"),
        lambda s: s["batch"] * heads * ((s["period"] + (TILE_ROWS - 1)) // TILE_ROWS),
        body,
        scratch=layout.bytes,
    )


def conv2d(
    image: tuple[int, int, int],
    channels: int,
    window: tuple[int, int],
    stride: int,
    padding: int,
    isa: Isa,
    *,
    bias: bool = False,
) -> Kernel:
    """Cross-correlation of images `image` = (c, h, w) with `channels` filters of c * window, zeros around the image.

    Pointers x f32 [batch, c, h, w], w f32 [channels, c, *window], bias f32[channels] (where wanted), y f32 [batch,
    channels, h', w'], scratch. Sizes batch. An item is a block of output pixels and up to CHANNELS channels of an
    image. The pixels that the filters see are copied to a matrix of [c * window, pixels], so pixels are the lanes.
    """
    c, h, w = image
    kh, kw = window
    out_h, out_w = ((size + 2 * padding - k) // stride + 1 for size, k in ((h, kh), (w, kw)))
    pixels, depth = out_h * out_w, c * kh * kw
    across = min(4, -(-pixels // isa.lanes))
    block = across * isa.lanes
    pixel_blocks, channel_blocks = -(-pixels // block), -(-channels // CHANNELS)
    height, width = tile_shape(min(channels, CHANNELS), across, isa)
    layout = Scratch(seen=depth * block, result=height * block)

    def body(f: Frame) -> None:
        memory = f["scratch"]
        areas = layout.at(f.thread)
        seen, result = areas["seen"], areas["result"]

        def gather(picture: Expr, first: Expr) -> None:
            """The pixels that output pixels first .. first + block see; behind the last pixel, it is repeated."""
            with T.serial(0, block) as j:
                pixel = let(tirx.min(first + j, pixels - 1))
                top, left = let(pixel // out_w * stride - padding), let(pixel % out_w * stride - padding)
                with T.serial(0, c) as channel, T.serial(0, kh) as dy, T.serial(0, kw) as dx:
                    y, x = let(top + dy), let(left + dx)
                    value = f["x"][picture + (channel * h + y) * w + x]
                    if padding:
                        inside = tirx.all(y >= 0, y < h, x >= 0, x < w)
                        value = tirx.if_then_else(inside, value, f32(0))
                    T.buffer_store(memory, value, [seen + ((channel * kh + dy) * kw + dx) * block + j])

        def filter_rows(row: Expr, batch: Expr, first: Expr) -> None:
            """`height` output channels from `row`, or as many as there are."""
            filters = [let(tirx.min(row + m, channels - 1)) for m in range(height)]

            def multiply(part: Expr, vectors: int) -> None:
                outer_sum(
                    height,
                    vectors,
                    isa.lanes,
                    depth,
                    lambda m, i: f["w"][filters[m] * depth + i],
                    lambda i, v: load(memory, seen + i * block + (part + v) * isa.lanes, isa.lanes),
                    lambda m, v: splat(f["bias"][filters[m]] if bias else f32(0), isa.lanes),
                    lambda m, v, x: store(memory, result + m * block + (part + v) * isa.lanes, x, isa.lanes),
                )

            for part, vectors in parts(across, width):
                multiply(part, vectors)
            with T.serial(0, tirx.min(channels - row, height)) as m:
                target = let((batch * channels + row + m).astype("int64") * pixels + first)
                with T.serial(0, tirx.min(pixels - first, block)) as j:
                    T.buffer_store(f["y"], memory[result + m * block + j], [target + j])

        with T.serial(f.lo, f.hi) as item:
            start = let(item % channel_blocks * CHANNELS)
            first = let(item // channel_blocks % pixel_blocks * block)
            batch = let(item // (channel_blocks * pixel_blocks))
            gather(let(batch.astype("int64") * (c * h * w)), first)
            here = let(tirx.min(channels - start, CHANNELS))
            with T.serial(0, (here + (height - 1)) // height) as i:
                filter_rows(let(start + i * height), batch, first)

    return Kernel(
        kernel_name("conv2d", *image, channels, *window, stride, padding, bias),
        _floats("x", "w", *(["bias"] if bias else []), "y", "scratch"),
        ("batch",),
        lambda s: s["batch"] * (pixel_blocks * channel_blocks),
        body,
        scratch=layout.bytes,
    )


def matmul(k: int, n: int, isa: Isa) -> Kernel:
    """a @ b for each batch item: f32 [batch, rows, k], [batch, k, n] -> [batch, rows, n].

    Pointers a, b, y. Sizes batch, rows. An item is a block of rows of a batch item.
    """
    height, width = tile_shape(16, -(-n // isa.lanes), isa)
    full = n // isa.lanes

    def body(f: Frame) -> None:
        rows = f["rows"]
        row_blocks = let((rows + (height - 1)) // height)

        def multiply(batch: Expr, first: Expr) -> None:
            lines = [let((batch * rows + tirx.min(first + m, rows - 1)).astype("int64")) for m in range(height)]
            right = let(batch.astype("int64") * (k * n))

            def columns(start: Expr, count: int, lanes: int) -> None:
                outer_sum(
                    height,
                    count,
                    lanes,
                    k,
                    lambda m, i: f["a"][lines[m] * k + i],
                    lambda i, v: load(f["b"], right + i * n + start + v * lanes, lanes),
                    lambda m, v: splat(f32(0), lanes),
                    lambda m, v, x: store(f["y"], lines[m] * n + start + v * lanes, x, lanes),
                )

            for part, count in parts(full, width):
                columns(part * isa.lanes, count, isa.lanes)
            for start, lanes in spans(n % isa.lanes, isa.lanes):
                columns(full * isa.lanes + start, 1, lanes)

        with T.serial(f.lo, f.hi) as item:
            multiply(let(item // row_blocks), let(item % row_blocks * height))

    return Kernel(
        kernel_name("matmul", k, n),
        _floats("a", "b", "y"),
        ("batch", "rows"),
        lambda s: s["batch"] * ((s["rows"] + (height - 1)) // height),
        body,
    )


def softmax(k: int, isa: Isa) -> Kernel:
    """e^x / sum of e^x over each row: f32 [rows, k]. Pointers x, y. Sizes rows. An item is a row."""

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            start = Rows(k).start(row, f)
            _softmax_row(f, start, k, isa)

    return Kernel(kernel_name("softmax", k), _floats("x", "y"), ("rows",), lambda s: s["rows"], body)


def _softmax_row(f: Frame, start: Expr, k: int, isa: Isa) -> None:
    store(f["y"], start, load(f["x"], start, 1), 1)  # y[start] holds the largest number so far

    def look(column: Expr, lanes: int) -> None:
        top = fold(load(f["x"], start + column, lanes), lanes, larger)
        store(f["y"], start, larger(top, f["y"][start]), 1)

    each_piece(k, isa.lanes, look)
    top = let(f["y"][start])

    def add(column: Expr, lanes: int, total: Expr) -> Expr:
        x = let(exp(load(f["x"], start + column, lanes) - splat(top, lanes), lanes))
        store(f["y"], start + column, x, lanes)
        return total + x

    inverse = let(f32(1) / row_sum(k, isa, add))

    def divide(column: Expr, lanes: int) -> None:
        at = start + column
        store(f["y"], at, load(f["y"], at, lanes) * splat(inverse, lanes), lanes)

    each_piece(k, isa.lanes, divide)


def permute(shape: Sequence[int], axes: Sequence[int], isa: Isa, dtype: str = "float32") -> Kernel:
    """The axes behind the first in another order: y[r] = x[r].transpose(axes), x [rows, *shape].

    Pointers x, y. Sizes rows. An item is one run along y's last axis.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in axes]
    sizes = [shape[axis] for axis in axes]
    runs, total = math.prod(sizes[:-1]), math.prod(shape)
    lanes = divisor_lanes(sizes[-1], isa)

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as item:
            source, left = let((item // runs).astype("int64") * total), let(item % runs)
            for size, stride in reversed(list(zip(sizes[:-1], strides[:-1], strict=True))):
                source, left = let(source + left % size * stride), let(left // size)
            target = let(item.astype("int64") * sizes[-1])
            if strides[-1] == 1:
                with T.serial(0, sizes[-1] // lanes) as i:
                    store(f["y"], target + i * lanes, load(f["x"], source + i * lanes, lanes), lanes)
            else:
                with T.serial(0, sizes[-1]) as i:
                    T.buffer_store(f["y"], f["x"][source + i * strides[-1]], [target + i])

    name = kernel_name("permute", *shape, "by", *axes, dtype)
    return Kernel(name, (Pointer("x", dtype), Pointer("y", dtype)), ("rows",), lambda s: s["rows"] * runs, body)
