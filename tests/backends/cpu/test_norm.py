"""Norms, rotation and the fused step between the q/k/v product and attention, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mlc.backends.cpu.isa import ISAS, Isa
from mlc.backends.cpu.kv import kv_append
from mlc.backends.cpu.norm import add_rms_norm, layer_norm, rms_norm
from mlc.backends.cpu.rope import Rotation, qkv_finish, rope
from mlc.backends.cpu.rows import Rows
from mlc.backends.tvm.build import assembly

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]
WIDTHS = (1, 7, 33, 100, 1024)
EPS = 1e-5


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(x: Array, weight: Array) -> Array:
    wide = torch.tensor(x, dtype=torch.float64)
    gain = torch.tensor(weight, dtype=torch.float64)
    normed: Array = torch.nn.functional.rms_norm(wide, list(wide.shape[-1:]), gain, EPS).numpy()
    return normed


def close(got: Array, expected: Array, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("k", WIDTHS)
def test_rms_norm_equals_torch_and_each_row_stands_alone(run_kernel: Run, isa: Isa, k: int) -> None:
    x, weight = numbers(5, k), numbers(k, seed=1)
    kernel = rms_norm(k, EPS, isa)
    y = run_kernel(kernel, {"x": x, "weight": weight}, {"rows": 5}, outputs={"y": (x.shape, np.float32)}, isa=isa)["y"]
    close(y, rms(x, weight))
    alone = {"x": x[3:4], "weight": weight}
    one = run_kernel(kernel, alone, {"rows": 1}, outputs={"y": ((1, k), np.float32)}, isa=isa)["y"]
    assert one.tobytes() == y[3:4].tobytes()


def test_rms_norm_of_heads_in_a_slice_of_wider_rows(run_kernel: Run, isa: Isa) -> None:
    x, weight = numbers(3, 100), numbers(24, seed=1)
    kernel = rms_norm(24, EPS, isa, heads=2, x=Rows(100, 30), one_plus=True)
    inputs = {"x": x, "weight": weight}
    y = run_kernel(kernel, inputs, {"rows": 3}, outputs={"y": ((3, 48), np.float32)}, isa=isa)["y"]
    close(y.reshape(3, 2, 24), rms(x[:, 30:78].reshape(3, 2, 24), 1 + weight))


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("one_plus", [False, True])
def test_add_rms_norm_gives_the_sum_and_its_norm(run_kernel: Run, isa: Isa, k: int, one_plus: bool) -> None:
    x, residual, weight = numbers(3, k), numbers(3, k, seed=1), numbers(k, seed=2)
    shape = ((3, k), np.float32)
    inputs = {"x": x, "residual": residual, "weight": weight}
    kernel = add_rms_norm(k, EPS, isa, one_plus=one_plus)
    got = run_kernel(kernel, inputs, {"rows": 3}, outputs={"y": shape, "total": shape}, isa=isa)
    np.testing.assert_array_equal(got["total"], x + residual)
    close(got["y"], rms(x + residual, weight + one_plus))
    in_place = inputs | {"total": "residual"}
    again = run_kernel(kernel, in_place, {"rows": 3}, outputs={"y": shape, "residual": shape}, isa=isa)
    assert again["y"].tobytes() == got["y"].tobytes() and again["residual"].tobytes() == got["total"].tobytes()


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize(("residual", "bias"), [(False, True), (True, True), (False, False)])
def test_layer_norm_equals_torch(run_kernel: Run, isa: Isa, k: int, residual: bool, bias: bool) -> None:
    x, shift, weight = numbers(3, k) + 10, numbers(k, seed=1), numbers(k, seed=2)
    inputs, outputs = {"x": x, "weight": weight}, {"y": ((3, k), np.float32)}
    total = x
    if bias:
        inputs["bias"] = shift
    if residual:
        inputs["residual"] = numbers(3, k, seed=3)
        outputs["total"] = ((3, k), np.float32)
        total = x + inputs["residual"]
    kernel = layer_norm(k, EPS, isa, residual=residual, bias=bias)
    got = run_kernel(kernel, inputs, {"rows": 3}, outputs=outputs, isa=isa)
    wide, w, b = (torch.tensor(a, dtype=torch.float64) for a in (total, weight, shift))
    close(got["y"], torch.nn.functional.layer_norm(wide, (k,), w, b if bias else None, EPS).numpy(), 2e-5)
    if residual:
        np.testing.assert_array_equal(got["total"], total)


def tables(context: int, rotary: int) -> tuple[Array, Array]:
    angles = np.arange(context)[:, None] * 100.0 ** -(np.arange(rotary // 2) / (rotary // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """The rotation of [rows, heads, d] as products of complex numbers."""
    half = cos.shape[-1]
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half : 2 * half]
    turned = pairs * (cos + 1j * sin.astype(np.float64))[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], -1)


@pytest.mark.parametrize(("heads", "d", "rotary"), [(1, 8, 8), (3, 80, 32), (2, 128, 128), (2, 10, 6)])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_turns_pairs_by_their_position(
    run_kernel: Run, isa: Isa, heads: int, d: int, rotary: int, normed: bool
) -> None:
    x, weight = numbers(4, heads * d + 5), numbers(d, seed=1)
    positions = np.array([7, 0, 30, 7], np.int32)
    cos, sin = tables(31, rotary)
    rotation = Rotation(d, rotary, EPS if normed else None)
    kernel = rope(heads, rotation, isa, x=Rows(heads * d + 5, 3))
    inputs = {"x": x, "positions": positions, "cos": cos, "sin": sin} | ({"weight": weight} if normed else {})
    y = run_kernel(kernel, inputs, {"rows": 4}, outputs={"y": ((4, heads, d), np.float32)}, isa=isa)["y"]
    before = x[:, 3 : 3 + heads * d].reshape(4, heads, d)
    before = rms(before, weight) if normed else before
    close(y, rotated(before, cos[positions], sin[positions]))


def test_rope_may_work_in_place(run_kernel: Run, isa: Isa) -> None:
    x, positions, (cos, sin) = numbers(4, 2 * 24), np.arange(4, dtype=np.int32), tables(31, 24)
    inputs = {"x": x, "positions": positions, "cos": cos, "sin": sin, "y": "x"}
    kernel = rope(2, Rotation(24, 24), isa)
    y = run_kernel(kernel, inputs, {"rows": 4}, outputs={"x": ((4, 2, 24), np.float32)}, isa=isa)["x"]
    close(y.reshape(4, 2, 24), rotated(x.reshape(4, 2, 24), cos[positions], sin[positions]))


@pytest.mark.parametrize(("heads", "kv_heads", "d", "dtype"), [(4, 2, 64, "float16"), (1, 1, 10, "float32")])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rows", [1, 9])
def test_qkv_finish_equals_its_parts_bit_by_bit(
    run_kernel: Run, isa: Isa, heads: int, kv_heads: int, d: int, dtype: str, normed: bool, rows: int
) -> None:
    width, page = (heads + 2 * kv_heads) * d, 8
    rotation = Rotation(d, d, EPS if normed else None)
    cos, sin = tables(40, d)
    random = np.random.default_rng(0)
    qkv, positions = numbers(rows, width), random.integers(0, 40, rows).astype(np.int32)
    slots = random.permutation(4 * page)[:rows].astype(np.int32)
    norms = {"q_norm": numbers(d, seed=1), "k_norm": numbers(d, seed=2)} if normed else {}
    pages = np.zeros((4, kv_heads, d, page), dtype)
    common = {"positions": positions, "cos": cos, "sin": sin}
    shapes = {"k_pages": (pages.shape, dtype), "v_pages": (pages.shape, dtype)}
    inputs = {"qkv": qkv, **common, **norms, "slots": slots, "k_pages": pages, "v_pages": pages}
    got = run_kernel(
        qkv_finish(heads, kv_heads, rotation, page, dtype, isa),
        inputs,
        {"rows": rows},
        outputs={"q": ((rows, heads, d), np.float32), **shapes},
        isa=isa,
    )

    def turned(first: int, count: int, norm: str) -> Array:
        kernel = rope(count, rotation, isa, x=Rows(width, first * d))
        weight = {"weight": norms[norm]} if normed else {}
        outputs = {"y": ((rows, count, d), np.float32)}
        return run_kernel(kernel, {"x": qkv, **common, **weight}, {"rows": rows}, outputs=outputs, isa=isa)["y"]

    q, k = turned(0, heads, "q_norm"), turned(heads, kv_heads, "k_norm")
    append = kv_append(kv_heads, d, page, dtype, isa, k=Rows(kv_heads * d), v=Rows(width, (heads + kv_heads) * d))
    inputs = {"k": k, "v": qkv, "slots": slots, "k_pages": pages, "v_pages": pages}
    stored = run_kernel(append, inputs, {"rows": rows}, outputs=shapes, isa=isa)
    assert got["q"].tobytes() == q.tobytes()
    for name in shapes:
        assert got[name].tobytes() == stored[name].tobytes()
    before = qkv[:, : heads * d].reshape(rows, heads, d)
    before = rms(before, norms["q_norm"]) if normed else before
    close(got["q"], rotated(before, cos[positions], sin[positions]))


@pytest.mark.parametrize("name", ["neon", "x86_64", "aarch64"])
def test_norms_and_rotation_compile_for_other_machines(name: str) -> None:
    isa = ISAS[name]
    fused = qkv_finish(4, 2, Rotation(64, 64, EPS), 16, "float16", isa)
    assert assembly([rms_norm(100, EPS, isa), add_rms_norm(7, EPS, isa), layer_norm(33, EPS, isa), fused], isa)
