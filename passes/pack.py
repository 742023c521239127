"""Weights into the byte order that a target's kernels read. The target says which; this pass only inserts the ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlc.ir import Builder, Graph, Tensor, Value, verify
from mlc.ir import ops as o

from .constants import constant_values
from .rewrite import rebuild


@dataclass(frozen=True, slots=True)
class Pack:
    """Pack the matrix of every `linear` and `embed`; `layout(type)` is the layout's name, or "" for none."""

    layout: Callable[[Tensor], str]

    def __call__(self, graph: Graph) -> Graph:
        constant, producers = constant_values(graph), graph.producers()
        substitute: dict[Value, Value] = {}
        with Builder().active() as builder:
            for node in graph.nodes:
                if node.op.name not in ("linear", "embed"):
                    continue
                place = 0 if node.op.name == "embed" else 1
                w = node.inputs[place]
                if w not in constant or not (layout := self.layout(w.tensor)):
                    continue
                inputs = list(node.inputs)
                inputs[place] = o.pack(w, layout=layout)
                substitute[node.output] = node.op(*inputs, **node.attrs)
        producers.update((v, n) for n in builder.nodes for v in n.outputs)
        return verify(rebuild(graph, producers, substitute))
