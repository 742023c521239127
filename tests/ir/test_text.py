"""The text form: what is printed parses to the same graph, and whatever else is parsed gives a named error."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.errors import BadGraph, ParseError
from mlc.ir import OPS, Attr, Builder, Graph, Node, State, Tensor, Type, Value, parse_graph, sym, verify
from mlc.ir import ops as o

TYPES: st.SearchStrategy[Type] = st.sampled_from(
    [
        Tensor((sym("n"), 64), "f32"),
        Tensor((), "bf16"),
        Tensor((2 * sym("h") - 1, sym("n") + sym("h"), 3), "q4a_g32_i8", "r16k4"),
        Tensor((sym("n"), 64), "a8_g32"),
        State("kv", "f16"),
    ]
)
ATTRS: st.SearchStrategy[Attr] = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.sampled_from(
        ["a) {b}", "it's", '"', "'\"", "\\", "\n\r\t\x00", "\x85\u2028", " = add(%x)", "{}", ", x=1", "é 漢 🙂"]
    ),
    st.booleans(),
    st.lists(st.integers()).map(tuple),
)
NAMES = st.from_regex(r"[a-z_][a-zA-Z0-9_]{0,5}", fullmatch=True)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph the text form can express; few obey their ops."""
    inputs = tuple(Value(draw(TYPES), name) for name in draw(st.lists(NAMES, max_size=3, unique=True)))
    values, nodes = list(inputs), list[Node]()
    for _ in range(draw(st.integers(0, 6))):
        operands = tuple(draw(st.lists(st.sampled_from(values), max_size=3))) if values else ()
        outputs = tuple(map(Value, draw(st.lists(TYPES, min_size=1, max_size=2))))
        attrs = draw(st.dictionaries(NAMES, ATTRS, max_size=4))
        nodes.append(Node(OPS[draw(st.sampled_from(sorted(OPS)))], operands, attrs, outputs))
        values += outputs
    outputs = tuple(draw(st.lists(st.sampled_from(values), max_size=2))) if values else ()
    return Graph(draw(NAMES), inputs, tuple(nodes), outputs)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_printing_then_parsing_gives_the_same_graph(graph: Graph) -> None:
    text = str(graph)
    parsed = parse_graph(text)
    assert str(parsed) == text and parsed == graph and hash(parsed) == hash(graph)
    for old, new in zip(graph.nodes, parsed.nodes, strict=True):  # not in their text alone
        assert (new.op, dict(new.attrs)) == (old.op, dict(old.attrs))
        assert [type(v) for v in new.attrs.values()] == [type(v) for v in old.attrs.values()]
        assert [v.type for v in new.outputs] == [v.type for v in old.outputs]


def block() -> Graph:
    """A valid graph with every kind of attribute, type and node."""
    n = sym("n")
    x, positions = Value(Tensor((n, 64), "f32"), "x"), Value(Tensor((n,), "i32"), "positions")
    kv = Value(State("kv", "f16"), "kv")
    with Builder().active() as b:
        f = o.rope_frequencies(
            dim=16, theta=1e4, scaling="llama3", factor=8.0, low=1.0, high=4.0, original_context=8192
        )
        w = o.weight(name='it\'s "q" {x}\n', shape=(128, 64), dtype="bf16")
        w = o.pack(o.quantize(w, bits=4, group=32, symmetric=True, scale="f16"), layout="r16k4")
        rows = o.quantize_rows(x, group=32)
        q, new = o.qkv_rope_append(kv, o.linear(rows, w), positions, f, layer=0, heads=4, kv_heads=2, eps=1e-6)
        y = o.merge_heads(o.attention(q, new, layer=0, kv_heads=2, scale=0.25, window=0))
    return verify(Graph("block", (x, positions, kv), tuple(b.nodes), (y, new)))


def test_a_valid_graph_stays_valid_through_its_text() -> None:
    assert verify(parse_graph(str(block()))) == block()


def test_space_around_lines_does_not_matter() -> None:
    text = "\n\n" + str(block()).replace("\n", "   \n\n").replace("  %", "\t %") + "\n\n"
    assert parse_graph(text) == block()


GOOD = """\
graph g(%x: f32[n, 4], %kv: state<kv, f16>) {
  %0: f32[4] = weight() {name='w', shape=(4,), dtype='f32'}
  %1: f32[n, 4] = rms_norm(%x, %0) {eps=1e-05}
  return %1, %kv
}"""

