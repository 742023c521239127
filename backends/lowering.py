"""From a graph to a program: the registry of lowerings, and the context they work in.

A lowering turns one node into calls of kernels. It is found by op and target; an op without one is a NoLowering error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from mlc.errors import NoLowering
from mlc.ir import Graph, Node, Op, State, Tensor, Value
from mlc.ir.types import ACTIVATION, NUMBER_BITS, Affine

from .program import Buffer, Call, Guard, KvLayer, Port, Ref, Size

Parts = dict[str, Ref]  # where each part of a value lies; a plain tensor has the one part ""
Lower = Callable[[Any, Node], None]  # takes the Lowering of its own target
F = TypeVar("F", bound=Lower)
_LOWERINGS: dict[tuple[str, str], Lower] = {}


def lowers(op: Op[Any], target: str) -> Callable[[F], F]:
    """Register the decorated function as the lowering of `op` on `target`."""

    def register(function: F) -> F:
        assert (op.name, target) not in _LOWERINGS, f"{op.name} is lowered twice for {target}"
        _LOWERINGS[op.name, target] = function
        return function

    return register


def size_of(*dims: Any) -> Size:
    """The product of dimensions, as a program writes it."""
    return tuple(str(d) for d in dims if d != 1)


class Lowering:
    """One graph being lowered. Lowerings read `parts` of operands, make `result`s, and emit `call`s."""

    def __init__(self, graph: Graph, target: str) -> None:
        self.graph, self.target = graph, target
        self.calls: list[Call] = []
        self.kernels: dict[str, Any] = {}  # by name, in the order of first use
        self.buffers: list[Buffer] = []
        self.kv_layers: dict[int, KvLayer] = {}
        self.kv_dtype = ""
        self._parts: dict[Value, Parts] = {}
        self._outputs = {v: i for i, v in enumerate(v for v in graph.outputs if isinstance(v.type, Tensor))}
        for value in graph.inputs:
            if isinstance(value.type, State):
                self.kv_dtype = value.type.dtype
            else:
                self._parts[value] = {"": Ref("input", value.name)}

    def run(self) -> None:
        """Lower every node. Raises NoLowering."""
        for node in self.graph.nodes:
            lower = _LOWERINGS.get((node.op.name, self.target))
            if lower is None:
                have = sorted(t for name, t in _LOWERINGS if name == node.op.name)
                raise NoLowering(f"op {node.op.name!r}", self.target, have)
            lower(self, node)

    def parts(self, value: Value) -> Parts:
        return self._parts[value]

    def ref(self, value: Value) -> Ref:
        """Where a plain tensor lies."""
        return self._parts[value][""]

    def place(self, value: Value, parts: Mapping[str, Ref]) -> None:
        """Say where `value` lies, where that is memory somebody else made."""
        self._parts[value] = dict(parts)

    def result(self, value: Value) -> Parts:
        """New memory for a result."""
        t = value.tensor
        if value in self._outputs:
            parts: Parts = {"": Ref("output", str(self._outputs[value]))}
        elif match := ACTIVATION.fullmatch(t.dtype):
            group = int(match[1])
            width = t.shape[-1]
            assert isinstance(width, int)
            groups = size_of(*t.shape[:-1], width // group)
            parts = {
                "q": self._arena(size_of(*t.shape), 1),
                "scale": self._arena(groups, 4),
                "sum": self._arena(groups, 4),
            }
        else:
            parts = {"": self._arena(size_of(*t.shape), NUMBER_BITS[t.dtype] // 8)}
        self._parts[value] = parts
        return parts

    def temporary(self, size: Size, item: int) -> Ref:
        """Memory between two calls of one lowering."""
        return self._arena(size, item)

    def _arena(self, size: Size, item: float) -> Ref:
        self.buffers.append(Buffer(size, item))
        return Ref("arena", str(len(self.buffers) - 1))

    def call(
        self,
        op: str,
        kernel: Any,
        pointers: Mapping[str, Ref],
        sizes: Mapping[str, Size],
        guard: Guard | None = None,
    ) -> None:
        """Emit a call of `kernel`, its pointers and sizes given by the names the kernel uses."""
        names = [p.name for p in kernel.pointers]
        given = {**pointers, "scratch": Ref("scratch")} if kernel.scratch else dict(pointers)
        assert set(names) == set(given), f"{kernel.name} takes {names}, got {sorted(given)}"
        assert set(kernel.sizes) == set(sizes), f"{kernel.name} takes {kernel.sizes}, got {sorted(sizes)}"
        known = self.kernels.setdefault(kernel.name, kernel)
        assert known.pointers == kernel.pointers, f"two different kernels are called {kernel.name}"
        refs = tuple(given[name] for name in names)
        self.calls.append(Call(op, kernel.name, refs, tuple(sizes[name] for name in kernel.sizes), kernel.grain, guard))

    def lifetimes(self) -> list[tuple[int, int]]:
        """The first and the last call that touch each buffer."""
        spans: list[tuple[int, int] | None] = [None] * len(self.buffers)
        for i, call in enumerate(self.calls):
            for ref in call.pointers:
                if ref.kind == "arena":
                    number = int(ref.name)
                    span = spans[number]
                    spans[number] = (span[0] if span else i, i)
        return [span or (0, 0) for span in spans]

    def placed_calls(self, offsets: Sequence[int]) -> tuple[Call, ...]:
        """The calls, every buffer number replaced by its offset in the arena."""

        def place(ref: Ref) -> Ref:
            return Ref("arena", "", offsets[int(ref.name)] + ref.offset) if ref.kind == "arena" else ref

        return tuple(msgspec.structs.replace(c, pointers=tuple(map(place, c.pointers))) for c in self.calls)

    def ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        inputs = tuple(Port(v.name, str(v.type)) for v in self.graph.inputs if isinstance(v.type, Tensor))
        outputs = tuple(Port(str(i), str(v.type)) for v, i in self._outputs.items())
        return inputs, outputs


def rows_of(t: Tensor) -> Size:
    """How many rows a tensor has: the product of all dimensions but the last."""
    return size_of(*t.shape[:-1])


def fixed(dim: int | Affine) -> int:
    """A dimension that must be known when compiling."""
    assert isinstance(dim, int), f"{dim} is known at run time only"
    return dim
