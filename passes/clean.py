"""Dead code and common subexpressions: what rebuilding from the outputs leaves out."""

from __future__ import annotations

from mlc.ir import Graph, verify

from .rewrite import rebuild


def clean(graph: Graph) -> Graph:
    """Only what the outputs need, every equal computation once."""
    return verify(rebuild(graph, graph.producers()))