MALFORMED = [  # what to replace, by what, the line and the column of the error, what it says
    (GOOD, "", 1, 1, "the text ends where a line such as"),
    ("graph g", "grph g", 1, 1, "expected a line such as `graph name(%x: f32[n]) {`"),
    (") {\n  %0", ")\n  %0", 1, 1, "expected a line such as"),
    ("%x: f32[n, 4],", "%x: f99[n, 4],", 1, 13, "unknown dtype 'f99'"),
    ("%x: f32[n, 4],", "%x: f32[n, 4*n*n],", 1, 13, "'4*n*n' is no dimension"),
    ("%kv: state", "%x: state", 1, 24, "%x is defined twice"),
    ("%kv: state<kv, f16>", "kv", 1, 13, "'f32[n, 4], kv' is no type"),
    ("%x: f32[n, 4], ", "x, ", 1, 9, "expected a typed name"),
    ("%0: f32[4] = weight()", "%0: f32[4] weight()", 2, 3, "expected a node such as"),
    ("= weight()", "= wait()", 2, 16, "unknown op 'wait'"),
    ("  %0: f32[4] = w", "  %x: f32[4] = w", 2, 3, "%x is defined twice"),
    ("  %0: f32[4] = w", "  %0: f32[4 = w", 2, 7, "'f32[4' is no type"),
    ("weight() {", "weight() [", 2, 24, "expected attributes such as ` {eps=1e-05}`, or nothing"),
    ("dtype='f32'}", "dtype='f32'", 2, 24, "expected attributes such as ` {eps=1e-05}`, or nothing"),
    ("shape=(4,)", "shape", 2, 36, "expected attributes such as"),
    ("shape=(4,)", "shape=(4", 2, 36, "expected attributes such as"),
    ("shape=(4,)", "shape=((4,),)", 2, 36, "expected attributes such as"),
    ("shape=(4,)", "name='v'", 2, 36, "attribute name is given twice"),
    ("name='w'", "name='\\d'", 2, 26, "expected attributes such as"),
    ("name='w'", "name='w", 2, 26, "expected attributes such as"),
    ("name='w', ", "name='w'; ", 2, 26, "expected attributes such as"),
    ("name='w'", "name=open", 2, 31, "open is no value"),
    ("name='w'", "name=[1]", 2, 31, "[1] is no value"),
    ("name='w'", f"name={'9' * 5000}", 2, 31, "is no value"),
    ("name='w'", f"name={'-' * 100_000}1", 2, 31, "is no value"),
    ("eps=1e-05", "eps=1e-05)(a=1", 3, 37, "expected attributes such as"),
    ("rms_norm(%x, %0)", "rms_norm(%x, %9)", 3, 32, "unknown name '%9'"),
    ("rms_norm(%x, %0)", "rms_norm(%x,%0)", 3, 28, "unknown name '%x,%0'"),
    ("rms_norm(%x, %0)", "rms_norm(%1, %0)", 3, 28, "unknown name '%1'"),
    ("return %1, %kv", "return %1, %2", 4, 14, "unknown name '%2'"),
    ("  return %1, %kv\n", "", 4, 1, "expected a node such as"),
    ("  return %1, %kv\n}", "", 3, 1, "the text ends where a node, `return` or `}` was expected"),
    ("\n}", "", 4, 1, "the text ends where `}` was expected"),
    ("\n}", "\n)", 5, 1, "expected `}` after `return`"),
    ("\n}", "\n}\n\n}", 7, 1, "expected nothing after the graph"),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "message"), MALFORMED)
def test_a_parse_error_names_its_place(old: str, new: str, line: int, column: int, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ParseError, match=re.escape(message)) as caught:
        parse_graph(GOOD.replace(old, new))
    assert (caught.value.line, caught.value.column) == (line, column)


def test_the_good_text_is_good() -> None:
    assert str(verify(parse_graph(GOOD))) == GOOD


def test_a_parse_error_shows_the_line_with_a_mark_under_the_place() -> None:
    with pytest.raises(ParseError) as caught:
        parse_graph(GOOD.replace("%0) {eps", "%9) {eps"))
    shown, mark = str(caught.value).splitlines()[1:]
    assert shown.index("%9") == mark.index("^")


def test_thousands_of_mutations_give_a_graph_or_a_named_error() -> None:
    chance = random.Random(0)
    texts = [GOOD, str(block())]
    alphabet = "%()[]{}<>=,:'\"\\ \n+-*@_09anfgx.é\x00\u2028"
    outcomes = {"graph": 0, "error": 0}
    for _ in range(6000):
        text = chance.choice(texts)
        for _ in range(chance.choice([1, 1, 2, 5, 20])):
            a = chance.randrange(len(text) + 1)
            b = min(len(text), a + chance.choice([0, 0, 1, 2, 10, 40]))
            piece = chance.choice(["", chance.choice(alphabet), text[a:b] * 2, chance.choice(texts)[a:b]])
            text = text[:a] + piece + text[b:]
        try:
            verify(parse_graph(text))
            outcomes["graph"] += 1
        except ParseError as error:
            outcomes["error"] += 1
            lines = text.splitlines() or [""]
            assert 1 <= error.line <= len(lines) and 1 <= error.column <= len(lines[error.line - 1]) + 1
        except BadGraph:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["%x = a(", "%x = a() {", "(", "{", "'", '"', "%", "%x: ", " ", "a='\\", "x=(", ", "])
def test_long_lines_are_refused_in_time_linear_in_their_length(piece: str) -> None:
    for prefix in ("", "graph g(", "graph g(%x: f32[4]) {\n%0: ", "graph g(%x: f32[4]) {\n%0: f32[4] = silu(%x) {"):
        with pytest.raises(BadGraph):
            verify(parse_graph(prefix + piece * (1_000_000 // len(piece))))
