"""The rewrite engine, on rules of its own."""

from __future__ import annotations

from mlc.ir import Value, parse_graph, verify
from mlc.ir import ops as o
from mlc.passes import rewrite, rule


def _sum_of_silus(a: Value, b: Value) -> Value:
    return o.add(o.silu(a), o.tanh(b))


@rule(_sum_of_silus)
def to_product(a: Value, b: Value) -> Value:
    return o.mul(a, b)


def apply(text: str) -> str:
    return str(rewrite(verify(parse_graph(text)), to_product))


def test_a_match_is_replaced_and_its_nodes_are_gone() -> None:
    before = """graph g(%x: f32[n], %y: f32[n]) {
  %0: f32[n] = silu(%x)
  %1: f32[n] = tanh(%y)
  %2: f32[n] = add(%0, %1)
  return %2
}"""
    assert apply(before) == "graph g(%x: f32[n], %y: f32[n]) {\n  %0: f32[n] = mul(%x, %y)\n  return %0\n}"


def test_the_operands_of_add_match_both_ways() -> None:
    before = """graph g(%x: f32[n], %y: f32[n]) {
  %0: f32[n] = silu(%x)
  %1: f32[n] = tanh(%y)
  %2: f32[n] = add(%1, %0)
  return %2
}"""
    assert "mul(%x, %y)" in apply(before)


def test_a_rule_does_not_match_where_an_inner_value_is_used_outside() -> None:
    before = """graph g(%x: f32[n], %y: f32[n]) {
  %0: f32[n] = silu(%x)
  %1: f32[n] = tanh(%y)
  %2: f32[n] = add(%0, %1)
  %3: f32[n] = add(%2, %0)
  return %3
}"""
    assert apply(before) == before
    returned = before.replace("  %3: f32[n] = add(%2, %0)\n  return %3", "  return %2, %1")
    assert apply(returned) == returned


def test_a_leaf_used_twice_must_be_the_same_value() -> None:
    def same(a: Value) -> Value:
        return o.mul(o.silu(a), a)

    @rule(same)
    def collapse(a: Value) -> Value:
        return o.tanh(a)

    text = """graph g(%x: f32[n], %y: f32[n]) {{
  %0: f32[n] = silu(%x)
  %1: f32[n] = mul(%0, %{other})
  return %1
}}"""
    changed, kept = (rewrite(verify(parse_graph(text.format(other=v))), collapse) for v in "xy")
    assert "tanh" in str(changed) and "tanh" not in str(kept)


def test_equal_computations_are_made_once_and_dead_ones_not_at_all() -> None:
    before = """graph g(%x: f32[n], %y: f32[n]) {
  %0: f32[n] = tanh(%x)
  %1: f32[n] = tanh(%x)
  %2: f32[n] = silu(%y)
  %3: f32[n] = mul(%0, %1)
  %4: f32[n] = silu(%3)
  %5: f32[n] = tanh(%3)
  %6: f32[n] = add(%4, %5)
  return %6
}"""
    after = """graph g(%x: f32[n], %y: f32[n]) {
  %0: f32[n] = tanh(%x)
  %1: f32[n] = mul(%0, %0)
  %2: f32[n] = mul(%1, %1)
  return %2
}"""
    assert apply(before) == after
