"""Laws that every op keeps, whatever it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.errors import TypeMismatch
from mlc.ir import OPS, Attr, Op, State, Tensor, Type, parse_type, sym

SIZES = st.sampled_from([1, 2, 4, 8, 64, sym("n"), 2 * sym("n") + 1])
DTYPES = st.sampled_from(["f32", "f16", "bf16", "i32", "i8", "q4_g32", "q4a_g32", "q6_g16_i8", "a8_g32", "a8_g4"])
TENSORS = st.builds(Tensor, st.lists(SIZES, max_size=4).map(tuple), DTYPES, st.sampled_from(["", "", "", "r16"]))
TYPES = st.one_of(TENSORS, TENSORS, TENSORS, st.just(State("kv", "f16")), st.just(State("ssm", "f32")))
ATTRS = {
    int: st.integers(-2, 8) | st.integers(),
    float: st.floats(),
    str: st.sampled_from(["", "f32", "f16", "q4_g32", "a8_g32", "none", "tanh", "llama3", "r16", "w"]),
    bool: st.booleans(),
}


def attr(kind: Any) -> st.SearchStrategy[Any]:
    if get_origin(kind) is tuple:
        return st.lists(ATTRS[get_args(kind)[0]], max_size=4).map(tuple)
    return ATTRS[kind]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Op[Any], list[Type], Mapping[str, Attr]]:
    op = OPS[draw(st.sampled_from(sorted(OPS)))]
    types = draw(st.lists(TYPES, min_size=op.required, max_size=len(op.operands)))
    alike = [types[0]] * len(types) if types else types
    types = draw(st.sampled_from([types, alike]))
    return op, types, {name: draw(attr(kind)) for name, kind in op.attrs.items()}


@settings(max_examples=1500, deadline=None)
@given(calls())
def test_an_op_infers_types_or_says_what_is_wrong(call: tuple[Op[Any], list[Type], Mapping[str, Attr]]) -> None:
    op, types, attrs = call
    try:
        results = op.infer(types, attrs)
    except TypeMismatch as error:
        assert str(error)
        return
    assert len(results) == op.result_count
    for result in results:
        assert parse_type(str(result)) == result
