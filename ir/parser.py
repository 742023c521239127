"""Reads the text form of a graph. Every error names its line and column."""

from __future__ import annotations

import ast
import re

from mlc.errors import BadGraph, ParseError

from .graph import Graph, Node
from .op import OPS, Attr
from .types import parse_type
from .value import Value

_HEAD = re.compile(r"graph (\w+)\((.*)\) \{")
_TYPED = re.compile(r"(%\w+): ([^%]*?)(?:, (?=%)|$)")
_NODE = re.compile(r"(\s*)(%.+?) = (\w+)\(([^)]*)\)(?: \{(.*)\})?\s*")
_RETURN = re.compile(r"\s*return ?(.*)")


def parse_graph(text: str) -> Graph:
    """Parse one graph. The result is not verified: `verify(parse_graph(text))` is the usual call."""
    return _Parser(text).graph()


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.names: dict[str, Value] = {}
        self.row = 0

    def graph(self) -> Graph:
        head = self._next("a line such as `graph name(%x: f32[n]) {`")
        match = _HEAD.fullmatch(head)
        if not match:
            raise self._error("expected a line such as `graph name(%x: f32[n]) {`", 0)
        inputs = self._define(match[2], match.start(2), keep_names=True)
        nodes: list[Node] = []
        while True:
            line = self._next("a node, `return` or `}`")
            if found := _RETURN.fullmatch(line):
                outputs = self._operands(found[1], found.start(1))
                break
            nodes.append(self._node(line))
        if self._next("`}`").strip() != "}":
            raise self._error("expected `}` after `return`", 0)
        for row in range(self.row, len(self.lines)):
            if self.lines[row].strip():
                self.row = row + 1
                raise self._error("expected nothing after the graph", 0)
        return Graph(match[1], inputs, tuple(nodes), outputs)

    def _next(self, expected: str) -> str:
        while self.row < len(self.lines) and not self.lines[self.row].strip():
            self.row += 1
        self.row += 1
        if self.row > len(self.lines):
            raise self._error(f"the text ends where {expected} was expected", 0)
        return self.lines[self.row - 1]

    def _node(self, line: str) -> Node:
        match = _NODE.fullmatch(line)
        if not match:
            raise self._error("expected a node such as `%1: f32[n] = op(%0) {attr=1}`", len(line) - len(line.lstrip()))
        if match[3] not in OPS:
            raise self._error(f"unknown op {match[3]!r}", match.start(3))
        inputs = self._operands(match[4], match.start(4))
        attrs = self._attrs(match[5], match.start(5)) if match[5] is not None else {}
        return Node(OPS[match[3]], inputs, attrs, self._define(match[2], match.start(2)))

    def _define(self, text: str, offset: int, *, keep_names: bool = False) -> tuple[Value, ...]:
        values: list[Value] = []
        end = 0
        for match in _TYPED.finditer(text):
            if match.start() != end:
                break
            end = match.end()
            if match[1] in self.names:
                raise self._error(f"{match[1]} is defined twice", offset + match.start(1))
            try:
                value = Value(parse_type(match[2]), match[1][1:] if keep_names else "")
            except BadGraph as error:
                raise self._error(str(error), offset + match.start(2)) from None
            self.names[match[1]] = value
            values.append(value)
        if end != len(text):
            raise self._error("expected a typed name such as `%x: f32[n]`", offset + end)
        return tuple(values)

    def _operands(self, text: str, offset: int) -> tuple[Value, ...]:
        values: list[Value] = []
        for name in text.split(", ") if text else ():
            if name not in self.names:
                raise self._error(f"unknown name {name!r}", offset)
            values.append(self.names[name])
            offset += len(name) + 2
        return tuple(values)

    def _attrs(self, text: str, offset: int) -> dict[str, Attr]:
        try:
            call = ast.parse(f"_({text})", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError
            attrs = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._error("expected attributes such as `eps=1e-05, name='x'`", offset) from None
        if len(attrs) != len(call.keywords):
            raise self._error("expected attributes such as `eps=1e-05, name='x'`", offset)
        return attrs

    def _error(self, message: str, column: int) -> ParseError:
        line = self.lines[self.row - 1] if 0 < self.row <= len(self.lines) else ""
        return ParseError(message, line=min(self.row, len(self.lines)) or 1, column=column + 1, text=line)
