"""Running a graph node by node on given implementations of its ops: the meaning of a graph, made executable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .graph import Graph
from .value import Value

Implementation = Callable[..., Any]


def evaluate(
    graph: Graph,
    feeds: Mapping[str, Any],
    implementations: Mapping[str, Implementation],
    weights: Callable[[str], Any],
) -> list[Any]:
    """The graph's outputs for the inputs `feeds`, by name.

    `implementations[op](*operands, **attrs)` returns the result, or a tuple of them; `weights(name)` gives the value of
    a weight or constant node. Values are dropped after their last use, so memory follows the widest point of the graph.
    """
    last: dict[Value, int] = {v: i for i, node in enumerate(graph.nodes) for v in node.inputs}
    last |= {v: len(graph.nodes) for v in graph.outputs}
    values: dict[Value, Any] = {v: feeds[v.name] for v in graph.inputs}
    for i, node in enumerate(graph.nodes):
        if node.op.name in ("weight", "constant"):
            results: Any = weights(str(node.attrs["name"]))
        else:
            results = implementations[node.op.name](*(values[v] for v in node.inputs), **node.attrs)
        values.update(zip(node.outputs, results if node.op.result_count > 1 else (results,), strict=True))
        for value in node.inputs:
            if last[value] == i:
                values.pop(value, None)
    return [values[v] for v in graph.outputs]
