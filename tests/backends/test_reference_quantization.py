"""Rounding to few bits: what the numbers become, how far off they are, and that blocks of rows agree with the whole."""

from __future__ import annotations

import time
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.backends.reference import REFERENCE, QuantizedRows
from mlc.errors import BadCheckpoint
from mlc.ir import Format
from mlc.ir.arrays import QuantizedArray

Array = np.ndarray[Any, Any]
FORMATS = [Format(4), Format(6), Format(8), Format(4, symmetric=False), Format(8, 16, False, "f32")]
FORMATS += [Format(4, 24, True, "f32"), Format(6, 16, False)]


def quantize(w: Array, f: Format) -> QuantizedArray:
    result: QuantizedArray = REFERENCE["quantize"](w, bits=f.bits, group=f.group, symmetric=f.symmetric, scale=f.scale)
    return result


def rand(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same_bits(a: QuantizedArray, b: QuantizedArray) -> bool:
    parts = [(a.q, b.q), (a.scale, b.scale)] + ([] if a.bias is None or b.bias is None else [(a.bias, b.bias)])
    return all(x.tobytes() == y.tobytes() for x, y in parts) and (a.bias is None) == (b.bias is None)


def brute_force(group: Array, f: Format) -> tuple[list[int], Any, Any]:
    """(q, scale, bias) of one group, from the op's docstring, a number at a time."""
    stored = np.float16 if f.scale == "f16" else np.float32
    w = [np.float32(x) for x in group]

    def rounded(scale: Any, bias: Any, low: int, high: int) -> list[int]:
        return [int(np.clip(np.rint((x - bias) / scale), low, high)) if scale else 0 for x in w]

    if not f.symmetric:
        top = 2**f.bits - 1
        scale = np.float32(stored(max(w) / np.float32(top) - min(w) / np.float32(top)))
        bias = np.float32(stored(min(w)))
        return rounded(scale, bias, 0, top), scale, bias
    if f.bits == 8:
        scale = np.float32(stored(max(abs(x) for x in w) / np.float32(127)))
        return rounded(scale, np.float32(0), -127, 127), scale, 0.0
    largest = max(w) if max(w) >= -min(w) else min(w)
    candidates = []
    zero = 2 ** (f.bits - 1)
    for shift in (0, 1, 0.75, 0.5, 0.25, -0.25, -0.5, -0.75, -1):
        scale = np.float32(stored(largest / np.float32(-zero - shift)))
        q = rounded(scale, np.float32(0), -zero, zero - 1)
        error = sum((float(scale) * n - float(x)) ** 2 for n, x in zip(q, w, strict=True))
        candidates.append((error, scale, [n + zero for n in q]))
    _, scale, q = min(candidates, key=lambda c: c[0])
    return q, scale, 0.0


@pytest.mark.parametrize("f", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_each_group_is_rounded_as_the_op_says(f: Format, dtype: Any) -> None:
    w = rand(40, 2 * f.group).astype(dtype)
    w[0, : f.group] = 0
    w[1, : f.group] = np.abs(w[1, : f.group])
    w[2, : f.group] = 1  # 4 bits: places -8 and -7 are both exact, and the first one wins
    result = quantize(w, f)
    result.check()
    numbers = result.dequantize()
    for row in range(40):
        for g in range(2):
            span = slice(g * f.group, (g + 1) * f.group)
            q, scale, bias = brute_force(w[row, span].astype(np.float32), f)
            assert result.q[row, span].tolist() == q
            assert result.scale[row, g] == scale and (result.bias is None or result.bias[row, g] == bias)
            zero = {4: 8, 6: 32, 8: 0}[f.bits] if f.symmetric else 0
            expected = [np.float32(np.float32(scale) * (n - zero)) + np.float32(bias) for n in q]
            np.testing.assert_allclose(numbers[row, span], expected, rtol=1e-6)


def rows_of(x: QuantizedArray, rows: slice) -> QuantizedArray:
    return QuantizedArray(x.q[rows], x.scale[rows], None if x.bias is None else x.bias[rows], x.format)


@pytest.mark.parametrize("f", FORMATS, ids=str)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 40), cut=st.integers(0, 40), seed=st.integers(0, 99))
def test_blocks_of_rows_give_the_bits_of_the_whole(f: Format, rows: int, cut: int, seed: int) -> None:
    w = rand(rows, 3 * f.group, seed=seed)
    whole = quantize(w, f)
    for block in (slice(cut), slice(cut, None)):
        assert same_bits(quantize(w[block], f), rows_of(whole, block))


