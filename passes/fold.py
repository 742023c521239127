"""Splits a graph into what depends on weights alone and what depends on the request.

Running the first part is weight conversion; its results are the artifact's weights, which the second part reads as
`constant` nodes. Nothing else maps checkpoint tensors to artifact tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc.ir import Builder, Graph, Value, verify
from mlc.ir import ops as o

from .constants import constant_values, weight_names
from .rewrite import rebuild


@dataclass(frozen=True, slots=True)
class Folded:
    """`forward` reads constants by name; `conversion` has no inputs, and its output i is the constant `names[i]`."""

    forward: Graph
    conversion: Graph
    names: tuple[str, ...]


def fold(graph: Graph) -> Folded:
    """Cut the graph where constant values meet others."""
    constant, producers = constant_values(graph), graph.producers()
    roots: dict[Value, str] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value in constant and node.outputs[0] not in constant and value not in roots:
                sources = weight_names(value, producers) or (producers[value].op.name,)
                roots[value] = _name(sources, set(roots.values()))
    assert not any(v in constant for v in graph.outputs), "a model's output depends on no input"
    substitute: dict[Value, Value] = {}
    with Builder().active() as builder:
        for value, name in roots.items():
            t = value.tensor
            shape = tuple(d for d in t.shape if isinstance(d, int))
            substitute[value] = o.constant(name=name, shape=shape, dtype=t.dtype, layout=t.layout)
    forward_producers = {**producers, **{v: n for n in builder.nodes for v in n.outputs}}
    forward = rebuild(graph, forward_producers, substitute)
    conversion = rebuild(Graph(f"{graph.name}_weights", (), graph.nodes, tuple(roots)), producers)
    return Folded(verify(forward), verify(conversion), tuple(roots.values()))


def _name(sources: tuple[str, ...], taken: set[str]) -> str:
    """A readable unique name: that of the weight, or of the first of those joined."""
    base = "+".join([sources[0], *(s.split(".")[-2] for s in sources[1:])])
    name, count = base, 2
    while name in taken:
        name, count = f"{base}#{count}", count + 1
    return name
