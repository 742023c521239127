"""Packing weights and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.backends.layouts import Layout, layout_for, pack, parse_layout, unpack
from mlc.errors import BadCheckpoint, CompileError
from mlc.ir.arrays import QuantizedArray
from mlc.ir.types import Format


def quantized(n: int, k: int, format: Format) -> QuantizedArray:
    random = np.random.default_rng(n)
    q = random.integers(0, 16 if format.bits == 4 else 256, (n, k), dtype=np.uint8)
    if format.bits == 8 and format.symmetric:
        q = q.view(np.int8)
    scale = random.random((n, k // format.group)).astype(np.float16 if format.scale == "f16" else np.float32)
    return QuantizedArray(q, scale, None if format.symmetric else scale[:, ::-1].copy(), format)


def same(a: QuantizedArray, b: QuantizedArray) -> bool:
    pairs = ((a.q, b.q), (a.scale, b.scale), (a.bias, b.bias))
    return all(x is y is None or (x is not None and y is not None and x.tobytes() == y.tobytes()) for x, y in pairs)


formats = st.builds(
    Format,
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
    scale=st.sampled_from(["f16", "f32"]),
)


@given(formats, st.sampled_from([4, 8, 16]), st.sampled_from("us"), st.integers(1, 40), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_unpack_gives_back_what_was_packed(format: Format, rows: int, kind: str, n: int, groups: int) -> None:
    layout = Layout(rows, True, kind if format.bits == 8 else "")
    array = quantized(n, groups * format.group, format)
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


@pytest.mark.parametrize("format", [None, Format(4), Format(8, symmetric=False)])
def test_packing_row_blocks_apart_gives_slices_of_the_whole(format: Format | None) -> None:
    layout = Layout(8) if format is None else Layout(8, True, "" if format.bits == 4 else "s")
    array = np.random.default_rng(0).random((37, 64)) if format is None else quantized(37, 64, format)
    whole = pack(array, layout)
    for start, stop in ((0, 16), (16, 24), (24, 37)):
        if isinstance(array, QuantizedArray):
            bias = None if array.bias is None else array.bias[start:stop]
            part = pack(QuantizedArray(array.q[start:stop], array.scale[start:stop], bias, array.format), layout)
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
    ):
        with pytest.raises(BadCheckpoint, match="q8_g32"):
            pack(bad, Layout(16, True, "u"))


@pytest.mark.parametrize(
    ("format", "expected"), [(Format(4), -8.0), (Format(8), -256.0), (Format(4, symmetric=False), 1)]
)
def test_dequantize_follows_the_formula_of_the_format(format: Format, expected: float) -> None:
    q = np.zeros((1, 32), np.uint8) if format.bits == 4 else np.full((1, 32), -128, np.int8)
    scale = np.array([[2 if format.bits == 8 else 1]], np.float16)
    bias = None if format.symmetric else np.ones((1, 1), np.float16)
    assert QuantizedArray(q, scale, bias, format).dequantize().tolist() == [[expected] * 32]
