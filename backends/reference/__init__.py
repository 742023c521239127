"""What every op means, in numpy and float32: the oracle that every other backend is tested against.

`REFERENCE[op](*operands, **attrs)` returns the result, or a tuple of them. A tensor of a number type is a numpy array
(bf16 by ml_dtypes), one of a quantized format a `QuantizedArray`, an `a8` one `QuantizedRows`, a state `PagedKv`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlc import ir

from . import attention, leaf, linear, norm, pointwise, shape, vision
from .kv import PagedKv, empty_layers
from .linear import QuantizedRows

__all__ = ["REFERENCE", "PagedKv", "QuantizedRows", "empty_layers", "evaluate"]

REFERENCE: dict[str, Callable[..., Any]] = {
    name: getattr(family, name)
    for family in (attention, leaf, linear, norm, pointwise, shape, vision)
    for name in family.__all__
    if name in ir.OPS
}


def evaluate(graph: ir.Graph, feeds: Mapping[str, Any], weights: Callable[[str], Any]) -> list[Any]:
    """The graph's outputs for the inputs `feeds`, by name; `weights(name)` gives the value of a weight or constant."""
    return ir.evaluate(graph, feeds, REFERENCE, weights)
