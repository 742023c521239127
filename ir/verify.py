"""What must hold of every graph, checked after every pass."""

from __future__ import annotations

from mlc.errors import TypeMismatch, VerifyError

from .graph import Graph
from .types import State
from .value import Value


def verify(graph: Graph) -> Graph:
    """Return `graph`, or raise one VerifyError naming everything wrong with it."""
    problems: list[str] = []
    defined: set[Value] = set(graph.inputs)
    spent: set[Value] = set()
    weights: dict[str, str] = {}
    names = [v.name for v in graph.inputs]
    problems += [f"input {n!r} is declared twice" for n in sorted({n for n in names if names.count(n) > 1})]
    for number, node in enumerate(graph.nodes):
        where = f"node {number} ({node.op.name})"
        for operand, value in zip(node.op.operands, node.inputs, strict=False):
            if value not in defined:
                problems.append(f"{where}: {operand} is used before it is defined")
        try:
            expected = node.op.infer([v.type for v in node.inputs], node.attrs)
            actual = tuple(v.type for v in node.outputs)
            if actual != expected:
                text = [", ".join(map(str, types)) for types in (actual, expected)]
                problems.append(f"{where}: is written as {text[0]}, its operands give {text[1]}")
        except TypeMismatch as error:
            problems.append(f"{where}: {error}")
        if any(isinstance(v.type, State) for v in node.outputs):
            for value in (v for v in node.inputs if isinstance(v.type, State)):
                if value in spent:
                    problems.append(f"{where}: state is written twice from the same version")
                spent.add(value)
        if node.op.name == "weight":
            name, kind = str(node.attrs["name"]), str(node.outputs[0].type)
            if weights.setdefault(name, kind) != kind:
                problems.append(f"{where}: weight {name!r} is {kind} here and {weights[name]} before")
        for value in node.outputs:
            if value in defined:
                problems.append(f"{where}: defines a value that is already defined")
            defined.add(value)
    problems += [f"output {i} is never defined" for i, v in enumerate(graph.outputs) if v not in defined]
    if problems:
        raise VerifyError(graph.name, problems)
    return graph
