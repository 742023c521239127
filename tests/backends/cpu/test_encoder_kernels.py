"""Kernels of encoders and images against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mlc.backends.cpu.encoder import conv2d, full_attention, matmul, permute, softmax
from mlc.backends.cpu.isa import ISAS, Isa
from mlc.backends.cpu.rows import Rows
from mlc.backends.tvm.build import assembly

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def wide(x: Array) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def attention(x: Array, lengths: list[int], scale: float) -> Array:
    """Attention of x [q/k/v, batch, time, heads, d]."""
    q, k, v = (wide(part).transpose(1, 2) for part in x)
    mask = (torch.arange(x.shape[2])[None] < torch.tensor(lengths)[:, None])[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    result: Array = out.transpose(1, 2).numpy()
    return result


@pytest.mark.parametrize(
    ("batch", "time", "heads", "d"), [(1, 1, 1, 8), (2, 33, 3, 64), (3, 130, 1, 24), (1, 197, 2, 7)]
)
@pytest.mark.parametrize("limited", [False, True])
def test_full_attention_equals_torch(
    run_kernel: Run, isa: Isa, batch: int, time: int, heads: int, d: int, limited: bool
) -> None:
    x = numbers(3, batch, time, heads, d)
    lengths = [max(1, time - 7 * i) for i in range(batch)] if limited else [time] * batch
    inputs = dict(zip("qkv", x, strict=True)) | ({"lengths": np.array(lengths, np.int32)} if limited else {})
    for i, length in enumerate(lengths):  # what lies behind the length is never used
        inputs["k"][i, length:], inputs["v"][i, length:] = np.nan, np.nan
    sizes, outputs = {"batch": batch, "period": time}, {"out": ((batch, time, heads, d), np.float32)}
    kernel = full_attention(heads, d, 0.3, isa, lengths=limited)
    out = run_kernel(kernel, inputs, sizes, outputs=outputs, isa=isa)["out"]
    np.testing.assert_allclose(out, attention(np.nan_to_num(x), lengths, 0.3), rtol=0, atol=3e-6)


def test_full_attention_reads_slices_of_merged_rows(run_kernel: Run, isa: Isa) -> None:
    merged = numbers(2 * 40, 3 * 2 * 16)
    rows = [Rows(96, first) for first in (0, 32, 64)]
    kernel = full_attention(2, 16, 0.25, isa, q=rows[0], k=rows[1], v=rows[2])
    inputs, outputs = {"q": merged, "k": "q", "v": "q"}, {"out": ((2, 40, 2, 16), np.float32)}
    out = run_kernel(kernel, inputs, {"batch": 2, "period": 40}, outputs=outputs, isa=isa)["out"]
    parts = merged.reshape(2, 40, 3, 2, 16).transpose(2, 0, 1, 3, 4)
    np.testing.assert_allclose(out, attention(parts, [40, 40], 0.25), rtol=0, atol=3e-6)


# image, channels, window, stride, padding, bias
CONVOLUTIONS = [
    ((3, 32, 32), 50, (8, 8), 8, 0, True),
    ((1, 5, 7), 1, (3, 3), 1, 1, False),
    ((4, 9, 6), 130, (3, 2), 2, 1, True),
    ((2, 1, 50), 7, (1, 5), 3, 0, False),
    ((2, 4, 4), 3, (4, 4), 1, 3, True),
]


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_conv2d_equals_torch(run_kernel: Run, isa: Isa, shape: Any) -> None:
    image, channels, window, stride, padding, biased = shape
    x, w, bias = numbers(2, *image), numbers(channels, image[0], *window, seed=1), numbers(channels, seed=2)
    expected = torch.nn.functional.conv2d(wide(x), wide(w), wide(bias) if biased else None, stride, padding).numpy()
    inputs = {"x": x, "w": w} | ({"bias": bias} if biased else {})
    kernel = conv2d(image, channels, window, stride, padding, isa, bias=biased)
    y = run_kernel(kernel, inputs, {"batch": 2}, outputs={"y": (expected.shape, np.float32)}, isa=isa)["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("batch", "rows", "k", "n"), [(1, 1, 1, 1), (2, 5, 7, 33), (3, 20, 64, 100)])
def test_matmul_equals_numpy(run_kernel: Run, isa: Isa, batch: int, rows: int, k: int, n: int) -> None:
    a, b = numbers(batch, rows, k), numbers(batch, k, n, seed=1)
    outputs = {"y": ((batch, rows, n), np.float32)}
    y = run_kernel(matmul(k, n, isa), {"a": a, "b": b}, {"batch": batch, "rows": rows}, outputs=outputs, isa=isa)["y"]
    np.testing.assert_allclose(y, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 33, 100, 1024])
def test_softmax_equals_torch(run_kernel: Run, isa: Isa, k: int) -> None:
    x = numbers(4, k) * 20
    y = run_kernel(softmax(k, isa), {"x": x}, {"rows": 4}, outputs={"y": (x.shape, np.float32)}, isa=isa)["y"]
    np.testing.assert_allclose(y, torch.softmax(wide(x), -1).numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 49), (1, 0)), ((3, 4, 16), (1, 0, 2)), ((2, 3, 4, 5), (3, 1, 0, 2)), ((7,), (0,))]
)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_permute_equals_transpose(run_kernel: Run, isa: Isa, shape: Any, axes: Any, dtype: str) -> None:
    x = np.arange(2 * int(np.prod(shape)), dtype=dtype).reshape(2, *shape)
    expected = x.transpose(0, *(axis + 1 for axis in axes))
    kernel = permute(shape, axes, isa, dtype)
    y = run_kernel(kernel, {"x": x}, {"rows": 2}, outputs={"y": (expected.shape, dtype)}, isa=isa)["y"]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", ["neon", "x86_64", "aarch64"])
def test_encoder_kernels_compile_for_other_machines(name: str) -> None:
    isa = ISAS[name]
    convolution = conv2d((3, 16, 16), 20, (3, 3), 1, 1, isa, bias=True)
    kernels = [full_attention(2, 64, 0.1, isa), convolution, matmul(33, 70, isa), softmax(100, isa)]
    assert assembly([*kernels, permute((3, 16), (1, 0), isa)], isa)
