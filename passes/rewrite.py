"""Rules: a pattern and its replacement, both written as the code they match and produce.

What a pattern returns may be used from outside the match; everything else in it must be private, or the rule does not
apply. Operands of add and mul match both ways. A keyword-only parameter of a pattern stands for an attribute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlc.ir import Builder, Graph, Node, Op, Value, emitting, verify

Bindings = dict[str, Any]
_COMMUTATIVE = frozenset({"add", "mul"})


@dataclass(frozen=True, eq=False, slots=True)
class _Pattern:
    """One result of one node of a pattern; a leaf (op is None) binds any value, or any attribute, to `name`."""

    op: Op[Any] | None
    inputs: tuple[_Pattern, ...] = ()
    attrs: Mapping[str, Any] | None = None
    name: str = ""
    output: int = 0


def _trace(op: Op[Any], inputs: Any, attrs: Mapping[str, Any]) -> Any:
    """Ops called on patterns give patterns; no type is inferred."""
    return tuple(_Pattern(op, tuple(inputs), dict(attrs), output=i) for i in range(op.result_count))


@dataclass(frozen=True)
class Rule:
    name: str
    doc: str
    roots: tuple[_Pattern, ...]
    replace: Callable[..., Any]
    where: Callable[..., bool]


def always(**_: Any) -> bool:
    return True


def rule(pattern: Callable[..., Any], where: Callable[..., bool] = always) -> Callable[[Callable[..., Any]], Rule]:
    """`@rule(pattern)` above a replacement function makes a Rule. Pattern, replacement, `where` take the same names."""

    def decorate(replace: Callable[..., Any]) -> Rule:
        leaves = {name: _Pattern(None, name=name) for name in inspect.signature(pattern).parameters}
        with emitting(_trace):
            roots = _as_tuple(pattern(**leaves))
        return Rule(replace.__name__, inspect.getdoc(replace) or "", roots, replace, where)

    return decorate


@dataclass(frozen=True)
class _Match:
    bound: Bindings
    values: dict[_Pattern, Value]  # what each pattern node matched

    def with_value(self, pattern: _Pattern, value: Value) -> _Match:
        return _Match(self.bound, {**self.values, pattern: value})


class _Matcher:
    """Finds where a rule applies in one graph."""

    def __init__(self, graph: Graph) -> None:
        self.producers = graph.producers()
        self.uses = graph.uses()
        self.by_op: dict[Op[Any], list[Node]] = {}
        for node in graph.nodes:
            self.by_op.setdefault(node.op, []).append(node)

    def matches(self, rule: Rule, node: Node) -> _Match | None:
        """The first match of `rule` whose first root is a result of `node`, if its inner values are private."""
        first, *others = rule.roots
        start = _Match({}, {})
        for match in self._roots(others, self._value(first, node.outputs[first.output], start)):
            if self._private(rule, match) and rule.where(**match.bound):
                return match
        return None

    def _roots(self, roots: Sequence[_Pattern], matches: Generator[_Match]) -> Generator[_Match]:
        for match in matches:
            if not roots:
                yield match
                continue
            root, *rest = roots
            if root in match.values:
                yield from self._roots(rest, _one(match))
                continue
            assert root.op is not None, "a pattern must not return its own parameter"
            taken = set(match.values.values())
            for node in self.by_op.get(root.op, ()):
                value = node.outputs[root.output]
                if value not in taken:
                    yield from self._roots(rest, self._value(root, value, match))

    def _value(self, pattern: _Pattern, value: Value, match: _Match) -> Generator[_Match]:
        if pattern.op is None:
            bound = match.bound.get(pattern.name, value)
            if bound is value:
                yield _Match({**match.bound, pattern.name: value}, match.values)
            return
        if pattern in match.values:
            if match.values[pattern] is value:
                yield match
            return
        node = self.producers.get(value)
        if node is None or node.op is not pattern.op or node.outputs[pattern.output] is not value:
            return
        if len(node.inputs) != len(pattern.inputs):
            return
        bound = dict(match.bound)
        for name, want in (pattern.attrs or {}).items():
            have = node.attrs[name]
            if isinstance(want, _Pattern):
                if bound.setdefault(want.name, have) != have:
                    return
            elif want != have:
                return
        started = _Match(bound, {**match.values, pattern: value})
        yield from self._operands(pattern.inputs, node.inputs, started)
        if pattern.op.name in _COMMUTATIVE and node.inputs[0].type == node.inputs[1].type:
            yield from self._operands(pattern.inputs, node.inputs[::-1], started)

    def _operands(self, patterns: tuple[_Pattern, ...], values: tuple[Value, ...], match: _Match) -> Generator[_Match]:
        if not patterns:
            yield match
            return
        for found in self._value(patterns[0], values[0], match):
            yield from self._operands(patterns[1:], values[1:], found)

    def _private(self, rule: Rule, match: _Match) -> bool:
        """No value inside of the match, other than the roots, is read outside of it."""
        inside = {id(self.producers[v]) for v in match.values.values()}
        roots = {match.values[root] for root in rule.roots}
        return all(
            value in roots or all(user is not None and id(user) in inside for user in self.uses[value])
            for matched in match.values.values()
            for value in self.producers[matched].outputs
        )


def _one(match: _Match) -> Generator[_Match]:
    yield match


def _as_tuple(x: Any) -> tuple[Any, ...]:
    result: tuple[Any, ...] = x if isinstance(x, tuple) else (x,)
    return result


def rewrite(graph: Graph, *rules: Rule) -> Graph:
    """Apply `rules` wherever they match, first rule first, until none does. Dead nodes are gone from the result."""
    for r in rules:
        while (changed := _apply(graph, r)) is not None:
            graph = changed
    return verify(graph)


def _apply(graph: Graph, r: Rule) -> Graph | None:
    """One sweep of one rule over the graph, matches not overlapping; None where it matches nowhere."""
    matcher = _Matcher(graph)
    producers = dict(matcher.producers)
    substitute: dict[Value, Value] = {}
    consumed: set[int] = set()  # nodes of earlier matches
    for node in graph.nodes:
        if node.op is not r.roots[0].op or id(node) in consumed:
            continue
        match = matcher.matches(r, node)
        if match is None:
            continue
        inside = {id(producers[v]) for v in match.values.values()}
        if inside & consumed:
            continue
        consumed |= inside
        with Builder().active() as builder:
            new: tuple[Value, ...] = _as_tuple(r.replace(**match.bound))
        for old, value in zip((match.values[root] for root in r.roots), new, strict=True):
            assert old.type == value.type, f"rule {r.name} turns {old.type} into {value.type}"
        producers.update((v, n) for n in builder.nodes for v in n.outputs)
        substitute.update(zip((match.values[root] for root in r.roots), new, strict=True))
    return rebuild(graph, producers, substitute) if substitute else None


def rebuild(graph: Graph, producers: Mapping[Value, Node], substitute: Mapping[Value, Value] | None = None) -> Graph:
    """Copy what the outputs need, values replaced by `substitute`, in definition-before-use order, equal nodes once.

    Iterative: 126 layers outgrow Python's stack.
    """
    substitute = substitute or {}

    def final(value: Value) -> Value:
        while value in substitute:
            value = substitute[value]
        return value

    copies: dict[Value, Value] = {v: v for v in graph.inputs}
    seen: dict[Any, Node] = {}
    nodes: list[Node] = []
    pending = [final(v) for v in reversed(graph.outputs)]
    while pending:
        value = pending[-1]
        if value in copies:
            pending.pop()
            continue
        old = producers[value]
        missing = [v for v in map(final, old.inputs) if v not in copies]
        if missing:
            pending.extend(reversed(missing))
            continue
        pending.pop()
        inputs = tuple(copies[final(v)] for v in old.inputs)
        key = (old.op, inputs, tuple(old.attrs.items()))
        if key not in seen:
            seen[key] = Node(old.op, inputs, old.attrs, tuple(Value(v.type) for v in old.outputs))
            nodes.append(seen[key])
        copies.update(zip(old.outputs, seen[key].outputs, strict=True))
    return Graph(graph.name, graph.inputs, tuple(nodes), tuple(copies[final(v)] for v in graph.outputs))
