"""The verifier names every breach of the IR's laws, all of them at once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mlc.errors import TypeMismatch, VerifyError
from mlc.ir import OPS, Attr, Builder, Graph, Node, State, Tensor, Type, Value, parse_graph, sym, verify
from mlc.ir import ops as o


def node(op: str, inputs: tuple[Value, ...], attrs: Mapping[str, Attr], *types: Type) -> Node:
    return Node(OPS[op], inputs, attrs, tuple(map(Value, types)))


def problems(graph: Graph) -> tuple[str, ...]:
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


ROWS = Tensor((sym("n"), 4), "f32")
KV = State("kv", "f16")
QUERY = Tensor((sym("n"), 2, 8), "f32")

LLAMA3 = {"dim": 4, "theta": 1e4, "scaling": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original_context": 64}
QKV = (KV, Tensor((sym("n"), 32), "f32"), Tensor((sym("n"),), "i32"), Tensor((4,), "f32"))
HEADS = {"layer": 0, "heads": 2, "kv_heads": 1, "eps": 1e-6}


def test_a_valid_graph_is_handed_back() -> None:
    x = Value(ROWS, "x")
    graph = Graph("g", (x,), (node("silu", (x,), {}, ROWS),), (x,))
    assert verify(graph) is graph


def test_a_value_used_before_it_is_defined() -> None:
    x = Value(ROWS, "x")
    first, second = node("silu", (x,), {}, ROWS), node("tanh", (x,), {}, ROWS)
    late = node("add", (x, second.output), {}, ROWS)
    assert problems(Graph("g", (x,), (late, second), ())) == ("node 0 (add): b is used before it is defined",)
    assert problems(Graph("g", (x,), (), (first.output,))) == ("output 0 is never defined",)


def test_a_value_defined_twice() -> None:
    x = Value(ROWS, "x")
    once = node("silu", (x,), {}, ROWS)
    assert problems(Graph("g", (x,), (once, once), (once.output,))) == (
        "node 1 (silu): defines a value that is already defined",
    )


def test_a_result_of_the_wrong_type_or_number() -> None:
    x = Value(ROWS, "x")
    wrong = node("silu", (x,), {}, Tensor((sym("n"), 5), "f32"))
    few = node("add_rms_norm", (x, x, Value(Tensor((4,), "f32"), "w")), {"eps": 1e-5}, ROWS)
    assert problems(Graph("g", (x, few.inputs[2]), (wrong, few), ())) == (
        "node 0 (silu): is written as f32[n, 5], its operands give f32[n, 4]",
        "node 1 (add_rms_norm): is written as f32[n, 4], its operands give f32[n, 4], f32[n, 4]",
    )


@pytest.mark.parametrize(
    ("op", "types", "attrs", "message"),
    [
        ("silu", (), {}, "silu takes the operands (x), got 0"),
        ("silu", (ROWS, ROWS), {}, "silu takes the operands (x), got 2"),
        ("silu", (ROWS,), {"eps": 1.0}, "silu takes the attributes {}; see eps"),
        ("gelu", (ROWS,), {}, "gelu takes the attributes {approximate}; see approximate"),
        ("gelu", (ROWS,), {"approximate": 1}, "gelu: attribute approximate must be str, got 1"),
        ("gelu", (ROWS,), {"approximate": "erf"}, "gelu approximate is 'none' or 'tanh', not 'erf'"),
        ("rms_norm", (ROWS, ROWS), {"eps": 1}, "rms_norm: attribute eps must be a finite float, got 1"),
        ("rms_norm", (ROWS, ROWS), {"eps": float("nan")}, "rms_norm: attribute eps must be a finite float, got nan"),
        ("take_token", (QUERY,), {"index": True}, "take_token: attribute index must be int, got True"),
        ("weight", (), {"name": "w", "shape": (2.0,), "dtype": "f32"}, "attribute shape must be tuple[int, ...]"),
        ("weight", (), {"name": "w", "shape": (0,), "dtype": "f32"}, "weight 'w' has the impossible shape (0,)"),
        ("rope_frequencies", (), {**LLAMA3, "low": 4.0}, "llama3 scaling needs 0 < low < high and a context"),
        (
            "rope_frequencies",
            (),
            {**LLAMA3, "original_context": 0},
            "llama3 scaling needs 0 < low < high and a context",
        ),
        ("qkv_rope_append", QKV, {**HEADS, "kv_heads": 3}, "2 heads do not divide into 3"),
        ("qkv_rope_append", QKV, {**HEADS, "heads": -2, "kv_heads": 1}, "-2 heads do not divide into 1"),
        ("qkv_rope_append", QKV, {**HEADS, "heads": 3, "kv_heads": 3}, "does not hold 3 + 2 * 3 heads"),
        ("silu", (KV,), {}, "silu: x must be a tensor, got state<kv, f16>"),
        ("kv_append", (QUERY, QUERY, QUERY), {"layer": 0}, "kv_append: kv must be a state, got f32[n, 2, 8]"),
        ("silu", (Tensor((), "f32"),), {}, "silu: x is f32[]; tensors here have at least one dimension"),
    ],
)
def test_an_op_used_wrongly(op: str, types: tuple[Type, ...], attrs: dict[str, Attr], message: str) -> None:
    inputs = tuple(Value(t, f"x{i}") for i, t in enumerate(types))
    (problem,) = problems(Graph("g", inputs, (node(op, inputs, attrs, ROWS),), ()))
    assert problem.startswith(f"node 0 ({op}): ") and message in problem
    with pytest.raises(TypeMismatch), Builder().active() as b:  # the builder refuses it at once
        b.emit(OPS[op], inputs, attrs)


def test_a_state_written_twice_from_one_version() -> None:
    kv, k = Value(KV, "kv"), Value(QUERY, "k")
    one, two = (node("kv_append", (kv, k, k), {"layer": layer}, KV) for layer in range(2))
    assert problems(Graph("g", (kv, k), (one, two), (two.output,))) == (
        "node 1 (kv_append): state is written twice from the same version",
    )


def test_a_state_read_after_it_was_written_over() -> None:
    kv, k = Value(KV, "kv"), Value(QUERY, "k")
    attention = {"layer": 0, "kv_heads": 2, "scale": 1.0, "window": 0}
    write, read = node("kv_append", (kv, k, k), {"layer": 0}, KV), node("attention", (k, kv), attention, QUERY)
    verify(Graph("g", (kv, k), (read, write), (read.output, write.output)))
    assert problems(Graph("g", (kv, k), (write, read), (read.output, kv))) == (
        "node 1 (attention): state is read after a write over the same version",
        "output 1 is a version of a state that has been written over",
    )


def test_one_weight_of_two_types() -> None:
    wide, narrow = (
        node("weight", (), {"name": "w", "shape": (4,), "dtype": d}, Tensor((4,), d)) for d in ("f32", "f16")
    )
    assert problems(Graph("g", (), (wide, wide_again(), narrow), ())) == (
        "node 2 (weight): weight 'w' is f16[4] here and f32[4] before",
    )


def wide_again() -> Node:
    return node("weight", (), {"name": "w", "shape": (4,), "dtype": "f32"}, Tensor((4,), "f32"))


def test_names_that_the_text_form_cannot_say() -> None:
    inputs = tuple(Value(ROWS, name) for name in ("x", "x", "0", "", "a b"))
    assert problems(Graph("a graph", inputs, (), ())) == (
        *(f"{n!r} is no name; expected a letter, then letters, digits and _" for n in ("a graph", "0", "", "a b")),
        "input 'x' is declared twice",
    )


IMPOSSIBLE = [Tensor((-1,), "f32"), Tensor((0, 4), "f32"), Tensor((4,), "f64"), State("kv", "q4_g32")]


@pytest.mark.parametrize("t", IMPOSSIBLE, ids=str)
def test_inputs_that_cannot_be(t: Type) -> None:
    assert problems(Graph("g", (Value(t, "x"),), (), ())) == (f"input 'x' has the impossible type {t}",)


def test_everything_wrong_is_said_at_once() -> None:
    text = """\
    graph g(%x: f32[n, 4], %kv: state<kv, f16>, %k: f32[n, 2, 8]) {
      %0: f32[4] = weight() {name='w', shape=(4,), dtype='f32'}
      %1: f16[4] = weight() {name='w', shape=(4,), dtype='f16'}
      %2: f32[n, 4] = rms_norm(%x, %1) {eps=1}
      %3: f32[n, 5] = silu(%x)
      %4: f32[n, 4] = silu(%x) {beta=1.0}
      %5: state<kv, f16> = kv_append(%kv, %k, %k) {layer=0}
      %6: state<kv, f16> = kv_append(%kv, %k, %k) {layer=1}
      %7: f32[n, 4] = weight()
      return %7, %6
    }"""
    found = problems(parse_graph(text))
    for part in (
        "is f16[4] here",
        "must be a finite float",
        "f32[n, 5]",
        "see beta",
        "written twice",
        "see dtype, name",
    ):
        assert sum(part in problem for problem in found) == 1, part
    assert len(found) == 6


def test_the_error_lists_the_problems_below_the_name_of_the_graph() -> None:
    with pytest.raises(VerifyError, match=r"^graph 'g' is invalid:\n  output 0 is never defined$"):
        verify(Graph("g", (), (), (Value(ROWS),)))


def test_ops_are_called_inside_a_builder_only() -> None:
    with pytest.raises(AssertionError, match="silu was called outside"):
        o.silu(Value(ROWS, "x"))


def test_operands_are_left_out_from_the_end_only() -> None:
    w = Value(Tensor((8, 4), "f32"), "w")
    with Builder().active() as b:
        o.linear(Value(ROWS, "x"), w, None)
        assert len(b.nodes[0].inputs) == 2
        with pytest.raises(AssertionError, match="only trailing operands"):
            o.linear(None, w)


def test_attributes_are_kept_in_the_order_of_the_op() -> None:
    with Builder().active() as b:
        o.weight(dtype="f32", name="w", shape=(4,))
    assert list(b.nodes[0].attrs) == ["name", "shape", "dtype"]
