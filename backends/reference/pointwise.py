"""Element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .parts import Array

__all__ = ["add", "div", "gelu", "mul", "silu", "swiglu", "tanh"]

_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float32])  # numpy has none


def add(a: Array, b: Array) -> Array:
    return a + b


def mul(a: Array, b: Array) -> Array:
    return a * b


def div(a: Array, b: Array) -> Array:
    return a / b


def silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is infinite below -88, and x / infinity is the limit
        result: Array = x / (1 + np.exp(-x))
    return result


def gelu(x: Array, *, approximate: str) -> Array:
    if approximate == "tanh":
        result: Array = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2
    else:
        result = x * (1 + _erf(x / math.sqrt(2))) / 2
    return result


def tanh(x: Array) -> Array:
    result: Array = np.tanh(x)
    return result


def swiglu(gate_up: Array) -> Array:
    gate, up = np.split(gate_up, 2, axis=-1)
    result: Array = silu(gate) * up
    return result
