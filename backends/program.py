"""The program of one graph: the list of kernel calls that a step makes, as data.

It is written into the artifact as JSON. From it come both executables: the step program (one native call walks the
whole list) and the flat list (one call at a time, for profiling and debugging).
"""

from __future__ import annotations

from typing import Literal

import msgspec

Size = tuple[str, ...]  # the product of dimensions, each in text form: ("b", "t+1"); () is 1
RefKind = Literal["arena", "weight", "input", "output", "kv", "step", "rope", "scratch"]


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """Where a pointer of a call points: `offset` bytes into the named memory.

    arena    name is a buffer number until the plan is made, then empty
    weight   name is `tensor` or `tensor.part`, as in the weights file
    input    name is a graph input; output: the number of a graph output
    kv       `k.LAYER` or `v.LAYER`: the pages of one layer
    step     what is filled in before each step: `slots`, `tables`, `members`, `single_tiles` and `tiles` (which tokens
             lie where and who attends to them), `rules` and `draws` (how to sample); `partials` is room for results of
             attention that are merged, `chosen` are the tokens that come out, and `history` those of several steps;
             `stops` are tokens after which no further step is made, and `progress` counts steps; `penalties`, and for
             lists of tokens `listed`, `ids`, `counts` and `biases`, say what the text so far makes of the logits
    rope     `cos.TENSOR` or `sin.TENSOR`: rotations by position, made from a frequency tensor when the model is loaded
    scratch  private memory of the threads
    """

    kind: RefKind
    name: str = ""
    offset: int = 0  # bytes


class Guard(msgspec.Struct, frozen=True, array_like=True):
    """The call is made when low <= size <= high."""

    size: Size
    low: int
    high: int


ADVANCE = "advance"  # the op of those calls that make the tokens of a step the next step


class Call(msgspec.Struct, frozen=True):
    op: str  # the op it comes from, for people
    kernel: str
    pointers: tuple[Ref, ...]
    sizes: tuple[Size, ...]
    grain: int = 0
    guard: Guard | None = None


class Buffer(msgspec.Struct, frozen=True):
    """An intermediate result: `size` items of `item` bytes."""

    size: Size
    item: float


class Port(msgspec.Struct, frozen=True):
    """A graph input or output."""

    name: str
    type: str


class KvLayer(msgspec.Struct, frozen=True):
    layer: int
    kv_heads: int
    page_bytes: int  # of the keys in a page; as many of values


class Program(msgspec.Struct, frozen=True):
    """One graph, lowered. `limits` are the largest values of the symbols that the arena is planned for."""

    name: str
    kernels: tuple[str, ...]  # in the order the native walker knows them
    calls: tuple[Call, ...]
    forward: int  # how many calls are the graph's; those that follow in a language model sample, then advance
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    limits: dict[str, int]
    arena: int  # bytes
    scratch: int  # bytes for each thread
    kv_dtype: str = ""
    kv_layers: tuple[KvLayer, ...] = ()
    page: int = 0  # tokens
    span: int = 0  # tokens whose attention is one partial result
    tile_rows: int = 0  # rows of a sequence that the attention kernel for many rows takes together
    partial: int = 0  # bytes of a partial result, all heads together


def evaluate_dim(dim: str, symbols: dict[str, int]) -> int:
    """The value of one dimension in text form, such as `2*h+1`."""
    if dim in symbols:
        return symbols[dim]
    total = 0
    for term in dim.replace("-", "+-").split("+"):
        if not term:
            continue
        coefficient, _, symbol = term.rpartition("*")
        sign = -1 if symbol.startswith("-") else 1
        symbol = symbol.lstrip("-")
        value = int(symbol) if symbol.isdigit() else symbols[symbol]
        total += sign * value * (int(coefficient) if coefficient else 1)
    return total


def evaluate_size(size: Size, symbols: dict[str, int]) -> int:
    """The value of a product of dimensions."""
    total = 1
    for dim in size:
        total *= evaluate_dim(dim, symbols)
    return total
