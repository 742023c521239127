"""Fusions: rules that trade several passes over memory for one. Each is proved by evaluating before and after."""

from __future__ import annotations

from typing import Any

from mlc.ir import Graph, Value
from mlc.ir import ops as o

from .rewrite import rewrite, rule


def _norm_of_sum(x: Value, residual: Value, weight: Value, *, eps: float) -> tuple[Value, Value]:
    total = o.add(x, residual)
    return o.rms_norm(total, weight, eps=eps), total


def _equal_types(x: Value, residual: Value, **_: Any) -> bool:
    return x.type == residual.type


@rule(_norm_of_sum, where=_equal_types)
def add_rms_norm(x: Value, residual: Value, weight: Value, eps: float) -> tuple[Value, Value]:
    """The residual add and the norm that follows it read the row once."""
    return o.add_rms_norm(x, residual, weight, eps=eps)


def _gated(x: Value, gate: Value, up: Value) -> Value:
    return o.mul(o.silu(o.linear(x, gate)), o.linear(x, up))


def _can_join(*weights: Value) -> bool:
    """Weights that may stand one above the other: matrices of one width and one number format."""
    return len({(w.tensor.shape[1], w.tensor.dtype) for w in weights}) == 1


@rule(_gated, where=lambda gate, up, **_: gate.tensor.shape == up.tensor.shape and _can_join(gate, up))
def merge_gate_up(x: Value, gate: Value, up: Value) -> Value:
    """The two products of a gated MLP read x once, and the activation reads their result once."""
    return o.swiglu(o.linear(x, o.concat(gate, up)))


def _gated_with_bias(x: Value, gate: Value, up: Value, gate_bias: Value, up_bias: Value) -> Value:
    return o.mul(o.silu(o.linear(x, gate, gate_bias)), o.linear(x, up, up_bias))


@rule(_gated_with_bias, where=lambda gate, up, **_: gate.tensor.shape == up.tensor.shape and _can_join(gate, up))
def merge_gate_up_with_bias(x: Value, gate: Value, up: Value, gate_bias: Value, up_bias: Value) -> Value:
    """As merge_gate_up, with biases."""
    return o.swiglu(o.linear(x, o.concat(gate, up), o.concat(gate_bias, up_bias)))


def _ragged(x: Value) -> bool:
    return len(x.tensor.shape) == 2


def _heads(x: Value, q: Value, k: Value, v: Value, *, heads: int, kv_heads: int) -> tuple[Value, Value, Value]:
    return (
        o.split_heads(o.linear(x, q), heads=heads),
        o.split_heads(o.linear(x, k), heads=kv_heads),
        o.split_heads(o.linear(x, v), heads=kv_heads),
    )


def _heads_with_bias(
    x: Value, q: Value, k: Value, v: Value, bq: Value, bk: Value, bv: Value, *, heads: int, kv_heads: int
) -> tuple[Value, Value, Value]:
    return (
        o.split_heads(o.linear(x, q, bq), heads=heads),
        o.split_heads(o.linear(x, k, bk), heads=kv_heads),
        o.split_heads(o.linear(x, v, bv), heads=kv_heads),
    )


def _joinable(x: Value, q: Value, k: Value, v: Value, **_: Any) -> bool:
    return _ragged(x) and _can_join(q, k, v)


def _cut(qkv: Value, weights: tuple[Value, Value, Value], heads: tuple[int, int, int]) -> tuple[Value, ...]:
    parts: list[Value] = []
    start = 0
    for weight, count in zip(weights, heads, strict=True):
        rows = weight.tensor.shape[0]
        assert isinstance(rows, int)
        parts.append(o.split_heads(o.columns(qkv, start=start, stop=start + rows), heads=count))
        start += rows
    return tuple(parts)


@rule(_heads, where=_joinable)
def merge_qkv(x: Value, q: Value, k: Value, v: Value, heads: int, kv_heads: int) -> tuple[Value, ...]:
    """One product with the three weights on top of each other reads x once."""
    return _cut(o.linear(x, o.concat(q, k, v)), (q, k, v), (heads, kv_heads, kv_heads))


