from __future__ import annotations

import pytest

from mlc.ir import OPS, Graph, parse_graph, verify
from mlc.tools.stats import Cost, constants, costs, decode_step, is_counted, prefill_step, summarize, total

LAYER = """\
graph forward(%tokens: i32[n], %positions: i32[n], %rows: i32[r], %kv: state<kv, f16>) {
  %0: f16[100, 64] = weight() {name='embed', shape=(100, 64), dtype='f16'}
  %1: q8_g32[100, 64] = quantize(%0) {bits=8, group=32, symmetric=True, scale='f16'}
  %2: f32[n, 64] = embed(%1, %tokens)
  %3: f32[128, 64] = weight() {name='qkv', shape=(128, 64), dtype='f32'}
  %4: f32[n, 128] = linear(%2, %3)
  %5: f32[8] = rope_frequencies() {dim=16, theta=10000.0, scaling='none', factor=1.0, low=1.0, high=4.0, \
original_context=0}
  %6: f32[n, 4, 16], %7: state<kv, f16> = qkv_rope_append(%kv, %4, %positions, %5) \
{layer=0, heads=4, kv_heads=2, eps=0.0}
  %8: f32[n, 4, 16] = attention(%6, %7) {layer=0, kv_heads=2, scale=0.25, window=0}
  %9: f32[n, 64] = merge_heads(%8)
  %10: f32[r, 64] = take_rows(%9, %rows)
  %11: a8_g32[r, 64] = quantize_rows(%10) {group=32}
  %12: f32[r, 100] = linear(%11, %1)
  return %12, %7
}
"""


@pytest.fixture
def layer() -> Graph:
    return verify(parse_graph(LAYER))


def cost_of(graph: Graph, op: str, context: int = 512, tokens: int = 1) -> Cost:
    return sum((c for n, c in costs(graph, decode_step(context=context, tokens=tokens)) if n.op.name == op), Cost())


def test_every_op_has_a_cost() -> None:
    assert [name for name in OPS if not is_counted(name)] == []


def test_a_product_reads_its_weight_once_and_multiplies_and_adds_for_each_of_its_numbers(layer: Graph) -> None:
    made = [c for n, c in costs(layer, decode_step()) if n.op.name == "linear"]
    assert made[0].weights == 128 * 64 * 4
    assert made[0].activations == (64 + 128) * 4
    assert made[0].operations == 2 * 128 * 64
    assert made[1].weights == 100 * 64 * (8 + 16 / 32) / 8, "a quantized weight counts with its scales"


def test_more_rows_reuse_the_weight(layer: Graph) -> None:
    one, four = (next(c for n, c in costs(layer, decode_step(tokens=t)) if n.op.name == "linear") for t in (1, 4))
    assert (four.weights, four.operations) == (one.weights, 4 * one.operations)


def test_what_depends_on_weights_alone_costs_a_step_nothing(layer: Graph) -> None:
    assert cost_of(layer, "quantize") == cost_of(layer, "rope_frequencies") == Cost()
    assert len(constants(layer)) == 4


def test_a_lookup_reads_one_row_of_the_table(layer: Graph) -> None:
    assert cost_of(layer, "embed").weights == 64 * 8.5 / 8


def test_attention_reads_the_whole_context_and_the_append_writes_one_token(layer: Graph) -> None:
    assert cost_of(layer, "attention", context=1000).cache == 1000 * 2 * 2 * 16 * 2
    assert cost_of(layer, "attention", context=1000).operations == 4 * 4 * 16 * 1000
    assert cost_of(layer, "qkv_rope_append", context=1000).cache == 2 * 2 * 16 * 2


def test_a_window_bounds_what_attention_reads(layer: Graph) -> None:
    windowed = parse_graph(LAYER.replace("window=0", "window=10"))
    assert cost_of(windowed, "attention", context=1000) == cost_of(layer, "attention", context=10)


def test_parameters_are_counted_once_and_computed_tables_are_none(layer: Graph) -> None:
    assert total(summarize(layer, decode_step())).parameters == 100 * 64 + 128 * 64


def test_rows_are_grouped_by_op_and_weight_and_add_up(layer: Graph) -> None:
    rows = summarize(layer, decode_step())
    assert [(r.op, r.reads) for r in rows] == [
        ("embed", "q8_g32[100, 64]"),
        ("linear", "f32[128, 64]"),
        ("qkv_rope_append", ""),
        ("attention", ""),
        ("take_rows", ""),
        ("quantize_rows", ""),
        ("linear", "q8_g32[100, 64]"),
    ]
    whole = total(rows)
    assert whole == sum((c for _, c in costs(layer, decode_step()) if c.calls and c.bytes), Cost())
    assert whole.bytes == whole.weights + whole.activations + whole.cache


def test_an_encoder_is_counted_too() -> None:
    graph = parse_graph(
        "graph encode(%x: f32[b, 3, 8, 8]) {\n"
        "  %0: f32[16, 3, 2, 2] = weight() {name='w', shape=(16, 3, 2, 2), dtype='f32'}\n"
        "  %1: f32[b, 16, 4, 4] = conv2d(%x, %0) {stride=2, padding=0}\n"
        "  %2: f32[b, 16, 16] = patches_to_rows(%1)\n"
        "  %3: f32[b, 16, 2, 8] = split_heads(%2) {heads=2}\n"
        "  %4: f32[b, 16, 2, 8] = full_attention(%3, %3, %3) {scale=0.5}\n"
        "  return %4\n}\n"
    )
    by_op = {n.op.name: c for n, c in costs(verify(graph), decode_step())}
    assert by_op["conv2d"].operations == 2 * 16 * 16 * (3 * 2 * 2)
    assert by_op["full_attention"].operations == 4 * 16 * 16 * 16
    assert by_op["split_heads"].bytes == 0


def test_a_chunk_of_a_prompt_attends_to_what_is_before_it_and_reads_the_cache_once(layer: Graph) -> None:
    step = prefill_step(4, context=10)
    (made,) = [c for n, c in costs(layer, step) if n.op.name == "attention"]
    assert made.operations == 4 * 4 * 16 * (7 + 8 + 9 + 10), "4 heads of 16 numbers, for each row its own context"
    assert made.cache == 2 * 10 * 2 * 16 * 2, "K and V of 10 tokens, 2 heads of 16 halves"


def test_a_window_is_all_that_a_chunk_reads() -> None:
    graph = verify(parse_graph(LAYER.replace("window=0", "window=3")))
    (made,) = [c for n, c in costs(graph, prefill_step(4, context=10)) if n.op.name == "attention"]
    assert made.operations == 4 * 4 * 16 * 4 * 3
    assert made.cache == 2 * (3 + 3) * 2 * 16 * 2, "the window of the first row to that of the last"
    (first,) = [c for n, c in costs(graph, prefill_step(4, context=4)) if n.op.name == "attention"]
    assert first.operations == 4 * 4 * 16 * (1 + 2 + 3 + 3)
