"""Graph and Node: immutable, straight-line, every value assigned once. A pass builds the next graph, it edits none.

The text form, one line per node, is exact: `parse_graph(str(g)) == g`.

graph block(%x: f32[n, 64]) {
  %0: f32[64] = weight() {name='norm.weight', shape=(64,), dtype='f32'}
  %1: f32[n, 64] = rms_norm(%x, %0) {eps=1e-05}
  return %1
}
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .op import Attr, Op, emitting
from .value import Value


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    op: Op[Any]
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Attr]
    outputs: tuple[Value, ...]

    @property
    def output(self) -> Value:
        """The only result."""
        assert len(self.outputs) == 1, f"{self.op.name} has {len(self.outputs)} results"
        return self.outputs[0]

    def integer(self, attr: str) -> int:
        """An attribute that is an integer."""
        value = self.attrs[attr]
        assert isinstance(value, int)
        return value

    def number(self, attr: str) -> float:
        """An attribute that is a float."""
        value = self.attrs[attr]
        assert isinstance(value, float)
        return value

    def text(self, attr: str) -> str:
        """An attribute that is a string."""
        value = self.attrs[attr]
        assert isinstance(value, str)
        return value


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes are in definition-before-use order. Two graphs are equal when they print the same."""

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def producers(self) -> dict[Value, Node]:
        return {v: n for n in self.nodes for v in n.outputs}

    def uses(self) -> dict[Value, list[Node | None]]:
        """Who reads each value; None stands for the graph's own outputs."""
        uses: dict[Value, list[Node | None]] = {v: [] for v in (*self.inputs, *self.producers())}
        for node in self.nodes:
            for value in node.inputs:
                uses[value].append(node)
        for value in self.outputs:
            uses[value].append(None)
        return uses

    def weights(self) -> dict[str, Node]:
        """The `weight` nodes by their checkpoint name."""
        return {str(n.attrs["name"]): n for n in self.nodes if n.op.name == "weight"}

    def __str__(self) -> str:
        names = {v: f"%{v.name}" for v in self.inputs}
        lines = [f"graph {self.name}({', '.join(f'{names[v]}: {v.type}' for v in self.inputs)}) {{"]
        for node in self.nodes:
            for value in node.outputs:
                names[value] = f"%{len(names) - len(self.inputs)}"
            lines.append(f"  {print_node(node, names)}")
        lines.append(f"  return {', '.join(names.get(v, '%?') for v in self.outputs)}")
        return "\n".join([*lines, "}"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def print_node(node: Node, names: Mapping[Value, str]) -> str:
    results = ", ".join(f"{names[v]}: {v.type}" for v in node.outputs)
    operands = ", ".join(names.get(v, "%?") for v in node.inputs)
    attrs = ", ".join(f"{k}={v!r}" for k, v in node.attrs.items())
    return f"{results} = {node.op.name}({operands})" + (f" {{{attrs}}}" if attrs else "")


@dataclass
class Builder:
    """Collects the nodes that ops emit inside `with builder.active():`."""

    nodes: list[Node] = field(default_factory=list[Node])

    @contextmanager
    def active(self) -> Generator[Builder]:
        with emitting(self.emit):
            yield self

    def emit(self, op: Op[Any], inputs: tuple[Value, ...], attrs: Mapping[str, Attr]) -> tuple[Value, ...]:
        types = op.infer([v.type for v in inputs], attrs)
        ordered = {name: attrs[name] for name in op.attrs}
        node = Node(op, inputs, ordered, tuple(Value(t) for t in types))
        self.nodes.append(node)
        return node.outputs
