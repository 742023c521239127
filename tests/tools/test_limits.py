from __future__ import annotations

import pytest

from mlc.ir import Graph, parse_graph, verify
from mlc.tools.bench import Case
from mlc.tools.limits import Limits, steps, work
from mlc.tools.stats import Cost, costs, prefill_step

LIMITS = Limits(read=1e6, bytes=2e6, nibbles=4e6, floats=1e6)


@pytest.fixture
def graph() -> Graph:
    return verify(
        parse_graph(
            "graph f(%x: f32[n, 64], %rows: i32[r]) {\n"
            "  %0: f32[64, 64] = weight() {name='a', shape=(64, 64), dtype='f32'}\n"
            "  %1: q4_g32[64, 64] = quantize(%0) {bits=4, group=32, symmetric=True, scale='f16'}\n"
            "  %2: a8_g32[n, 64] = quantize_rows(%x) {group=32}\n"
            "  %3: f32[n, 64] = linear(%2, %1)\n"
            "  %4: f32[r, 64] = take_rows(%3, %rows)\n"
            "  %5: f32[r, 64] = linear(%4, %0)\n"
            "  return %5\n}\n"
        )
    )


def test_the_limits_are_the_medians_of_what_was_measured() -> None:
    found = [dict.fromkeys(("read", "bytes", "nibbles", "floats"), value) for value in (1.0, 9.0, 2.0)]
    assert Limits.of(found) == Limits(2.0, 2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("reads", "cost", "binds"),
    [
        ("q4_g32[64, 64]", Cost(weights=1.0, operations=8.0), ("nibbles", 2e-6)),
        ("q8_g32[64, 64]", Cost(weights=1.0, operations=8.0), ("bytes", 4e-6)),
        ("f16[64, 64]", Cost(weights=1.0, operations=8.0), ("floats", 8e-6)),
        ("", Cost(cache=5.0, activations=5.0, operations=8.0), ("read", 1e-5)),
    ],
)
def test_an_op_meets_the_limit_that_takes_it_longer(reads: str, cost: Cost, binds: tuple[str, float]) -> None:
    name, seconds = LIMITS.bind(reads, cost)
    assert name == binds[0]
    assert seconds == pytest.approx(binds[1])


def test_decode_is_held_against_the_bandwidth(graph: Graph) -> None:
    """Ten steps in a second, of 64x64 numbers at 4.5 bits and the same at 32."""
    done = work(graph, Case("decode", 100, 10, 8), 1.0, LIMITS, step_tokens=512)
    moved = 10 * 64 * 64 * (4.5 + 32) / 8
    assert done.binds == "read"
    assert [done.rate, done.share] == pytest.approx([moved, moved / 1e6])


def test_a_prompt_is_held_against_the_peak_of_the_weights_that_do_most(graph: Graph) -> None:
    done = work(graph, Case("prefill", 100, 1), 2.0, LIMITS, step_tokens=64)
    operations = 100 * 2 * 64 * 64 + 100 * 64 * 4 + 2 * 64 * 64  # products, quantized rows, the row that samples
    assert done.binds == "nibbles"
    assert [done.rate, done.share] == pytest.approx([operations / 2, operations / 2 / 4e6])


def test_a_prompt_is_cut_into_steps_and_the_last_samples() -> None:
    cut = steps(Case("prefill", 100, 1), 64)
    assert cut == [prefill_step(64, context=64, samples=False), prefill_step(36, context=100)]
    assert steps(Case("prefill", 64, 1), 64) == [prefill_step(64, context=64)]


def test_a_step_that_does_not_sample_leaves_the_head_alone(graph: Graph) -> None:
    made = [
        cost for node, cost in costs(graph, prefill_step(64, context=64, samples=False)) if node.op.name == "linear"
    ]
    assert (made[0].weights, made[1].weights, made[1].operations) == (64 * 64 * 4.5 / 8, 0.0, 0.0)
