"""Normalisation of rows. An item is a row (or a row's head); accumulated in float32.

A row's sum has up to four vector accumulators, added pairwise, and then its lanes: an order that depends on the number
of columns alone.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, f32, fma, let, load, splat, store
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .rows import Rows, each_item
from .tiles import fold_add, kernel_name, spans

ACCUMULATORS = 4
Piece = Callable[[Expr, int], Expr]  # (column, lanes) -> a vector


def row_sum(columns: int, isa: Isa, add: Callable[[Expr, int, Expr], Expr]) -> Expr:
    """The sum over a row; `add(column, lanes, sum)` adds the terms of `lanes` columns to a vector of sums."""
    lanes = isa.lanes
    vectors = columns // lanes
    used = max(1, min(ACCUMULATORS, vectors))
    sums = Registers(used, "float32", lanes)
    sums.clear()
    if vectors >= used:
        with T.serial(0, vectors // used) as i:
            for j in range(used):
                sums[j] = add((i * used + j) * lanes, lanes, sums[j])
    for j in range(vectors % used):
        sums[j] = add((vectors - vectors % used + j) * lanes, lanes, sums[j])
    values = [let(sums[j]) for j in range(used)]
    while len(values) > 1:
        values = [let(sum(values[j + 1 : j + 2], values[j])) for j in range(0, len(values), 2)]
    total = fold_add(values[0], lanes)
    rest = vectors * lanes
    for start, width in spans(columns - rest, lanes):
        total = let(total + fold_add(add(rest + start, width, splat(f32(0), width)), width))
    return total


def each_piece(columns: int, lanes: int, handle: Callable[[Expr, int], None]) -> None:
    """handle(column, lanes) for vectors that cover a row."""
    if columns >= lanes:
        with T.serial(0, columns // lanes) as i:
            handle(i * lanes, lanes)
    rest = columns - columns % lanes
    for start, width in spans(columns % lanes, lanes):
        handle(rest + start, width)


def rms_factor(read: Piece, columns: int, eps: float, isa: Isa) -> Expr:
    """1 / sqrt(mean(x^2) + eps)."""

    def add(column: Expr, lanes: int, total: Expr) -> Expr:
        x = let(read(column, lanes))
        return fma(x, x, total)

    return _inverse_root(row_sum(columns, isa, add), columns, eps)


def _inverse_root(squares: Expr, columns: int, eps: float) -> Expr:
    mean = let(squares / f32(columns))
    return let(f32(1) / tirx.sqrt(mean + f32(eps)))


def weigh(x: Expr, factor: Expr, weight: Expr, lanes: int, one_plus: bool) -> Expr:
    """x * factor * weight, or * (1 + weight)."""
    scaled = let(x * splat(factor, lanes))
    return fma(scaled, weight, scaled) if one_plus else scaled * weight


def rms_norm(
    k: int,
    eps: float,
    isa: Isa,
    *,
    heads: int = 1,
    x: Rows | None = None,
    y: Rows | None = None,
    one_plus: bool = False,
) -> Kernel:
    """x / sqrt(mean(x^2) + eps) * weight for each of `heads` neighbouring groups of k columns.

    Pointers x, weight f32[k], y; x and y may be the same memory. Sizes rows. With `one_plus` the factor is 1 + weight
    (Gemma). Rows are contiguous unless `x` or `y` says otherwise. An item is a row and a head.
    """
    strip = 0 if y else k
    x, y = x or Rows(heads * k), y or Rows(heads * k)

    def body(f: Frame) -> None:
        def norm(row: Expr, head: Expr) -> None:
            start, target = let(x.start(row, f) + head * k), let(y.start(row, f) + head * k)

            def read(column: Expr, lanes: int) -> Expr:
                return load(f["x"], start + column, lanes)

            factor = rms_factor(read, k, eps, isa)

            def write(column: Expr, lanes: int) -> None:
                weight = load(f["weight"], column, lanes)
                store(f["y"], target + column, weigh(read(column, lanes), factor, weight, lanes, one_plus), lanes)

            each_piece(k, isa.lanes, write)

        each_item(f, heads, norm)

    name = kernel_name("rms_norm", k, eps, heads, x, y, one_plus)
    return Kernel(name, _floats("x", "weight", "y"), ("rows",), lambda sizes: sizes["rows"] * heads, body, strip=strip)


def add_rms_norm(k: int, eps: float, isa: Isa, *, one_plus: bool = False) -> Kernel:
    """total = x + residual, y = rms_norm(total): f32 [rows, k].

    Pointers x, residual, weight f32[k], y, total; total may be x or residual. Sizes rows. An item is a row.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            start = Rows(k).start(row, f)

            def add(column: Expr, lanes: int, squares: Expr) -> Expr:
                at = start + column
                total = let(load(f["x"], at, lanes) + load(f["residual"], at, lanes))
                store(f["total"], at, total, lanes)
                return fma(total, total, squares)

            factor = _inverse_root(row_sum(k, isa, add), k, eps)

            def write(column: Expr, lanes: int) -> None:
                total, weight = load(f["total"], start + column, lanes), load(f["weight"], column, lanes)
                store(f["y"], start + column, weigh(total, factor, weight, lanes, one_plus), lanes)

            each_piece(k, isa.lanes, write)

    pointers = _floats("x", "residual", "weight", "y", "total")
    return Kernel(
        kernel_name("add_rms_norm", k, eps, one_plus), pointers, ("rows",), lambda s: s["rows"], body, strip=k
    )


def layer_norm(k: int, eps: float, isa: Isa, *, residual: bool = False, bias: bool = True) -> Kernel:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias: f32 [rows, k].

    Pointers x, weight f32[k], bias f32[k] (with `bias`), y. With `residual` the pointers residual and total are added
    at the end, and x + residual is normalised and written to total, which may be x or residual. Sizes rows.
    """

    def body(f: Frame) -> None:
        def norm(row: Expr) -> None:
            start = Rows(k).start(row, f)
            source = f["total"] if residual else f["x"]

            def first(column: Expr, lanes: int, total: Expr) -> Expr:
                at = start + column
                if not residual:
                    return total + load(source, at, lanes)
                x = let(load(f["x"], at, lanes) + load(f["residual"], at, lanes))
                store(source, at, x, lanes)
                return total + x

            mean = let(row_sum(k, isa, first) / f32(k))

            def centred(column: Expr, lanes: int) -> Expr:
                return let(load(source, start + column, lanes) - splat(mean, lanes))

            def square(column: Expr, lanes: int, total: Expr) -> Expr:
                x = centred(column, lanes)
                return fma(x, x, total)

            factor = _inverse_root(row_sum(k, isa, square), k, eps)

            def write(column: Expr, lanes: int) -> None:
                scaled, weight = centred(column, lanes) * splat(factor, lanes), load(f["weight"], column, lanes)
                y = fma(scaled, weight, load(f["bias"], column, lanes)) if bias else scaled * weight
                store(f["y"], start + column, y, lanes)

            each_piece(k, isa.lanes, write)

        with T.serial(f.lo, f.hi) as row:
            norm(row)

    names = ["x", "weight", *(["bias"] if bias else []), "y", *(["residual", "total"] if residual else [])]
    name = kernel_name("add_layer_norm" if residual else "layer_norm", k, eps, bias)
    return Kernel(name, _floats(*names), ("rows",), lambda sizes: sizes["rows"], body, strip=k)


def _floats(*names: str) -> tuple[Pointer, ...]:
    return tuple(Pointer(name, "float32") for name in names)
