"""What one step of a graph reads, writes and computes, op by op, from the types alone.

A step either decodes, and each of its sequences adds one token and attends to `context` tokens, or it reads a chunk of
one prompt. What depends on weights alone happens when a model is converted, so it costs a step nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from mlc.ir import Affine, Dim, Graph, Node, State, Tensor, Value
from mlc.ir.types import NUMBER_BITS


@dataclass(frozen=True, slots=True)
class Cost:
    """One node, or several added up. Bytes are those that must move at least once; caches are not modelled."""

    calls: int = 0
    parameters: int = 0  # numbers of the checkpoint, at their first use
    weights: float = 0.0  # bytes read
    activations: float = 0.0  # bytes read and written
    cache: float = 0.0  # bytes of KV pages read and written
    operations: float = 0.0  # additions, multiplications, and functions such as exp, each one

    @property
    def bytes(self) -> float:
        return self.weights + self.activations + self.cache

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.parameters + other.parameters,
            self.weights + other.weights,
            self.activations + other.activations,
            self.cache + other.cache,
            self.operations + other.operations,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """All nodes of one op that read weights of one type."""

    op: str
    reads: str  # the type of its weight; empty where it has none
    cost: Cost


# Operations for each number of the result, of ops that treat every number alike.
_PER_NUMBER = {
    "add": 1,
    "add_rms_norm": 5,
    "dequantize": 1,
    "div": 1,
    "gelu": 5,
    "layer_norm": 7,
    "mean_rows": 1,
    "mul": 1,
    "quantize": 4,
    "quantize_rows": 4,
    "rms_norm": 4,
    "rope": 3,
    "silu": 4,
    "swiglu": 5,
    "tanh": 1,
}
# Ops that only move numbers.
_MOVES = frozenset(
    {"cast", "columns", "concat", "embed", "kv_append", "pack", "patches_to_rows", "prepend_row", "take_rows"}
    | {"take_token", "unpermute_rope"}
)
# Ops whose result is the operand's memory under another shape, or that stand for memory filled before the step.
_FREE = frozenset({"constant", "merge_heads", "rope_frequencies", "split_heads", "weight"})

# Operands that are tables computed when the model is loaded: no parameters.
_TABLES = frozenset({"frequencies"})


@dataclass(frozen=True, slots=True)
class Step:
    """The sizes of the step: values of the graph's symbols, and tokens of context that a sequence has after it.

    A sequence adds `chunk` rows; the last of them attends to the whole context, each one before to a token less.
    """

    symbols: Mapping[str, int]
    context: int
    chunk: int = 1

    def count(self, shape: Iterable[Dim]) -> int:
        """Numbers in a tensor of this shape."""
        return prod(self._size(d) for d in shape)

    def _size(self, dim: Dim) -> int:
        if isinstance(dim, Affine):
            return dim.constant + sum(c * self.symbols.get(s, 1) for s, c in dim.terms)
        return dim

    def bytes(self, t: Tensor) -> float:
        symbols = {s for d in t.shape if isinstance(d, Affine) for s, _ in d.terms}
        return t.bytes(**{s: self.symbols.get(s, 1) for s in symbols})


def decode_step(*, tokens: int = 1, context: int = 512) -> Step:
    """One token for each of `tokens` sequences. Symbols other than n and r (batch, say) are 1."""
    return Step({"n": tokens, "r": tokens}, context)


def prefill_step(tokens: int, *, context: int, samples: bool = True) -> Step:
    """`tokens` of one prompt, which make its context `context` tokens; it `samples` with its last."""
    return Step({"n": tokens, "r": int(samples)}, context, tokens)


def prefill_steps(tokens: int, *, most: int) -> list[Step]:
    """The steps, of at most `most` tokens each, that read a prompt of `tokens` into an empty cache."""
    ends = [*range(most, tokens, most), tokens]
    starts = [0, *ends[:-1]]
    return [
        prefill_step(end - start, context=end, samples=end == tokens) for start, end in zip(starts, ends, strict=True)
    ]


def constants(graph: Graph) -> set[Value]:
    """The values that depend on no input."""
    known: set[Value] = set()
    for node in graph.nodes:
        if all(v in known for v in node.inputs):
            known.update(node.outputs)
    return known


def costs(graph: Graph, step: Step) -> list[tuple[Node, Cost]]:
    """The cost of each node that runs in a step, in order."""
    constant = constants(graph)
    counted: set[Value] = set()
    result: list[tuple[Node, Cost]] = []
    for node in graph.nodes:
        if node.outputs[0] in constant:
            continue
        parameters = 0
        for operand, value in zip(node.op.operands, node.inputs, strict=False):
            if value in constant and value not in counted and operand not in _TABLES:
                counted.add(value)
                parameters += step.count(value.tensor.shape)
        result.append((node, replace(_cost(node, constant, step), calls=1, parameters=parameters)))
    return result


def _cost(node: Node, constant: set[Value], step: Step) -> Cost:
    if node.op.name in _FREE or not any(step.count(v.tensor.shape) for v in node.outputs if isinstance(v.type, Tensor)):
        return Cost()
    operations = _operations(node, step)
    weights = activations = 0.0
    for operand, value in zip(node.op.operands, node.inputs, strict=False):
        if isinstance(value.type, State) or operand in _TABLES:
            continue
        size = _rows_read(node, operand, value.tensor, step)
        if value in constant:
            weights += size
        else:
            activations += size
    activations += sum(step.bytes(v.tensor) for v in node.outputs if isinstance(v.type, Tensor))
    return Cost(weights=weights, activations=activations, cache=_cache(node, step), operations=operations)


def _rows_read(node: Node, operand: str, t: Tensor, step: Step) -> float:
    """Bytes of an operand that a node reads: a lookup touches the rows it returns, not the table."""
    looked_up = {"embed": "table", "take_rows": "x"}.get(node.op.name)
    if operand != looked_up:
        return step.bytes(t)
    return step.bytes(Tensor((*node.output.tensor.shape[:-1], t.shape[-1]), t.dtype))


def _cache(node: Node, step: Step) -> float:
    """Bytes of KV pages that a node moves."""
    states = [v.type for v in node.inputs if isinstance(v.type, State)]
    if not states:
        return 0.0
    d = node.outputs[0].tensor.shape[-1] if node.op.name != "kv_append" else node.inputs[1].tensor.shape[-1]
    q8 = states[0].dtype == "q8"
    item = 1 + 4 / step.count((d,)) if q8 else NUMBER_BITS[states[0].dtype] / 8  # q8: a byte, and a share of the scale
    if node.op.name == "attention":
        rows, _, width = node.output.tensor.shape
        window = _attrs(node, "window") + step.chunk - 1 if _attrs(node, "window") else step.context
        sequences = step.count((rows,)) / step.chunk
        return 2 * sequences * step.count((width,)) * _attrs(node, "kv_heads") * min(step.context, window) * item
    if node.op.name == "kv_append":
        return 2 * step.count(node.inputs[1].tensor.shape) * item
    rows, _, width = node.outputs[0].tensor.shape
    return 2 * step.count((rows, width)) * _attrs(node, "kv_heads") * item


def _reach(node: Node, step: Step) -> float:
    """Tokens that a row of an attention node reads, on average."""
    window = _attrs(node, "window") or step.context
    return sum(min(step.context - i, window) for i in range(step.chunk)) / step.chunk


def _attrs(node: Node, name: str) -> int:
    return int(str(node.attrs[name]))


def _operations(node: Node, step: Step) -> float:
    name = node.op.name
    if name in _FREE or name in _MOVES:
        return 0.0
    if name in _PRODUCTS:
        return _PRODUCTS[name](node, step)
    return float(_PER_NUMBER[name] * step.count(node.outputs[0].tensor.shape))


def _linear(node: Node, step: Step) -> float:
    w = node.inputs[1].tensor
    rows = step.count(node.inputs[0].tensor.shape[:-1])
    return rows * (2 * step.count(w.shape) + (step.count(w.shape[:1]) if len(node.inputs) == 3 else 0))


def _conv2d(node: Node, step: Step) -> float:
    return 2 * step.count(node.output.tensor.shape) * step.count(node.inputs[1].tensor.shape[1:])


def _attention(node: Node, step: Step) -> float:
    return 4 * step.count(node.output.tensor.shape) * _reach(node, step)


def _full_attention(node: Node, step: Step) -> float:
    return 4 * step.count(node.output.tensor.shape) * step.count(node.output.tensor.shape[1:2])


def _qkv_rope_append(node: Node, step: Step) -> float:
    rows, heads, width = node.outputs[0].tensor.shape
    turned = step.count((rows, width)) * (step.count((heads,)) + _attrs(node, "kv_heads"))
    normed = len(node.inputs) > 4
    return turned * (_PER_NUMBER["rope"] + (_PER_NUMBER["rms_norm"] if normed else 0))


_PRODUCTS: dict[str, Callable[[Node, Step], float]] = {
    "attention": _attention,
    "conv2d": _conv2d,
    "full_attention": _full_attention,
    "linear": _linear,
    "qkv_rope_append": _qkv_rope_append,
}


def is_counted(op: str) -> bool:
    """Whether this file knows what an op costs."""
    return op in _PER_NUMBER or op in _MOVES or op in _FREE or op in _PRODUCTS


def label(node: Node, constant: set[Value]) -> tuple[str, str]:
    """The op, and the type of the matrix it reads."""
    for value in node.inputs:
        if value in constant and len(value.tensor.shape) > 1:
            return node.op.name, str(replace(value.tensor, layout=""))
    return node.op.name, ""


def summarize(graph: Graph, step: Step) -> list[Row]:
    """One row for each op and weight type, in order of first appearance; free ops are left out."""
    constant = constants(graph)
    totals: dict[tuple[str, str], Cost] = {}
    for node, cost in costs(graph, step):
        if node.op.name not in _FREE:
            key = label(node, constant)
            totals[key] = totals.get(key, Cost()) + cost
    return [Row(op, reads, cost) for (op, reads), cost in totals.items()]


def total(rows: Sequence[Row]) -> Cost:
    return sum((row.cost for row in rows), Cost())
