"""Dimensions, formats and types: their arithmetic and their text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.errors import TypeMismatch
from mlc.ir import Affine, Dim, Format, State, Tensor, parse_format, parse_type, sym
from mlc.ir.types import NUMBER_BITS, parse_dim

SYMBOLS = ("n", "h", "w_2")
COEFFICIENTS = st.integers(-1000, 1000)


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    total: Dim = draw(COEFFICIENTS)
    for symbol in SYMBOLS:
        total = total + draw(st.sampled_from([0, 0, 1, -1, 2, 37])) * sym(symbol)
    return total


SIZES = st.fixed_dictionaries({symbol: st.integers(0, 100) for symbol in SYMBOLS})


def value(dim: Dim, sizes: dict[str, int]) -> int:
    return dim if isinstance(dim, int) else sum(c * sizes[s] for s, c in dim.terms) + dim.constant


@given(dims(), dims(), COEFFICIENTS, SIZES)
def test_dims_add_subtract_and_multiply_like_the_numbers_they_become(
    a: Dim, b: Dim, k: int, sizes: dict[str, int]
) -> None:
    x, y = value(a, sizes), value(b, sizes)
    assert value(a + b, sizes) == x + y
    assert value(a - b, sizes) == x - y
    assert value(a * k, sizes) == value(k * a, sizes) == x * k


@given(dims(), dims(), dims(), COEFFICIENTS)
def test_equal_forms_are_equal_objects(a: Dim, b: Dim, c: Dim, k: int) -> None:
    assert a + b == b + a and (a + b) + c == a + (b + c)
    assert (a + b) * k == a * k + b * k
    assert a - a == 0 and isinstance(a - a, int)
    assert a + 0 == a * 1 == a
    assert hash(a + b) == hash(b + a)


@given(dims())
def test_a_form_without_symbols_is_an_integer(a: Dim) -> None:
    if isinstance(a, Affine):
        assert a.terms and all(c for _, c in a.terms) and list(a.terms) == sorted(a.terms)


@given(dims())
def test_printing_then_parsing_gives_the_same_dim(a: Dim) -> None:
    assert parse_dim(str(a)) == a


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        ("0", 0),
        ("-3", -3),
        ("n", sym("n")),
        ("2*h+1", 2 * sym("h") + 1),
        ("-1*n-7", sym("n") * -1 - 7),
        ("h+3*n-2", sym("h") + 3 * sym("n") - 2),
        ("n+n", 2 * sym("n")),
        ("5-1*n", 5 - sym("n")),
    ],
)
def test_dims_as_people_write_them(text: str, dim: Dim) -> None:
    assert parse_dim(text) == dim


@pytest.mark.parametrize(
    "text", ["", " ", "N", "n m", "2n", "n*2", "2**n", "n+", "+", "n++1", "1.5", "n,", "٣", "9" * 5000]
)
def test_what_is_no_dim_is_refused(text: str) -> None:
    with pytest.raises(TypeMismatch, match="is no dimension"):
        parse_dim(text)


@pytest.mark.parametrize("name", ["", "N", "2n", "n m", "n-1", "é"])
def test_a_symbol_is_named_as_the_text_form_can_say(name: str) -> None:
    with pytest.raises(AssertionError, match="no name"):
        sym(name)


FORMATS = st.builds(
    Format, st.sampled_from([4, 6, 8]), st.integers(1, 512), st.booleans(), st.sampled_from(["f16", "f32"])
) | st.builds(Format, st.sampled_from([4, 6, 8]), st.sampled_from([1, 16, 32, 256]), st.booleans(), st.just("i8"))
DTYPES = st.sampled_from(sorted(NUMBER_BITS)) | FORMATS.map(str) | st.integers(1, 512).map("a8_g{}".format)
TENSORS = st.builds(Tensor, st.lists(dims(), max_size=4).map(tuple), DTYPES, st.sampled_from(["", "r16", "r8k4u"]))
STATES = st.builds(State, st.sampled_from(["kv", "ssm"]), st.sampled_from(sorted(NUMBER_BITS)))


@given(FORMATS)
def test_printing_then_parsing_gives_the_same_format(f: Format) -> None:
    assert parse_format(str(f)) == f


@settings(max_examples=300)
@given(TENSORS | STATES)
def test_printing_then_parsing_gives_the_same_type(t: Tensor | State) -> None:
    assert parse_type(str(t)) == t


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no type"),
        ("f32", "is no type"),
        ("f32[4", "is no type"),
        ("f32[4]]", "is no type"),
        ("f64[4]", "unknown dtype 'f64'"),
        ("q4_g0[4]", "unknown dtype 'q4_g0'"),
        ("q4_g032[4]", "unknown dtype 'q4_g032'"),
        ("q6_g24_i8[4]", "unknown dtype 'q6_g24_i8'"),
        ("q5_g32[4]", "unknown dtype 'q5_g32'"),
        (f"q4_g{'9' * 5000}[4]", "unknown dtype"),
        (f"a8_g{'9' * 5000}[4]", "unknown dtype"),
        ("f32[4,4]", "'4,4' is no dimension"),
        ("f32[4, ]", "'' is no dimension"),
        ("f32@[4]", "is no type"),
        ("state<kv>", "is no type"),
        ("state<kv, f64>", "unknown dtype 'f64'"),
    ],
)
def test_what_is_no_type_is_refused_with_its_reason(text: str, message: str) -> None:
    with pytest.raises(TypeMismatch, match=re.escape(message)):
        parse_type(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f32[3, n]", 3 * 5 * 4),
        ("bf16[2*n+1]", 11 * 2),
        ("q4_g32[2, 64]", 2 * 64 / 2 + 2 * 2 * 2),
        ("q4a_g32[2, 64]", 2 * 64 / 2 + 2 * 2 * 4),
        ("q8_g16_f32[64]", 64 + 4 * 4),
        ("q6_g32[2, 64]", 2 * 64 * 6 / 8 + 2 * 2 * 2),
        ("q6_g16_i8[2, 256]", 2 * (210)),
        ("q4a_g32_i8[2, 256]", 2 * (128 + 2 * 8 + 2 * 2)),
        ("a8_g32[n, 64]", 5 * (64 + 2 * 8)),
        ("i8[7]", 7),
    ],
)
def test_bytes_count_scales_and_sums_too(text: str, expected: float) -> None:
    t = parse_type(text)
    assert isinstance(t, Tensor) and t.bytes(n=5) == expected
