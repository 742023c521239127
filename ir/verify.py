"""What must hold of every graph, checked after every pass."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlc.errors import TypeMismatch, VerifyError

from .graph import Graph, Node
from .types import State, Type, parse_type
from .value import Value

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def verify(graph: Graph) -> Graph:
    """Return `graph`, or raise one VerifyError naming everything wrong with it."""
    laws = (_signature, _definitions, _types, _states, _names_of_data)
    problems = [problem for law in laws for problem in law(graph)]
    if problems:
        raise VerifyError(graph.name, problems)
    return graph


def _nodes(graph: Graph) -> Iterator[tuple[str, Node]]:
    for number, node in enumerate(graph.nodes):
        yield f"node {number} ({node.op.name})", node


def _signature(graph: Graph) -> Iterator[str]:
    """Names and types of inputs survive the text form, and the names differ."""
    names = [v.name for v in graph.inputs]
    for name in (graph.name, *names):
        if not _NAME.fullmatch(name):
            yield f"{name!r} is no name; expected a letter, then letters, digits and _"
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"input {name!r} is declared twice"
    for value in graph.inputs:
        if not _is_possible(value.type):
            yield f"input {value.name!r} has the impossible type {value.type}"


def _is_possible(t: Type) -> bool:
    try:
        same = parse_type(str(t)) == t
    except TypeMismatch:
        return False
    return same and (isinstance(t, State) or all(not isinstance(d, int) or d > 0 for d in t.shape))


def _definitions(graph: Graph) -> Iterator[str]:
    """Every value is defined once, before its uses."""
    defined: set[Value] = set(graph.inputs)
    for where, node in _nodes(graph):
        for operand, value in zip(node.op.operands, node.inputs, strict=False):
            if value not in defined:
                yield f"{where}: {operand} is used before it is defined"
        for value in node.outputs:
            if value in defined:
                yield f"{where}: defines a value that is already defined"
            defined.add(value)
    for i, value in enumerate(graph.outputs):
        if value not in defined:
            yield f"output {i} is never defined"


def _types(graph: Graph) -> Iterator[str]:
    """Results have the types that the op gives for the operands."""
    for where, node in _nodes(graph):
        try:
            expected = node.op.infer([v.type for v in node.inputs], node.attrs)
        except TypeMismatch as error:
            yield f"{where}: {error}"
            continue
        actual = tuple(v.type for v in node.outputs)
        if actual != expected:
            written, given = (", ".join(map(str, types)) for types in (actual, expected))
            yield f"{where}: is written as {written}, its operands give {given}"


def _states(graph: Graph) -> Iterator[str]:
    """A state is written in place: a version that has been written over is gone."""
    gone: set[Value] = set()
    for where, node in _nodes(graph):
        states = [v for v in node.inputs if isinstance(v.type, State)]
        writes = any(isinstance(v.type, State) for v in node.outputs)
        if any(v in gone for v in states):
            yield f"{where}: state is {'written twice from' if writes else 'read after a write over'} the same version"
        if writes:
            gone.update(states)
    for i, value in enumerate(graph.outputs):
        if value in gone:
            yield f"output {i} is a version of a state that has been written over"


def _names_of_data(graph: Graph) -> Iterator[str]:
    """One name stands for one tensor of the checkpoint, or of the artifact."""
    known: dict[tuple[str, str], str] = {}
    for where, node in _nodes(graph):
        if node.op.name in ("weight", "constant"):
            name, kind = str(node.attrs.get("name")), ", ".join(str(v.type) for v in node.outputs)
            before = known.setdefault((node.op.name, name), kind)
            if before != kind:
                yield f"{where}: {node.op.name} {name!r} is {kind} here and {before} before"
