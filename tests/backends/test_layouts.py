"""Packing weights and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.backends.layouts import Layout, layout_for, pack, parse_layout, unpack
from mlc.errors import BadCheckpoint, CompileError
from mlc.ir.arrays import QuantizedArray
from mlc.ir.types import Format

DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8}


def quantized(n: int, k: int, format: Format) -> QuantizedArray:
    random = np.random.default_rng(n)
    parts: dict[str, np.ndarray[Any, Any]] = {"q": random.integers(0, 1 << format.bits, (n, k), dtype=np.uint8)}
    parts["q"] = parts["q"].view(DTYPES[format.parts["q"][0]])
    for name, (dtype, numbers) in list(format.parts.items())[1:]:
        parts[name] = (100 * random.random((n, k // numbers))).astype(DTYPES[dtype])
    return QuantizedArray.of(parts, format)


def same(a: QuantizedArray, b: QuantizedArray) -> bool:
    return a.parts.keys() == b.parts.keys() and all(a.parts[p].tobytes() == b.parts[p].tobytes() for p in a.parts)


formats = st.builds(
    Format,
    bits=st.sampled_from([4, 6, 8]),
    group=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
    scale=st.sampled_from(["f16", "f32", "i8"]),
)


@given(formats, st.sampled_from([4, 8, 16]), st.sampled_from("us"), st.integers(1, 40), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_unpack_gives_back_what_was_packed(format: Format, rows: int, kind: str, n: int, groups: int) -> None:
    layout = Layout(rows, True, kind if format.bits == 8 else "")
    array = quantized(n, groups * format.width_unit, format)
    back = unpack(pack(array, layout), layout, n, format)
    assert isinstance(back, QuantizedArray)
    assert same(back, array)


@given(st.sampled_from(["float32", "float16", "uint16"]), st.integers(1, 70), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_floats_of_any_shape_come_back(dtype: str, n: int, k: int) -> None:
    array = np.arange(n * k).reshape(n, k).astype(dtype)
    back = unpack(pack(array, Layout(16)), Layout(16), n, None)
    assert isinstance(back, np.ndarray)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@pytest.mark.parametrize("format", [None, Format(4), Format(6, 16, scale="i8"), Format(8, symmetric=False)])
def test_packing_row_blocks_apart_gives_slices_of_the_whole(format: Format | None) -> None:
    layout = Layout(8) if format is None else Layout(8, True, "" if format.bits < 8 else "s")
    array = np.random.default_rng(0).random((37, 256)) if format is None else quantized(37, 256, format)
    whole = pack(array, layout)
    for start, stop in ((0, 16), (16, 24), (24, 37)):
        if isinstance(array, QuantizedArray):
            rows = {name: part[start:stop] for name, part in array.parts.items()}
            part = pack(QuantizedArray.of(rows, array.format), layout)
        else:
            part = pack(array[start:stop], layout)
        for name in whole:
            assert np.array_equal(part[name], whole[name][start // 8 : -(-stop // 8)])


def test_the_bytes_lie_where_the_layout_says() -> None:
    q = np.arange(2 * 32, dtype=np.uint8).reshape(2, 32) % 16
    parts = pack(QuantizedArray(q, np.ones((2, 1), np.float16), None, Format(4)), Layout(4, True))
    assert parts["q"].shape == (1, 1, 4, 4, 4)
    for row in range(2):
        for quad in range(4):
            for i in range(4):
                low, high = q[row, quad * 4 + i], q[row, 16 + quad * 4 + i]
                assert parts["q"][0, 0, quad, row, i] == low | high << 4
    assert not parts["q"][0, 0, :, 2:].any()
    assert parts["scale"].tolist() == [[[1, 1, 0, 0]]]


def test_three_bytes_hold_four_numbers_of_6_bits() -> None:
    q = np.random.default_rng(0).integers(0, 64, (2, 64), dtype=np.uint8)
    parts = pack(QuantizedArray(q, np.ones((2, 2), np.float16), None, Format(6)), Layout(4, True))
    assert parts["q"].shape == (1, 2, 6, 4, 4)
    threes = parts["q"].reshape(4, 3, 4, 4)
    for row in range(2):
        for cell in range(4):
            numbers = q[row, cell * 16 : cell * 16 + 16].reshape(4, 4)
            for i in range(4):
                kept = threes[cell, :, row, i]
                assert (kept & 63).tolist() == numbers[:3, i].tolist()
                assert sum(int(kept[j] >> 6) << 2 * j for j in range(3)) == numbers[3, i]


def test_scales_of_two_levels_are_one_stream() -> None:
    array = quantized(2, 512, Format(4, 128, symmetric=False, scale="i8"))
    assert array.bias is not None and array.super_scale is not None and array.super_bias is not None
    scale = pack(array, Layout(4, True))["scale"]
    assert scale.shape == (1, 2, 2 * 4 * 2 + 2 * 2 * 4)
    for row in range(2):
        for j in range(2):
            above, below = scale[0, j, :16].view(np.float16), scale[0, j, 16:].view(np.int8)
            assert above[[row, 4 + row]].tolist() == [array.super_scale[row, j], array.super_bias[row, j]]
            for g in range(2):
                assert below[8 * g + row] == array.scale[row, 2 * j + g]
                assert below[8 * g + 4 + row] == array.bias[row, 2 * j + g]


@pytest.mark.parametrize("text", ["r16", "r32", "r16k4", "r16k4u", "r8k4s"])
def test_the_name_of_a_layout_is_its_whole_description(text: str) -> None:
    assert str(parse_layout(text)) == text


@pytest.mark.parametrize("text", ["", "r", "k4", "r16k8", "r16k4x", "plain"])
def test_an_unknown_layout_is_refused_by_name(text: str) -> None:
    with pytest.raises(CompileError, match="unknown weight layout"):
        parse_layout(text)


def test_a_layout_follows_from_the_vector_and_the_byte_product() -> None:
    class Narrow:
        lanes, float_rows, signed_bytes = 8, 16, True

    assert [str(layout_for(Narrow(), f)) for f in (None, Format(4), Format(8))] == ["r16", "r8k4", "r8k4s"]


def test_an_array_that_does_not_fit_its_format_is_refused() -> None:
    good = quantized(4, 64, Format(8))
    for bad in (
        QuantizedArray(good.q.view(np.uint8), good.scale, None, good.format),
        QuantizedArray(good.q, good.scale[:, :1], None, good.format),
        QuantizedArray(good.q, good.scale.astype(np.float32), None, good.format),
        QuantizedArray(good.q, good.scale, good.scale, good.format),
        QuantizedArray(good.q[:, :48], good.scale, None, good.format),
        QuantizedArray(good.q, good.scale, None, good.format, super_scale=good.scale),
    ):
        with pytest.raises(BadCheckpoint, match="q8_g32"):
            pack(bad, Layout(16, True, "u"))


@pytest.mark.parametrize(
    ("format", "expected"),
    [(Format(4), -8.0), (Format(6), -32.0), (Format(8), -256.0), (Format(4, symmetric=False), 1)],
)
def test_dequantize_follows_the_formula_of_the_format(format: Format, expected: float) -> None:
    q = np.zeros((1, 32), np.uint8) if format.bits < 8 else np.full((1, 32), -128, np.int8)
    scale = np.array([[2 if format.bits == 8 else 1]], np.float16)
    bias = None if format.symmetric else np.ones((1, 1), np.float16)
    assert QuantizedArray(q, scale, bias, format).dequantize().tolist() == [[expected] * 32]
