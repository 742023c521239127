"""Products, activation quantization and embeddings on the CPU against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlc.backends.cpu.embed import embed
from mlc.backends.cpu.isa import Isa, host_isa
from mlc.backends.cpu.kernel import then
from mlc.backends.cpu.linear import Family
from mlc.backends.cpu.linear_float import linear_float
from mlc.backends.cpu.linear_quantized import linear_quantized, tilings
from mlc.backends.cpu.norm import add_rms_norm
from mlc.backends.cpu.pointwise import glu
from mlc.backends.cpu.quantize_rows import quantize_rows
from mlc.backends.layouts import layout_for, pack
from mlc.ir.arrays import QuantizedArray
from mlc.ir.types import Format, parse_format

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]

FAMILIES: tuple[Family, ...] = ("vector", "small", "matrix")
ROWS = (1, 2, 5, 17, 33)
FORMATS = (
    "q4_g32", "q4a_g32", "q8_g32", "q8a_g32", "q8_g16_f32", "q4a_g16_f32", "q4a_g128", "q8_g64",
    "q6_g32", "q6_g16", "q6a_g32_f32", "q6_g128", "q6_g16_i8", "q4a_g32_i8", "q8a_g64_i8",
)  # fmt: skip


def weights(n: int, k: int, format: Format, seed: int = 0) -> QuantizedArray:
    """Random numbers of every value that the format has."""
    random = np.random.default_rng(seed)
    parts: dict[str, Array] = {"q": random.integers(0, 1 << format.bits, (n, k), dtype=np.uint8)}
    if format.bits == 8 and format.symmetric:
        parts["q"] = parts["q"].view(np.int8)
    for name, (dtype, numbers) in list(format.parts.items())[1:]:
        shape = n, k // numbers
        if dtype == "i8":
            parts[name] = random.integers(-128, 128, shape, dtype=np.int8)
        else:
            sizes = random.standard_normal(shape) if name == "bias" else random.random(shape) + 0.1
            parts[name] = sizes.astype(np.float16 if dtype == "f16" else np.float32)
    array = QuantizedArray.of(parts, format)
    array.check()
    return array


def extreme_weights(w: QuantizedArray, k: int) -> None:
    """The least and the largest integers in the first four rows."""
    least, most = (-128, 127) if w.q.dtype == np.int8 else (0, (1 << w.format.bits) - 1)
    w.q[0], w.q[1], w.q[2], w.q[3] = least, most, [least, most] * (k // 2), [most, least] * (k // 2)


def float_weights(n: int, k: int, format: str, seed: int = 0) -> tuple[Array, Array]:
    """(as stored, as float64); bf16 is stored as its bits."""
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    if format == "bf16":
        stored = (w.view(np.uint32) >> 16).astype(np.uint16)
        return stored, (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    stored = w.astype(np.float16 if format == "f16" else np.float32)
    return stored, stored.astype(np.float64)


def quantized_rows(x: Array, group: int) -> dict[str, Array]:
    """What the `quantize_rows` kernel makes of x, by numpy in float32."""
    grouped = x.astype(np.float32).reshape(len(x), -1, group)
    peak = np.abs(grouped).max(-1)
    usable = peak > np.float32(1e-30)
    inverse = np.where(usable, np.float32(127) / np.where(usable, peak, 1), 0).astype(np.float32)
    q = np.rint(grouped * inverse[..., None])
    scale = np.where(usable, peak / np.float32(127), 0).astype(np.float32)
    return {"x": q.astype(np.int8).reshape(x.shape), "x_scale": scale, "x_sum": q.sum(-1).astype(np.float32) * scale}


def quantized_operands(w: QuantizedArray, isa: Isa) -> dict[str, Array]:
    parts = pack(w, layout_for(isa, w.format))
    return {"w" if name == "q" else f"w_{name}": part for name, part in parts.items()}


def dequantized_rows(x: dict[str, Array]) -> Array:
    groups = x["x_scale"].shape[1]
    wide = x["x"].astype(np.float64).reshape(len(x["x"]), groups, -1) * x["x_scale"][..., None].astype(np.float64)
    return wide.reshape(x["x"].shape)


def relative_error(got: Array, expected: Array) -> float:
    assert np.isfinite(got).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def check_quantized(
    run: Run, n: int, k: int, format: Format, isa: Isa, families: tuple[Family, ...] = FAMILIES
) -> None:
    """Kernel families against float64, and against each other bit for bit."""
    w = weights(n, k, format, seed=n)
    x = quantized_rows(np.random.default_rng(k).standard_normal((max(ROWS), k)), format.group)
    operands = quantized_operands(w, isa)
    expected = dequantized_rows(x) @ w.dequantize().astype(np.float64).T
    kernels = {family: linear_quantized(n, k, format, isa, family) for family in families}
    first: Array | None = None
    for rows in reversed(ROWS):
        for family, kernel in kernels.items():
            inputs = {name: part[:rows] for name, part in x.items()} | operands
            y = run(kernel, inputs, {"rows": rows}, outputs={"y": ((rows, n), np.float32)}, isa=isa)["y"]
            assert relative_error(y, expected[:rows]) < 1e-5
            first = y if first is None else first
            assert y.tobytes() == first[:rows].tobytes(), f"{family} of {rows} rows differs"


@pytest.mark.parametrize(("n", "k"), [(1, 32), (7, 96), (33, 64), (100, 1024)])
def test_every_family_multiplies_q4_as_float64_does_with_the_same_bits(run_kernel: Run, n: int, k: int) -> None:
    check_quantized(run_kernel, n, k, Format(4), host_isa())


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("format", ["q4_g32", "q4a_g32_i8", "q6_g32", "q8_g32"])
def test_every_tiling_gives_the_same_bits(run_kernel: Run, runnable: list[Isa], format: str, family: Family) -> None:
    parsed, rows = parse_format(format), 23
    assert parsed
    k = 2 * parsed.width_unit
    for isa in runnable if (format, family) == ("q4_g32", "matrix") else [host_isa()]:
        n = 7 * isa.lanes + 3  # no whole number of tiles, in neither direction
        x = quantized_rows(np.random.default_rng(0).standard_normal((rows, k)), parsed.group)
        inputs = x | quantized_operands(weights(n, k, parsed), isa)
        kernels = [linear_quantized(n, k, parsed, isa, "vector")]
        kernels += [linear_quantized(n, k, parsed, isa, family, tiling=t) for t in tilings(isa, parsed, family)]
        assert len({kernel.name for kernel in kernels}) == len(kernels)
        first, *others = (
            run_kernel(kernel, inputs, {"rows": rows}, outputs={"y": ((rows, n), np.float32)}, isa=isa)["y"].tobytes()
            for kernel in kernels
        )
        for kernel, other in zip(kernels[1:], others, strict=True):
            assert other == first, (isa.name, kernel.name)


@pytest.mark.parametrize("format", FORMATS[1:])
def test_every_quantized_format_multiplies_as_float64_does(run_kernel: Run, format: str) -> None:
    parsed = parse_format(format)
    assert parsed
    check_quantized(run_kernel, 33, 3 * parsed.width_unit, parsed, host_isa())


@pytest.mark.parametrize("format", ["q4_g32", "q6_g32", "q8_g32", "q8a_g32", "q6_g16_i8", "q4a_g32_i8"])
def test_every_instruction_set_multiplies_as_float64_does(run_kernel: Run, runnable: list[Isa], format: str) -> None:
    parsed = parse_format(format)
    assert parsed
    for isa in runnable[1:]:
        check_quantized(run_kernel, 17, max(64, parsed.width_unit), parsed, isa, ("vector", "matrix"))


@pytest.mark.parametrize("format", ["q4_g128", "q6_g128", "q6_g16", "q8_g32", "q8a_g32"])
def test_the_largest_integers_do_not_overflow(run_kernel: Run, runnable: list[Isa], format: str) -> None:
    parsed = parse_format(format)
    assert parsed
    n, k = 4, 128
    for isa in runnable:
        w = weights(n, k, parsed)
        extreme_weights(w, k)
        x = quantized_rows(np.array([[1.0] * k, [-1.0] * k, [1.0, -1.0] * (k // 2)]), parsed.group)
        assert np.abs(x["x"]).min() == 127
        y = run_kernel(
            linear_quantized(n, k, parsed, isa, "vector"),
            x | quantized_operands(w, isa),
            {"rows": 3},
            outputs={"y": ((3, n), np.float32)},
            isa=isa,
        )["y"]
        assert relative_error(y, dequantized_rows(x) @ w.dequantize().astype(np.float64).T) < 1e-5, isa.name


@pytest.mark.parametrize(("n", "k", "format"), [(1, 1, "f32"), (7, 30, "f16"), (33, 65, "bf16"), (100, 257, "f32")])
def test_every_family_multiplies_floats_as_float64_does_with_the_same_bits(
    run_kernel: Run, runnable: list[Isa], n: int, k: int, format: str
) -> None:
    stored, exact = float_weights(n, k, format, seed=n)
    x = np.random.default_rng(k).standard_normal((max(ROWS), k)).astype(np.float32)
    expected = x.astype(np.float64) @ exact.T
    for isa in runnable if n == 33 else runnable[:1]:
        operands = {"w": pack(stored, layout_for(isa, None))["w"]}
        first: Array | None = None
        for family in FAMILIES if isa is runnable[0] else ("vector", "matrix"):
            kernel = linear_float(n, k, format, isa, family)
            for rows in (33, 17, 2, 1):
                y = run_kernel(
                    kernel,
                    {"x": x[:rows]} | operands,
                    {"rows": rows},
                    outputs={"y": ((rows, n), np.float32)},
                    isa=isa,
                )["y"]
                scale = np.abs(x[:rows].astype(np.float64)) @ np.abs(exact).T
                assert (np.abs(y - expected[:rows]) <= 1e-5 * scale).all(), (isa.name, family, rows)
                first = y if first is None else first
                assert y.tobytes() == first[:rows].tobytes(), (isa.name, family, rows)


@pytest.mark.parametrize("n", [32, 37])
@pytest.mark.parametrize("quantized", [True, False])
def test_a_bias_is_added_and_then_the_residual_which_y_may_replace(run_kernel: Run, n: int, quantized: bool) -> None:
    isa, k, rows = host_isa(), 64, 3
    random = np.random.default_rng(1)
    bias, residual = random.standard_normal(n).astype(np.float32), random.standard_normal((rows, n)).astype(np.float32)
    x: dict[str, Array] = {"x": random.standard_normal((rows, k)).astype(np.float32)}
    if quantized:
        format, x = Format(4), quantized_rows(x["x"], 32)
        operands = x | quantized_operands(weights(n, k, format), isa)
        plain = linear_quantized(n, k, format, isa, "small")
        full = linear_quantized(n, k, format, isa, "small", bias=True, accumulate=True)
    else:
        operands = x | {"w": pack(float_weights(n, k, "f16")[0], layout_for(isa, None))["w"]}
        plain = linear_float(n, k, "f16", isa, "small")
        full = linear_float(n, k, "f16", isa, "small", bias=True, accumulate=True)
    sizes, outputs = {"rows": rows}, {"y": ((rows, n), np.float32)}
    product = run_kernel(plain, operands, sizes, outputs=outputs)["y"]
    apart = run_kernel(full, operands | {"bias": bias, "residual": residual}, sizes, outputs=outputs)["y"]
    assert apart.tobytes() == ((product + bias) + residual).tobytes()
    shared = run_kernel(full, operands | {"bias": bias, "residual": "y", "y": residual}, sizes, outputs=outputs)["y"]
    assert shared.tobytes() == apart.tobytes()


@pytest.mark.parametrize("group", [16, 32, 128])
def test_rows_are_quantized_as_numpy_does_in_float32(run_kernel: Run, runnable: list[Isa], group: int) -> None:
    k = 3 * group
    x = np.random.default_rng(0).standard_normal((5, k)).astype(np.float32)
    x[1, :group] = 0
    x[2, :group] = 1e-38  # 127 / peak would be infinite
    x[3] *= 1e30
    expected = quantized_rows(x, group)
    shape = x.shape[0], x.shape[1] // group
    outputs = {"q": (x.shape, np.int8), "scale": (shape, np.float32), "sum": (shape, np.float32)}
    for isa in runnable:
        got = run_kernel(quantize_rows(k, group, isa), {"x": x}, {"rows": 5}, outputs=outputs, isa=isa)
        for name, other in (("q", "x"), ("scale", "x_scale"), ("sum", "x_sum")):
            assert got[name].tobytes() == expected[other].tobytes(), (isa.name, name)


@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("maker", ["glu", "norm"])
def test_rows_quantized_as_they_are_made_are_those_quantized_later(
    run_kernel: Run, runnable: list[Isa], maker: str, group: int
) -> None:
    k = 1088  # two strips and a rest
    random = np.random.default_rng(group)
    if maker == "glu":
        given = {"x": random.standard_normal((5, 2 * k)).astype(np.float32)}
    else:
        given = {name: random.standard_normal((5, k)).astype(np.float32) for name in ("x", "residual")}
        given["weight"] = random.standard_normal(k).astype(np.float32)
    made = {"y": ((5, k), np.float32)} | ({} if maker == "glu" else {"total": ((5, k), np.float32)})
    shape = 5, k // group
    quantized = {"q": ((5, k), np.int8), "scale": (shape, np.float32), "sum": (shape, np.float32)}
    for isa in runnable:
        first = glu("swiglu", k, isa) if maker == "glu" else add_rms_norm(k, 1e-6, isa)
        both = then(first, quantize_rows(k, group, isa, first.strip))
        apart = run_kernel(first, given, {"rows": 5}, outputs=made, isa=isa)
        got = run_kernel(both, given, {"rows": 5}, outputs=made | quantized, isa=isa)
        expected = quantized_rows(apart["y"], group)
        for name, array in apart.items():
            assert got[name].tobytes() == array.tobytes(), (isa.name, name)
        for name, other in (("q", "x"), ("scale", "x_scale"), ("sum", "x_sum")):
            assert got[name].tobytes() == expected[other].tobytes(), (isa.name, name)


@pytest.mark.parametrize("format", FORMATS)
def test_embeddings_are_rows_of_the_packed_quantized_weight(run_kernel: Run, runnable: list[Isa], format: str) -> None:
    parsed = parse_format(format)
    assert parsed
    n, k = 37, 2 * parsed.width_unit
    ids = np.array([0, 36, 15, 16, 7, 36], np.int32)
    w = weights(n, k, parsed)
    for isa in {i.signed_bytes: i for i in runnable}.values():
        y = run_kernel(
            embed(k, parsed, layout_for(isa, parsed)),
            {"ids": ids} | quantized_operands(w, isa),
            {"rows": len(ids)},
            outputs={"y": ((len(ids), k), np.float32)},
            isa=isa,
        )["y"]
        assert relative_error(y, w.dequantize()[ids]) < 1e-6, isa.name


@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_embeddings_are_rows_of_the_packed_float_weight(run_kernel: Run, runnable: list[Isa], format: str) -> None:
    stored, exact = float_weights(37, 30, format)
    ids = np.array([36, 0, 31, 32], np.int32)
    for isa in {i.float_rows: i for i in runnable}.values():
        layout = layout_for(isa, None)
        operands = {"ids": ids, "w": pack(stored, layout)["w"]}
        y = run_kernel(embed(30, format, layout), operands, {"rows": 4}, outputs={"y": ((4, 30), np.float32)}, isa=isa)[
            "y"
        ]
        assert np.array_equal(y, exact[ids]), isa.name
