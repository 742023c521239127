"""Shorthand for writing kernels in TIR: vector loads, LLVM intrinsics, register accumulators, polynomials.

Python loops unroll, `T.serial` loops do not. Every value with several uses is bound by `let`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

Expr = Any


def const(value: float, dtype: str = "int32") -> Expr:
    return tirx.const(value, dtype)


def f32(value: float) -> Expr:
    return tirx.const(float(value), "float32")


def let(value: Expr) -> Expr:
    """Bind `value` to a name, so that it is computed once."""
    return T.Bind(value)


def dtype_of(value: Expr) -> str:
    return str(value.ty.dtype)


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """A pure LLVM intrinsic by its name."""
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def load(buffer: Expr, index: Expr, lanes: int) -> Expr:
    """`lanes` consecutive elements from `index`."""
    return buffer[tirx.Ramp(index, 1, lanes)] if lanes > 1 else buffer[index]


def store(buffer: Expr, index: Expr, value: Expr, lanes: int) -> None:
    T.buffer_store(buffer, value, [tirx.Ramp(index, 1, lanes) if lanes > 1 else index])


def splat(value: Expr, lanes: int) -> Expr:
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def bits(dtype: str, value: Expr) -> Expr:
    """The same bits as another type."""
    return tirx.reinterpret(dtype, value)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c, rounded once where the machine can, everywhere in the same way."""
    return intrinsic(dtype_of(a), "llvm.fmuladd", a, b, c)  # llvm.fma would call libm on a machine without


def rint(a: Expr) -> Expr:
    """Nearest integer, ties to even, still as float."""
    return intrinsic(dtype_of(a), "llvm.rint", a)


def reduce_add_int(v: Expr) -> Expr:
    return intrinsic("int32", "llvm.vector.reduce.add", v)


def prefetch(buffer: Expr, index: Expr, level: int = 1) -> None:
    """Ask for the cache line of `buffer[index]`, to be read soon, into the cache of this level."""
    arguments = tirx.address_of(buffer[index]), const(0), const(4 - level), const(1)
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", *arguments))


def widen(value: Expr, dtype: str, lanes: int) -> Expr:
    """`value` (float32, float16, int8, or uint16 holding bfloat16 bits) as float32."""
    if dtype == "float32":
        return value
    if dtype == "int8":
        return value.astype(vector("int32", lanes)).astype(vector("float32", lanes))
    if dtype == "float16":
        return value.astype(vector("float32", lanes))
    assert dtype == "uint16", dtype
    shifted = value.astype(vector("uint32", lanes)) << splat(const(16, "uint32"), lanes)
    return bits(vector("float32", lanes), shifted)


def vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def stack(count: int, dtype: str) -> Expr:
    """`count` uninitialized elements on the stack, a few KB at most."""
    # Without the annotation TVM takes local memory of a KB and more from its heap, which private functions cannot.
    return T.alloc_buffer((count,), dtype, annotations={"disable_lower_builtin": True})


class Registers:
    """`count` vector accumulators. Every index is a Python int, so LLVM keeps them in registers."""

    def __init__(self, count: int, dtype: str, lanes: int) -> None:
        self.count, self.lanes, self.dtype = count, lanes, dtype
        self.buffers = [stack(lanes, dtype) for _ in range(count)]

    def __getitem__(self, i: int) -> Expr:
        return load(self.buffers[i], 0, self.lanes)

    def __setitem__(self, i: int, value: Expr) -> None:
        store(self.buffers[i], 0, value, self.lanes)

    def clear(self) -> None:
        zero = const(0, self.dtype)
        for i in range(self.count):
            self[i] = splat(zero, self.lanes)


def exp(x: Expr, lanes: int) -> Expr:
    """e^x for -87 <= x <= 88 on a float32 vector, relative error 2e-7 (Cephes expf); llvm.exp becomes scalar calls.

    Below -87 the result is that of -87 (1.6e-38).
    """

    def s(value: float) -> Expr:
        return splat(f32(value), lanes)

    x = let(tirx.min(s(88.0), let(tirx.max(s(-87.0), x))))  # one instruction each; a NaN stays a NaN
    n = let(rint(x * s(1.44269504088896341)))
    r = let(fma(n, s(2.12194440e-4), fma(n, s(-0.693359375), x)))
    p = s(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(p, r, s(c))
    p = fma(p, r * r, r) + s(1.0)
    scale = (n.astype(vector("int32", lanes)) + splat(const(127), lanes)) << splat(const(23), lanes)
    return p * bits(vector("float32", lanes), scale)


def pin(value: Expr) -> Expr:
    """`value` itself, computed here: LLVM neither reorders pinned values nor looks through them.

    It costs no instruction. Left alone, LLVM's scheduler takes apart a register tile, one accumulator after another,
    and keeps all operands of the others on the stack meanwhile.
    """
    kind = dtype_of(value)
    return tirx.call_extern(kind, f"mlc_pin_{kind}", value)


def _pin_ir(number: str, lanes: int) -> str:
    kind = f"<{lanes} x {number.replace('int', 'i')}>"
    return f"""
define {kind} @mlc_pin_{number}x{lanes}({kind} %value) alwaysinline nounwind {{
  %same = call {kind} asm sideeffect "", "=v,0"({kind} %value)
  ret {kind} %same
}}
"""


PINS = "".join(_pin_ir(number, lanes) for number, lanes in (("int16", 16), ("int16", 32), ("int32", 8), ("int32", 16)))
"""LLVM IR text of what `pin` calls: for integers in AVX2's and AVX-512's registers."""


def when(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None] | None = None) -> None:
    with T.If(condition):
        with T.Then():
            then()
        if otherwise is not None:
            with T.Else():
                otherwise()


def opaque(value: Expr) -> Expr:
    """`value`, an int32, which TVM's simplifier does not look through: it takes very long for chains of selections."""
    cell = stack(1, "int32")
    T.buffer_store(cell, value, [0])
    return let(cell[0])
