"""Which values depend on weights alone."""

from __future__ import annotations

from mlc.ir import Graph, Node, Value


def constant_values(graph: Graph) -> set[Value]:
    """Values with no graph input among what they are computed from."""
    constant: set[Value] = set()
    for node in graph.nodes:
        if all(v in constant for v in node.inputs):
            constant.update(node.outputs)
    return constant


def weight_names(value: Value, producers: dict[Value, Node]) -> tuple[str, ...]:
    """The checkpoint names that a constant value is computed from, in order."""
    node = producers[value]
    if node.op.name == "weight":
        return (str(node.attrs["name"]),)
    return tuple(name for v in node.inputs for name in weight_names(v, producers))
