"""Running a graph node by node."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np

from mlc.ir import evaluate, parse_graph, verify
from mlc.ir.evaluate import Implementation

TEXT = """\
graph g(%x: f32[n, 4]) {
  %0: f32[4] = weight() {name='w', shape=(4,), dtype='f32'}
  %1: f32[4] = constant() {name='c', shape=(4,), dtype='f32', layout=''}
  %2: f32[n, 4], %3: f32[n, 4] = add_rms_norm(%x, %x, %0) {eps=1.0}
  %4: f32[n, 4] = add(%3, %1)
  %5: f32[n, 4] = silu(%4)
  return %5, %2, %x
}"""


def test_values_flow_from_feeds_and_weights_to_outputs() -> None:
    asked: list[str] = []

    def weights(name: str) -> str:
        asked.append(name)
        return name

    implementations: dict[str, Implementation] = {
        "add_rms_norm": lambda x, r, w, *, eps: (f"norm({x}, {r}, {w}, {eps})", f"sum({x}, {r})"),
        "add": lambda a, b: f"{a} + {b}",
        "silu": lambda x: f"silu({x})",
    }
    outputs = evaluate(verify(parse_graph(TEXT)), {"x": "X"}, implementations, weights)
    assert outputs == ["silu(sum(X, X) + c)", "norm(X, X, w, 1.0)", "X"]
    assert asked == ["w", "c"]


class Value(np.ndarray[Any, Any]):
    """An array that can be referred to weakly."""


def test_a_value_is_dropped_after_its_last_use() -> None:
    alive: list[weakref.ref[Value]] = []
    most = 0

    def step(x: Value) -> Value:
        nonlocal most
        gc.collect()
        most = max(most, sum(r() is not None for r in alive))
        result = np.zeros(4).view(Value)
        alive.append(weakref.ref(result))
        return result

    lines = "\n".join(f"  %{i + 1}: f32[4] = silu(%{i})" for i in range(20))
    graph = parse_graph(f"graph g(%x: f32[4]) {{\n  %0: f32[4] = silu(%x)\n{lines}\n  return %20\n}}")
    evaluate(graph, {"x": np.zeros(4).view(Value)}, {"silu": step}, lambda name: None)
    assert most <= 2
