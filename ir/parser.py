"""Reads the text form of a graph. Every error names its line and column."""

from __future__ import annotations

import ast
import re

from mlc.errors import BadGraph, ParseError

from .graph import Graph, Node
from .op import OPS, Attr
from .types import parse_type
from .value import Value


def _string(quote: str) -> str:
    """A regex of what `repr` makes of strings."""
    escapes = r"\\(?:[\\'nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
    return rf"{quote}(?:[^{quote}\\]|{escapes})*{quote}"


_HEAD = re.compile(r"\s*graph (\w+)\((.*)\) \{")
_TYPED = re.compile(r"(%\w+): ([^%]*?)(?:, (?=%)|$)")
_NODE = re.compile(r"\s*(%[^=]*) = (\w+)\(([^()]*)\)")
_ATTR = re.compile(
    r"""(\w+)=([^\s,'"()]+|\([^'"()]*\)|STRING)(?:, (?=\w)|$)""".replace("STRING", _string("'") + "|" + _string('"'))
)
_RETURN = re.compile(r"\s*return ?(.*)")
_ATTRS = "expected attributes such as `eps=1e-05, name='x', shape=(1, 2)`"


def parse_graph(text: str) -> Graph:
    """Parse one graph. The result is not verified: `verify(parse_graph(text))` is the usual call."""
    return _Parser(text).graph()


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = [line.rstrip() for line in text.splitlines()]
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
            if self.lines[row]:
                self.row = row + 1
                raise self._error("expected nothing after the graph", 0)
        return Graph(match[1], inputs, tuple(nodes), outputs)

    def _next(self, expected: str) -> str:
        while self.row < len(self.lines) and not self.lines[self.row]:
            self.row += 1
        self.row += 1
        if self.row > len(self.lines):
            raise self._error(f"the text ends where {expected} was expected", 0)
        return self.lines[self.row - 1]

    def _node(self, line: str) -> Node:
        match = _NODE.match(line)
        if not match:
            raise self._error("expected a node such as `%1: f32[n] = op(%0) {attr=1}`", len(line) - len(line.lstrip()))
        if match[2] not in OPS:
            raise self._error(f"unknown op {match[2]!r}", match.start(2))
        inputs = self._operands(match[3], match.start(3))
        rest = line[match.end() :]
        if rest and not (rest.startswith(" {") and rest.endswith("}")):
            raise self._error("expected attributes such as ` {eps=1e-05}`, or nothing", match.end())
        attrs = self._attrs(rest[2:-1], match.end() + 2) if rest else {}
        return Node(OPS[match[2]], inputs, attrs, self._define(match[1], match.start(1)))

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
        attrs: dict[str, Attr] = {}
        end = 0
        while end < len(text):
            match = _ATTR.match(text, end)
            if not match:
                raise self._error(_ATTRS, offset + end)
            try:
                value = ast.literal_eval(match[2])
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                value = None
            if not isinstance(value, int | float | str | tuple):
                raise self._error(f"{match[2]} is no value; {_ATTRS}", offset + match.start(2))
            if match[1] in attrs:
                raise self._error(f"attribute {match[1]} is given twice", offset + end)
            attrs[match[1]] = value
            end = match.end()
        return attrs

    def _error(self, message: str, column: int) -> ParseError:
        line = self.lines[self.row - 1] if 0 < self.row <= len(self.lines) else ""
        return ParseError(message, line=min(self.row, len(self.lines)) or 1, column=column + 1, text=line)