@rule(_heads_with_bias, where=_joinable)
def merge_qkv_with_bias(
    x: Value, q: Value, k: Value, v: Value, bq: Value, bk: Value, bv: Value, heads: int, kv_heads: int
) -> tuple[Value, ...]:
    """As merge_qkv, with biases."""
    merged = o.linear(x, o.concat(q, k, v), o.concat(bq, bk, bv))
    return _cut(merged, (q, k, v), (heads, kv_heads, kv_heads))


def _append(
    kv: Value,
    qkv: Value,
    positions: Value,
    frequencies: Value,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    q_start: int,
    q_stop: int,
    k_start: int,
    k_stop: int,
    v_start: int,
    v_stop: int,
) -> tuple[Value, Value]:
    k = o.split_heads(o.columns(qkv, start=k_start, stop=k_stop), heads=kv_heads)
    v = o.split_heads(o.columns(qkv, start=v_start, stop=v_stop), heads=kv_heads)
    q = o.split_heads(o.columns(qkv, start=q_start, stop=q_stop), heads=heads)
    appended = o.kv_append(kv, o.rope(k, positions, frequencies), v, layer=layer)
    return appended, o.rope(q, positions, frequencies)


def _append_normed(
    kv: Value,
    qkv: Value,
    positions: Value,
    frequencies: Value,
    q_norm: Value,
    k_norm: Value,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    eps: float,
    q_start: int,
    q_stop: int,
    k_start: int,
    k_stop: int,
    v_start: int,
    v_stop: int,
) -> tuple[Value, Value]:
    k = o.rms_norm(o.split_heads(o.columns(qkv, start=k_start, stop=k_stop), heads=kv_heads), k_norm, eps=eps)
    v = o.split_heads(o.columns(qkv, start=v_start, stop=v_stop), heads=kv_heads)
    q = o.rms_norm(o.split_heads(o.columns(qkv, start=q_start, stop=q_stop), heads=heads), q_norm, eps=eps)
    appended = o.kv_append(kv, o.rope(k, positions, frequencies), v, layer=layer)
    return appended, o.rope(q, positions, frequencies)


def _in_order(
    qkv: Value, q_start: int, q_stop: int, k_start: int, k_stop: int, v_start: int, v_stop: int, **_: Any
) -> bool:
    """The three parts lie in the order q, k, v and fill the row."""
    return (q_start, q_stop, k_stop, v_stop) == (0, k_start, v_start, qkv.tensor.shape[-1])


@rule(_append, where=_in_order)
def qkv_rope_append(
    kv: Value, qkv: Value, positions: Value, frequencies: Value, layer: int, heads: int, kv_heads: int, **_: int
) -> tuple[Value, Value]:
    """Cutting, rotating and appending read the merged row once."""
    q, appended = o.qkv_rope_append(
        kv, qkv, positions, frequencies, layer=layer, heads=heads, kv_heads=kv_heads, eps=0.0
    )
    return appended, q


@rule(_append_normed, where=_in_order)
def qkv_norm_rope_append(
    kv: Value,
    qkv: Value,
    positions: Value,
    frequencies: Value,
    q_norm: Value,
    k_norm: Value,
    layer: int,
    heads: int,
    kv_heads: int,
    eps: float,
    **_: int,
) -> tuple[Value, Value]:
    """As qkv_rope_append, with the norms of q and k."""
    q, appended = o.qkv_rope_append(
        kv, qkv, positions, frequencies, q_norm, k_norm, layer=layer, heads=heads, kv_heads=kv_heads, eps=eps
    )
    return appended, q


RULES = (
    add_rms_norm,
    merge_gate_up,
    merge_gate_up_with_bias,
    merge_qkv,
    merge_qkv_with_bias,
    qkv_rope_append,
    qkv_norm_rope_append,
)


def fuse(graph: Graph) -> Graph:
    return rewrite(graph, *RULES)
