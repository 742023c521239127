"""Kernels that treat each element by itself, and those that move rows. An item is a row and a block of its columns."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import bits, const, exp, f32, fma, let, load, splat, store, vector, when, widen
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .norm import each_piece
from .rows import Rows, blocks, each_block
from .tiles import kernel_name, larger
from .vmath import gelu, sigmoid, tanh

BLOCK = 512  # columns
Function = Callable[..., Expr]  # (lanes, operand vectors...) -> vector


def _silu(lanes: int, x: Expr) -> Expr:
    one = splat(f32(1), lanes)
    return x / let(one + exp(let(splat(f32(0), lanes) - x), lanes))


def _gelu_tanh(lanes: int, x: Expr) -> Expr:
    # 1 + tanh(u) = 2 sigmoid(2 u), without the cancellation.
    cubic = fma(let(x * x), splat(f32(0.044715), lanes), splat(f32(1), lanes))
    u = let(let(x * splat(f32(2 * math.sqrt(2 / math.pi)), lanes)) * cubic)
    return x * sigmoid(u, lanes)


FUNCTIONS: dict[str, tuple[int, Function]] = {
    "add": (2, lambda n, a, b: a + b),
    "mul": (2, lambda n, a, b: a * b),
    "div": (2, lambda n, a, b: a / b),
    "silu": (1, _silu),
    "gelu": (1, lambda n, x: gelu(x, n)),
    "gelu_tanh": (1, _gelu_tanh),
    "tanh": (1, lambda n, x: tanh(x, n)),
    "sigmoid": (1, lambda n, x: sigmoid(x, n)),
    "relu": (1, lambda n, x: larger(splat(f32(0), n), x)),
    "copy": (1, lambda n, x: x),
    "swiglu": (2, lambda n, gate, up: let(_silu(n, gate)) * up),
    "geglu": (2, lambda n, gate, up: let(gelu(gate, n)) * up),
    "geglu_tanh": (2, lambda n, gate, up: let(_gelu_tanh(n, gate)) * up),
}
"""Functions of float32 vectors by name, with the number of their operands."""


def pointwise(
    function: str, k: int, isa: Isa, *, a: Rows | None = None, b: Rows | None = None, y: Rows | None = None
) -> Kernel:
    """y = function(a) or function(a, b) for rows of k columns; see `FUNCTIONS`.

    Pointers a, b (of two operands), y, all f32; y may be a or b where their rows are the same. Sizes rows, and period
    where an operand repeats. Rows are contiguous unless said otherwise.
    """
    arity, compute = FUNCTIONS[function]
    operands = {"a": a or Rows(k), "b": b or Rows(k)} if arity == 2 else {"a": a or Rows(k)}
    return _elementwise(kernel_name(function, k), k, isa, operands, y or Rows(k), compute)


def glu(function: str, m: int, isa: Isa) -> Kernel:
    """The product of an activated gate and the other half: x f32 [rows, 2 m] -> y f32 [rows, m].

    `function` is swiglu, geglu or geglu_tanh; the gate is the first m columns. Pointers x, y. Sizes rows.
    """
    _, compute = FUNCTIONS[function]
    halves = {"x": Rows(2 * m), "x ": Rows(2 * m, m)}  # two operands of one pointer
    return _elementwise(kernel_name(function, m, "merged"), m, isa, halves, Rows(m), compute)


def scale(k: int, factor: float, isa: Isa) -> Kernel:
    """y = a * factor: f32 [rows, k]. Pointers a, y, which may be the same. Sizes rows."""

    def compute(lanes: int, x: Expr) -> Expr:
        return x * splat(f32(factor), lanes)

    return _elementwise(kernel_name("scale", k, factor), k, isa, {"a": Rows(k)}, Rows(k), compute)


def cast(k: int, source: str, target: str, isa: Isa) -> Kernel:
    """y = x in another number type, to nearest even: [rows, k]; float32, float16 or uint16 (bfloat16 bits).

    Pointers x, y. Sizes rows.
    """

    def compute(lanes: int, x: Expr) -> Expr:
        return _narrow(let(widen(x, source, lanes)), target, lanes)

    return _elementwise(
        kernel_name("cast", k, source, target), k, isa, {"x": Rows(k)}, Rows(k), compute, source, target
    )


def _narrow(x: Expr, dtype: str, lanes: int) -> Expr:
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(vector("float16", lanes))
    assert dtype == "uint16", dtype

    def whole(value: int) -> Expr:
        return splat(const(value, "uint32"), lanes)

    word = let(bits(vector("uint32", lanes), x))
    odd = (word >> whole(16)) & whole(1)
    rounded = (word + whole(0x7FFF) + odd) >> whole(16)
    is_nan = (word & whole(0x7FFFFFFF)) > whole(0x7F800000)
    quiet = (word >> whole(16)) | whole(0x40)
    return tirx.Select(is_nan, quiet, rounded).astype(vector("uint16", lanes))


def _elementwise(
    name: str,
    k: int,
    isa: Isa,
    operands: dict[str, Rows],
    y: Rows,
    compute: Function,
    source: str = "float32",
    target: str = "float32",
) -> Kernel:
    """Operands are rows by pointer name; spaces after a name tell apart operands that share a pointer."""

    def body(f: Frame) -> None:
        def block(row: Expr, first: Expr, columns: int) -> None:
            starts = {key: let(rows.start(row, f) + first) for key, rows in operands.items()}
            out = let(y.start(row, f) + first)

            def piece(column: Expr, lanes: int) -> None:
                values = [let(load(f[key.strip()], start + column, lanes)) for key, start in starts.items()]
                store(f["y"], out + column, compute(lanes, *values), lanes)

            each_piece(columns, isa.lanes, piece)

        each_block(f, k, BLOCK, block)

    pointers = [Pointer(key, source) for key in operands if key == key.strip()] + [Pointer("y", target)]
    sizes = ("rows", "period") if any(rows.repeats for rows in operands.values()) else ("rows",)
    name = kernel_name(name, *operands.values(), y)
    strip = min(k, BLOCK) if y == Rows(k) else 0
    return Kernel(name, tuple(pointers), sizes, lambda s: s["rows"] * blocks(k, BLOCK), body, strip=strip)


def take_rows(k: int, dtype: str, isa: Isa) -> Kernel:
    """y[r] = x[ids[r]]: [*, k], i32[rows] -> [rows, k]. Pointers x, ids, y. Sizes rows."""
    return _moved(kernel_name("take_rows", k, dtype), k, dtype, isa, ("ids",), ("rows",), lambda f, row: f["ids"][row])


def take_token(k: int, index: int, isa: Isa) -> Kernel:
    """y[b] = x[b, index]: f32 [rows, period, k] -> f32 [rows, k]. Pointers x, y. Sizes rows, period."""
    name = kernel_name("take_token", k, index)
    return _moved(name, k, "float32", isa, (), ("rows", "period"), lambda f, row: row * f["period"] + index)


def copy_rows(k: int, dtype: str, isa: Isa) -> Kernel:
    """y[to + r] = x[start + r]: [*, k], for joining along the first axis. Pointers x, y. Sizes rows, start, to."""
    name = kernel_name("copy_rows", k, dtype)
    sizes = ("rows", "start", "to")
    return _moved(name, k, dtype, isa, (), sizes, lambda f, r: f["start"] + r, lambda f, r: f["to"] + r)


def _moved(
    name: str,
    k: int,
    dtype: str,
    isa: Isa,
    indices: tuple[str, ...],
    sizes: tuple[str, ...],
    source: Callable[[Frame, Expr], Expr],
    target: Callable[[Frame, Expr], Expr] | None = None,
) -> Kernel:
    """y[target(row)] = x[source(row)] for each row."""
    lanes = isa.lanes * (1 if dtype in ("float32", "int32") else 2)

    def body(f: Frame) -> None:
        def block(row: Expr, first: Expr, columns: int) -> None:
            start = let(source(f, row).astype("int64") * k + first)
            out = let((target(f, row) if target else row).astype("int64") * k + first)
            each_piece(columns, lanes, lambda c, n: store(f["y"], out + c, load(f["x"], start + c, n), n))

        each_block(f, k, BLOCK, block)

    pointers = (Pointer("x", dtype), *(Pointer(i, "int32") for i in indices), Pointer("y", dtype))
    return Kernel(name, pointers, sizes, lambda s: s["rows"] * blocks(k, BLOCK), body)


def prepend_row(k: int, isa: Isa) -> Kernel:
    """`row` before the rows of every batch item: x f32 [b, period - 1, k], row f32[k] -> y f32 [b, period, k].

    Pointers x, row, y. Sizes rows (b * period), period.
    """

    def body(f: Frame) -> None:
        def block(row: Expr, first: Expr, columns: int) -> None:
            out = let(row.astype("int64") * k + first)
            period = f["period"]
            start = let((row - row // period - 1).astype("int64") * k + first)

            def copy(source: Expr, start: Expr) -> None:
                each_piece(columns, isa.lanes, lambda c, n: store(f["y"], out + c, load(source, start + c, n), n))

            when(row % period == 0, lambda: copy(f["row"], first), lambda: copy(f["x"], start))

        each_block(f, k, BLOCK, block)

    pointers = tuple(Pointer(name, "float32") for name in ("x", "row", "y"))
    return Kernel(
        kernel_name("prepend_row", k), pointers, ("rows", "period"), lambda s: s["rows"] * blocks(k, BLOCK), body
    )


def mean_rows(k: int, isa: Isa, *, lengths: bool = False) -> Kernel:
    """y[b] = the mean of x[b, :period], or of x[b, :lengths[b]]: f32 [rows, period, k] -> f32 [rows, k].

    Pointers x, lengths i32[rows] (where wanted), y. Sizes rows, period. The rows are added in order; a length below 1
    counts as 1.
    """

    def body(f: Frame) -> None:
        def block(row: Expr, first: Expr, columns: int) -> None:
            start = let((row * f["period"]).astype("int64") * k + first)
            out = let(row.astype("int64") * k + first)
            count = let(tirx.max(f["lengths"][row], 1)) if lengths else f["period"]
            inverse = let(f32(1) / count.astype("float32"))

            def piece(column: Expr, lanes: int) -> None:
                at = let(out + column)
                store(f["y"], at, splat(f32(0), lanes), lanes)
                with T.serial(0, count) as i:
                    x = load(f["x"], start + i.astype("int64") * k + column, lanes)
                    store(f["y"], at, load(f["y"], at, lanes) + x, lanes)
                store(f["y"], at, load(f["y"], at, lanes) * splat(inverse, lanes), lanes)

            each_piece(columns, isa.lanes, piece)

        each_block(f, k, BLOCK, block)

    pointers = (Pointer("x", "float32"), *([Pointer("lengths", "int32")] if lengths else []), Pointer("y", "float32"))
    name = kernel_name("mean_rows", k, lengths)
    return Kernel(name, pointers, ("rows", "period"), lambda s: s["rows"] * blocks(k, BLOCK), body)
