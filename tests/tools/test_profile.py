from __future__ import annotations

import pytest

from mlc.ir import Graph, parse_graph, verify
from mlc.tools.profile import Timed, attribute
from mlc.tools.stats import decode_step


@pytest.fixture
def graph() -> Graph:
    return verify(
        parse_graph(
            "graph f(%x: f32[n, 64]) {\n"
            "  %0: f32[64, 64] = weight() {name='a', shape=(64, 64), dtype='f32'}\n"
            "  %1: f32[n, 64] = linear(%x, %0)\n"
            "  %2: f32[32, 64] = weight() {name='b', shape=(32, 64), dtype='f32'}\n"
            "  %3: f32[n, 64] = silu(%1)\n"
            "  %4: f32[n, 32] = linear(%3, %2)\n"
            "  %5: f32[n, 64] = linear(%3, %0)\n"
            "  return %4, %5\n}\n"
        )
    )


def test_calls_are_charged_to_the_weights_they_read_slowest_first(graph: Graph) -> None:
    timed = [
        Timed("linear", "k64", 1.0),
        Timed("silu", "s", 5.0),
        Timed("linear", "k32", 2.0),
        Timed("linear", "k64", 3.0),
    ]
    rows = attribute(timed, graph, decode_step())
    assert [(r.op, r.reads, r.calls, r.seconds) for r in rows] == [
        ("silu", "", 1, 5.0),
        ("linear", "f32[64, 64]", 2, 4.0),
        ("linear", "f32[32, 64]", 1, 2.0),
    ]
    assert rows[1].cost.weights == 2 * 64 * 64 * 4
    assert rows[1].kernels == ("k64",)


def test_several_calls_for_one_node_count_its_bytes_once(graph: Graph) -> None:
    timed = [Timed("silu", "first", 1.0), Timed("silu", "second", 1.0)]
    (row,) = attribute(timed, graph, decode_step())
    assert (row.calls, row.kernels, row.cost.activations) == (2, ("first", "second"), 2 * 64 * 4)


def test_calls_that_do_not_match_the_nodes_keep_their_time_and_claim_no_bytes(graph: Graph) -> None:
    rows = attribute([Timed("linear", "k", 1.0)] * 4 + [Timed("other", "o", 0.5)], graph, decode_step())
    assert [(r.op, r.seconds, r.cost.bytes) for r in rows] == [("linear", 4.0, 0.0), ("other", 0.5, 0.0)]


def test_a_call_for_two_nodes_is_charged_with_both(graph: Graph) -> None:
    timed = [Timed("linear", "k64", 1.0), Timed("silu+linear", "both", 5.0), Timed("linear", "k64", 3.0)]
    both, product = attribute(timed, graph, decode_step())
    assert (both.op, both.reads, both.calls, both.seconds) == ("silu+linear", "f32[32, 64]", 1, 5.0)
    assert (both.cost.calls, both.cost.weights) == (2, 32 * 64 * 4)
    assert (product.reads, product.seconds) == ("f32[64, 64]", 4.0)
