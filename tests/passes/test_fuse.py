"""Each fusion as text before and text after, and what fusing makes of whole models."""

from __future__ import annotations

import pytest

from mlc.frontend.nn import Weights
from mlc.frontend.registry import find
from mlc.ir import Graph, parse_graph, verify
from mlc.passes import fuse

CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 128,
}


def fused(text: str) -> str:
    return str(fuse(verify(parse_graph(text))))


def model(model_type: str, dtypes: dict[str, str] | None = None, **extra: object) -> Graph:
    module, config = find({"model_type": model_type, **CONFIG, **extra}, "config.json")
    graph = module.build(config, Weights(dtypes or {}))
    assert isinstance(graph, Graph)
    return graph


def test_the_sum_survives_a_fused_norm_when_something_else_reads_it() -> None:
    before = """graph g(%x: f32[n, 4], %r: f32[n, 4], %w: f32[4]) {
  %0: f32[n, 4] = add(%x, %r)
  %1: f32[n, 4] = rms_norm(%0, %w) {eps=1e-05}
  return %1, %0
}"""
    after = """graph g(%x: f32[n, 4], %r: f32[n, 4], %w: f32[4]) {
  %0: f32[n, 4], %1: f32[n, 4] = add_rms_norm(%x, %r, %w) {eps=1e-05}
  return %0, %1
}"""
    assert fused(before) == after


def test_a_bias_is_no_residual() -> None:
    before = """graph g(%x: f32[n, 4], %b: f32[4], %w: f32[4]) {
  %0: f32[n, 4] = add(%x, %b)
  %1: f32[n, 4] = rms_norm(%0, %w) {eps=1e-05}
  return %1
}"""
    assert fused(before) == before


def test_gate_and_up_become_one_product() -> None:
    before = """graph g(%x: f32[n, 4], %g: f32[8, 4], %u: f32[8, 4]) {
  %0: f32[n, 8] = linear(%x, %g)
  %1: f32[n, 8] = silu(%0)
  %2: f32[n, 8] = linear(%x, %u)
  %3: f32[n, 8] = mul(%1, %2)
  return %3
}"""
    after = """graph g(%x: f32[n, 4], %g: f32[8, 4], %u: f32[8, 4]) {
  %0: f32[16, 4] = concat(%g, %u)
  %1: f32[n, 16] = linear(%x, %0)
  %2: f32[n, 8] = swiglu(%1)
  return %2
}"""
    assert fused(before) == after


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_layer_is_left_with_nine_ops(model_type: str) -> None:
    graph = fuse(model(model_type))
    ops = [n.op.name for n in graph.nodes]
    layers = CONFIG["num_hidden_layers"]
    for op in ("qkv_rope_append", "attention", "swiglu"):
        assert ops.count(op) == layers, op
    for op in ("rope", "kv_append", "silu", "mul", "columns", "split_heads"):
        assert ops.count(op) == 0, op
    assert ops.count("linear") == 4 * layers + 1
    assert ops.count("add_rms_norm") == 2 * layers - 1


def test_weights_of_different_formats_stay_apart() -> None:
    graph = fuse(model("llama", {"model.layers.0.self_attn.v_proj.weight": "q8_g32"}))
    ops = [n.op.name for n in graph.nodes]
    assert ops.count("qkv_rope_append") == 2 and ops.count("kv_append") == 1


def test_fusing_twice_changes_nothing() -> None:
    once = fuse(model("qwen3"))
    assert fuse(once) == once
