"""Activations to 8 bits: the operand of every quantized product on the CPU."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import bits, const, f32, intrinsic, let, load, reduce_add_int, rint, splat, store
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .rows import blocks, each_block
from .tiles import kernel_name


def quantize_rows(k: int, group: int, isa: Isa, strip: int = 0) -> Kernel:
    """x f32[rows, k] -> q int8[rows, k], scale f32[rows, k / group], sum f32[rows, k / group].

    An item is a row, or `strip` columns of one, a multiple of `group`.

    For each group of `group` neighbours: scale = max|x| / 127, q = rint(x * (127 / max|x|)), sum = scale * (q
    added up). A group whose greatest magnitude is below 1e-30 becomes zeros; one with a NaN gets a NaN scale.
    """

    strip = strip or k
    assert strip % group == 0

    def body(f: Frame) -> None:
        def block(row: Expr, first: Expr, columns: int) -> None:
            before = let(row.astype("int64") * (k // group) + first // group)
            with T.serial(0, columns // group) as number:
                g = let(before + number)
                values = [let(load(f["x"], g * group + i * isa.lanes, isa.lanes)) for i in range(group // isa.lanes)]
                quantize_group(values, f["q"], f["scale"], f["sum"], g, isa)

        each_block(f, k, strip, block)

    pointers = Pointer("x", "float32"), Pointer("q", "int8"), Pointer("scale", "float32"), Pointer("sum", "float32")
    name = kernel_name("quantize_rows", k, group, strip)
    return Kernel(name, pointers, ("rows",), lambda sizes: sizes["rows"] * blocks(k, strip), body)


def quantize_group(values: list[Expr], q: Expr, scale: Expr, total: Expr, g: Expr, isa: Isa) -> None:
    """Write group number `g`, whose float32 vectors are `values`, as `quantize_rows` lays it out.

    Every kernel that quantizes what it computed (a norm, an activation) ends with this, so all agree bit for bit.
    """
    lanes = isa.lanes
    # Floats of one sign compare as integers do, in one instruction and with NaN on top.
    magnitudes = [bits(f"int32x{lanes}", v) & splat(const(0x7FFFFFFF), lanes) for v in values]
    while len(magnitudes) > 1:
        magnitudes = [let(tirx.max(a, b)) for a, b in zip(magnitudes[::2], magnitudes[1::2], strict=True)]
    peak = let(bits("float32", intrinsic("int32", "llvm.vector.reduce.smax", magnitudes[0])))
    tiny = peak < f32(1e-30)  # 127 / peak could overflow
    inverse = let(tirx.Select(tiny, f32(0), f32(127) / peak))
    step = let(tirx.Select(tiny, f32(0), peak / f32(127)))
    T.buffer_store(scale, step, [g])
    added = None
    for i, v in enumerate(values):
        rounded = let(rint(v * splat(inverse, lanes)).astype(f"int32x{lanes}"))
        store(q, g * (len(values) * lanes) + i * lanes, rounded.astype(f"int8x{lanes}"), lanes)
        added = rounded if added is None else added + rounded
    T.buffer_store(total, reduce_add_int(added).astype("float32") * step, [g])
