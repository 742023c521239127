"""Elementwise kernels and those that move rows, against torch in float64 and numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mlc.backends.cpu.isa import ISAS, Isa
from mlc.backends.cpu.pointwise import (
    FUNCTIONS,
    cast,
    copy_rows,
    glu,
    mean_rows,
    pointwise,
    prepend_row,
    scale,
    take_rows,
    take_token,
)
from mlc.backends.cpu.rows import Rows
from mlc.backends.tvm.build import assembly

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]
WIDTHS = (1, 7, 100, 700, 1024)


def gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate=approximate)


ORACLES: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "div": torch.div,
    "silu": torch.nn.functional.silu,
    "gelu": lambda x: gelu(x, "none"),
    "gelu_tanh": lambda x: gelu(x, "tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "copy": lambda x: x,
    "swiglu": lambda gate, up: torch.nn.functional.silu(gate) * up,
    "geglu": lambda gate, up: gelu(gate, "none") * up,
    "geglu_tanh": lambda gate, up: gelu(gate, "tanh") * up,
}


def numbers(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(np.float32)


def expected(function: str, *operands: Array) -> Array:
    result: Array = ORACLES[function](*(torch.tensor(x, dtype=torch.float64) for x in operands)).numpy()
    return result


def f32(*shape: int) -> tuple[tuple[int, ...], Any]:
    return shape, np.float32


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_equal_torch_over_their_whole_range(run_kernel: Run, isa: Isa, function: str) -> None:
    edges = np.array([0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 5, -5, 20, -20, 200, -200, 1e30, -1e30], np.float32)
    x = np.concatenate([edges, np.linspace(-12, 12, 2000, dtype=np.float32)])[None]
    operands = [x, numbers(*x.shape)][: FUNCTIONS[function][0]]
    inputs = dict(zip("ab", operands, strict=False))
    kernel = pointwise(function, x.size, isa)
    y = run_kernel(kernel, inputs, {"rows": 1}, outputs={"y": f32(*x.shape)}, isa=isa)["y"]
    np.testing.assert_allclose(y, expected(function, *operands), rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh", "tanh", "sigmoid"])
def test_nan_stays_nan(run_kernel: Run, isa: Isa, function: str) -> None:
    x = np.full((1, 19), np.nan, np.float32)
    y = run_kernel(pointwise(function, 19, isa), {"a": x}, {"rows": 1}, outputs={"y": f32(1, 19)}, isa=isa)["y"]
    assert np.isnan(y).all()


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("rows", [1, 6])
def test_operands_may_be_slices_repeated_rows_and_one_row(run_kernel: Run, isa: Isa, k: int, rows: int) -> None:
    a, table, bias = numbers(rows, k + 9), numbers(3, k, seed=1), numbers(k, seed=2)
    kernel = pointwise("add", k, isa, a=Rows(k + 9, 4), b=Rows(k, repeats=True))
    sizes, outputs = {"rows": rows, "period": 3}, {"y": f32(rows, k)}
    y = run_kernel(kernel, {"a": a, "b": table}, sizes, outputs=outputs, isa=isa)["y"]
    np.testing.assert_array_equal(y, a[:, 4 : 4 + k] + table[np.arange(rows) % 3])
    wide = numbers(rows, k + 2, seed=3)  # y goes into its columns 2 .. k + 2
    kernel = pointwise("mul", k, isa, b=Rows(0), y=Rows(k + 2, 2))
    inputs = {"a": y, "b": bias, "y": wide}
    got = run_kernel(kernel, inputs, {"rows": rows}, outputs={"y": f32(rows, k + 2)}, isa=isa)["y"]
    np.testing.assert_array_equal(got, np.concatenate([wide[:, :2], y * bias], 1))


@pytest.mark.parametrize("m", [7, 700])
@pytest.mark.parametrize("function", ["swiglu", "geglu", "geglu_tanh"])
def test_gated_units_read_both_halves_of_a_row(run_kernel: Run, isa: Isa, m: int, function: str) -> None:
    x = numbers(3, 2 * m)
    y = run_kernel(glu(function, m, isa), {"x": x}, {"rows": 3}, outputs={"y": f32(3, m)}, isa=isa)["y"]
    np.testing.assert_allclose(y, expected(function, x[:, :m], x[:, m:]), rtol=2e-6, atol=2e-6)


def test_functions_may_work_in_place(run_kernel: Run, isa: Isa) -> None:
    x, b = numbers(3, 100), numbers(3, 100, seed=1)
    kernel = pointwise("add", 100, isa)
    got = run_kernel(kernel, {"a": x, "b": b, "y": "a"}, {"rows": 3}, outputs={"a": f32(3, 100)}, isa=isa)["a"]
    np.testing.assert_array_equal(got, x + b)
    got = run_kernel(scale(100, 0.3, isa), {"a": x, "y": "a"}, {"rows": 3}, outputs={"a": f32(3, 100)}, isa=isa)["a"]
    np.testing.assert_array_equal(got, x * np.float32(0.3))


STORED = {"float32": torch.float32, "float16": torch.float16, "uint16": torch.bfloat16}


@pytest.mark.parametrize("source", STORED)
@pytest.mark.parametrize("target", STORED)
def test_casts_round_to_nearest_even_like_torch(run_kernel: Run, isa: Isa, source: str, target: str) -> None:
    edges = [0.0, -0.0, 1e-45, 6e-8, 65504, 65520, 1e38, 3.4e38, np.inf, -np.inf, np.nan]
    halves = (0x3F800000 + 0x1000 * np.arange(32, dtype=np.uint32)).view(np.float32)  # ties of both kinds
    values = torch.tensor(np.concatenate([np.array(edges, np.float32), halves, numbers(59)]))
    x = values.to(STORED[source])
    y = x.float().to(STORED[target])

    def stored(t: torch.Tensor) -> Array:
        bits: Array = t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()
        return bits[None]

    outputs = {"y": ((1, len(x)), target)}
    got = run_kernel(cast(len(x), source, target, isa), {"x": stored(x)}, {"rows": 1}, outputs=outputs, isa=isa)["y"]
    nan = torch.isnan(y).numpy()[None]
    back = torch.tensor(got.view(np.int16)).view(torch.bfloat16) if target == "uint16" else torch.tensor(got)
    np.testing.assert_array_equal(torch.isnan(back.float()).numpy(), nan)
    np.testing.assert_array_equal(got[~nan], stored(y)[~nan])


@pytest.mark.parametrize("k", [1, 7, 100, 1100])
def test_rows_are_taken_copied_and_prepended(run_kernel: Run, isa: Isa, k: int) -> None:
    x, ids = numbers(10, k), np.array([9, 0, 3, 3], np.int32)
    inputs = {"x": x, "ids": ids}
    y = run_kernel(take_rows(k, "float32", isa), inputs, {"rows": 4}, outputs={"y": f32(4, k)}, isa=isa)["y"]
    np.testing.assert_array_equal(y, x[ids])
    half = x.astype(np.float16)
    copied, sizes = {"y": ((10, k), np.float16)}, {"rows": 4, "start": 2, "to": 5}
    before = np.zeros_like(half)
    got = run_kernel(copy_rows(k, "float16", isa), {"x": half, "y": before}, sizes, outputs=copied, isa=isa)["y"]
    np.testing.assert_array_equal(got, np.concatenate([before[:5], half[2:6], before[:1]]))
    sizes, outputs = {"rows": 2 * 6, "period": 6}, {"y": f32(2, 6, k)}
    first = numbers(k, seed=5)
    y = run_kernel(prepend_row(k, isa), {"x": x, "row": first}, sizes, outputs=outputs, isa=isa)["y"]
    np.testing.assert_array_equal(y[:, 1:], x.reshape(2, 5, k))
    np.testing.assert_array_equal(y[:, 0], np.stack([first, first]))


@pytest.mark.parametrize("k", [1, 7, 100, 1100])
def test_one_token_or_the_mean_of_all(run_kernel: Run, isa: Isa, k: int) -> None:
    x, lengths = numbers(3, 5, k), np.array([5, 1, 3], np.int32)
    sizes, outputs = {"rows": 3, "period": 5}, {"y": f32(3, k)}
    y = run_kernel(take_token(k, 2, isa), {"x": x}, sizes, outputs=outputs, isa=isa)["y"]
    np.testing.assert_array_equal(y, x[:, 2])
    y = run_kernel(mean_rows(k, isa), {"x": x}, sizes, outputs=outputs, isa=isa)["y"]
    np.testing.assert_allclose(y, x.mean(1, dtype=np.float64), rtol=1e-6, atol=1e-6)
    inputs = {"x": x, "lengths": lengths}
    y = run_kernel(mean_rows(k, isa, lengths=True), inputs, sizes, outputs=outputs, isa=isa)["y"]
    means = [x[i, :n].mean(0, dtype=np.float64) for i, n in enumerate(lengths)]
    np.testing.assert_allclose(y, means, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["neon", "x86_64", "aarch64"])
def test_functions_compile_for_other_machines(name: str) -> None:
    isa = ISAS[name]
    kernels = [pointwise(function, 100, isa) for function in FUNCTIONS]
    assert assembly([*kernels, cast(7, "float16", "uint16", isa), mean_rows(33, isa)], isa)