def test_a_large_weight_is_rounded_in_chunks_that_do_not_show() -> None:
    w = rand(300, 1024)
    whole = quantize(w, Format(4))
    for row in range(0, 300, 7):
        assert same_bits(quantize(w[row : row + 1], Format(4)), rows_of(whole, slice(row, row + 1)))


def test_4_bits_are_closer_than_ggml() -> None:
    w = rand(64, 1024)
    kind = gguf.GGMLQuantizationType.Q4_0
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    ours = quantize(w, Format(4)).dequantize()
    assert np.square(ours - w).mean() < 0.92 * np.square(theirs - w).mean()


def test_the_search_for_a_scale_pays_with_6_bits_too() -> None:
    w = rand(64, 1024)
    peak = np.abs(w.reshape(64, -1, 32)).max(axis=-1, keepdims=True)
    plain = np.rint(w.reshape(64, -1, 32) / peak * 31) * peak / 31
    off = np.square(quantize(w, Format(6)).dequantize() - w).mean()
    assert off < 0.87 * np.square(plain.reshape(w.shape) - w).mean()  # measured: 0.84


def test_numbers_on_the_4_bit_grid_of_ggml_are_kept() -> None:
    kind = gguf.GGMLQuantizationType.Q4_0
    w = gguf.quants.dequantize(gguf.quants.quantize(rand(16, 256), kind), kind)
    np.testing.assert_array_equal(quantize(w, Format(4)).dequantize(), w)


def test_8_bits_are_as_close_as_ggml() -> None:
    w = rand(64, 1024)
    kind = gguf.GGMLQuantizationType.Q8_0
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    ours = quantize(w, Format(8)).dequantize()
    assert np.square(ours - w).mean() <= 1.001 * np.square(theirs - w).mean()


@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_weights_that_are_not_finite_are_named(f: Format) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        w = rand(2, f.group)
        w[1, 3] = bad
        with pytest.raises(BadCheckpoint, match="not finite"):
            quantize(w, f)


def test_weights_beyond_half_precision_scales_are_named() -> None:
    w = np.full((1, 32), 1e7, np.float32)
    with pytest.raises(BadCheckpoint, match="too large for q4_g32"):
        quantize(w, Format(4))
    np.testing.assert_allclose(quantize(w, Format(4, scale="f32")).dequantize(), w, rtol=1e-6)


def test_tiny_weights_become_zeros_not_nan() -> None:
    for f in FORMATS:
        assert np.isfinite(quantize(np.full((1, f.group), 1e-30, np.float32), f).dequantize()).all()


def test_4_million_weights_are_rounded_in_a_second() -> None:
    w = rand(4096, 1024)
    start = time.process_time()
    quantize(w, Format(4))
    assert time.process_time() - start < 1  # measured: 0.05 s


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 5), groups=st.integers(1, 3), group=st.sampled_from([4, 16, 32]), seed=st.integers(0, 99))
def test_rows_of_int8_are_the_nearest_numbers(rows: int, groups: int, group: int, seed: int) -> None:
    x = rand(rows, groups * group, seed=seed) * np.float32(10.0 ** (seed % 7 - 3))
    result: QuantizedRows = REFERENCE["quantize_rows"](x, group=group)
    assert result.q.dtype == np.int8 and result.scale.dtype == np.float32 and result.sum.dtype == np.int32
    parts = x.reshape(rows, groups, group)
    np.testing.assert_allclose(result.scale, np.abs(parts).max(-1) / 127, rtol=1e-6)
    assert np.abs(result.q).reshape(rows, groups, group).max(-1).tolist() == [[127] * groups] * rows
    np.testing.assert_array_equal(result.sum, result.q.reshape(rows, groups, group).sum(-1, dtype=np.int64))
    off = np.abs(result.dequantize() - x).reshape(rows, groups, group)
    assert (off <= 0.5001 * result.scale[..., None]).all()


def test_rows_of_zeros_stay_zeros() -> None:
    result: QuantizedRows = REFERENCE["quantize_rows"](np.array([[0.0] * 4 + [1e-31] * 4], np.float32), group=4)
    assert not result.q.any() and not result.scale.any() and not result.sum.any()


@pytest.mark.parametrize("f", [f for f in FORMATS if f.group <= 32], ids=str)
@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3)])
def test_the_product_of_int8_rows_is_that_of_the_numbers_they_stand_for(f: Format, rows: tuple[int, ...]) -> None:
    w = quantize(rand(7, 4 * f.group), f)
    x: QuantizedRows = REFERENCE["quantize_rows"](rand(*rows, 4 * f.group, seed=1), group=f.group)
    bias = rand(7, seed=2)
    expected = x.dequantize().astype(np.float64) @ w.dequantize().astype(np.float64).T + bias
    actual = REFERENCE["linear"](x, w, bias)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
