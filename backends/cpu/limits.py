"""What this machine can do at most, as kernels: read memory, multiply bytes, multiply floats. Nothing else is slower.

Each runs through the walker and its threads like the kernels of a model, so that a share of such a limit is a fair one.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from .emit import Registers, fma, let, load, store
from .isa import Dot, Isa
from .kernel import Expr, Frame, Kernel, Pointer

SLICE = 2 << 20  # bytes that a thread reads as one item
STREAMS = 4  # places of a slice that are read at once: a core's prefetchers follow several better than one
OPERANDS = 16 << 10  # bytes of the operands of arithmetic: they stay in the first-level cache
STEPS = 256  # rounds of an item of arithmetic
_DEPTH = 8  # operand vectors of a round, for each column of the tile
_LINE = 64  # bytes


def read(isa: Isa) -> Kernel:
    """Reads `pool` int32 from end to end. Pointers: pool [slices * SLICE / 4], out [slices * lanes]."""
    lanes, words = isa.lanes, SLICE // 4
    line = _LINE // 4 // lanes or 1  # vectors of a cache line

    def item(f: Frame, i: Expr) -> None:
        base = let(i.astype("int64") * words)
        sums = Registers(STREAMS * line, "int32", lanes)
        sums.clear()
        with T.serial(0, words // STREAMS // (line * lanes)) as step:
            for s in range(STREAMS):
                for v in range(line):
                    at = base + (s * (words // STREAMS) + step * (line * lanes) + v * lanes)
                    sums[s * line + v] = sums[s * line + v] + load(f["pool"], at, lanes)
        _keep(f, i, sums, lanes)

    return _kernel("limit_read", ("pool", "int32"), "int32", item)


def multiply_bytes(isa: Isa, pairs: int) -> Kernel:
    """Products of unsigned weights below 16 and signed bytes, `pairs` (1 or 8) of them added before they are widened.

    Where the instruction set adds in int32 at once, that makes no difference. Pointers: operands int8 [OPERANDS],
    out int32 [items * lanes]. An item is `byte_operations` operations.
    """
    lanes, (wide, high) = isa.lanes, _byte_tile(isa)
    size = 4 * lanes

    def item(f: Frame, i: Expr) -> None:
        weights = [let(load(f["operands"], v * size, size).astype(f"uint8x{size}")) for v in range(wide)]
        sums = Registers(wide * high, "int32", lanes)
        _start(f["operands"], sums)
        with T.serial(0, STEPS) as step:
            dots: list[Dot] = []
            for depth in range(_DEPTH):
                if depth % pairs == 0:
                    dots = [Dot(isa, sums[k], weight_bits=4) for k in range(wide * high)]
                for row in range(high):
                    at = (step % 4 * _DEPTH + depth) * high + row
                    values = let(load(f["operands"], at * size, size))
                    for v in range(wide):
                        dots[row * wide + v].add(weights[v], values)
                if (depth + 1) % pairs == 0:
                    for k, dot in enumerate(dots):
                        sums[k] = dot.total()
        _keep(f, i, sums, lanes)

    return _kernel(f"limit_bytes_{pairs}", ("operands", "int8"), "int32", item)


def byte_operations(isa: Isa) -> int:
    """Multiplications and additions of one item of `multiply_bytes`."""
    wide, high = _byte_tile(isa)
    return 2 * STEPS * _DEPTH * wide * high * 4 * isa.lanes


def _byte_tile(isa: Isa) -> tuple[int, int]:
    """Weights and values held against each other: enough sums to hide the latency of the product."""
    return (3, 4) if isa.dot in ("vnni", "avx_vnni", "neon") else (2, 2)


_FLOAT_TILE = (3, 4)


def multiply_floats(isa: Isa) -> Kernel:
    """Fused multiplications and additions. Pointers: operands f32 [OPERANDS / 4], out f32 [items * lanes]."""
    lanes, (wide, high) = isa.lanes, _FLOAT_TILE

    def item(f: Frame, i: Expr) -> None:
        factors = [let(load(f["operands"], v * lanes, lanes)) for v in range(wide)]
        sums = Registers(wide * high, "float32", lanes)
        _start(f["operands"], sums)
        with T.serial(0, STEPS) as step:
            for depth in range(_DEPTH):
                for row in range(high):
                    values = let(load(f["operands"], ((step % 4 * _DEPTH + depth) * high + row) * lanes, lanes))
                    for v in range(wide):
                        sums[row * wide + v] = fma(values, factors[v], sums[row * wide + v])
        _keep(f, i, sums, lanes)

    return _kernel("limit_floats", ("operands", "float32"), "float32", item)


def float_operations(isa: Isa) -> int:
    """Multiplications and additions of one item of `multiply_floats`."""
    return 2 * STEPS * _DEPTH * _FLOAT_TILE[0] * _FLOAT_TILE[1] * isa.lanes


def _kernel(name: str, source: tuple[str, str], out: str, item: Callable[[Frame, Expr], None]) -> Kernel:
    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as i:
            item(f, i)

    return Kernel(
        name, (Pointer(*source), Pointer("out", out)), ("items",), lambda sizes: sizes["items"], body, grain=1
    )


def _start(operands: Expr, sums: Registers) -> None:
    """Sums that begin alike would be computed once."""
    for k in range(sums.count):
        sums[k] = let(load(operands, 64 * k, sums.lanes).astype(f"{sums.dtype}x{sums.lanes}"))


def _keep(f: Frame, i: Expr, sums: Registers, lanes: int) -> None:
    """Write the sums' sum, so that nothing can be left out."""
    total = sums[0]
    for k in range(1, sums.count):
        total = let(total + sums[k])
    store(f["out"], i * lanes, total, lanes)
