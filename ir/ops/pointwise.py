"""Element by element."""

from __future__ import annotations

from ..op import op, require
from ..types import Tensor


@op
def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b. The shape of b is that of a, or its end (a bias, a table of positions)."""
    require(a.dtype == b.dtype == "f32", f"add works on f32, got {a} and {b}")
    require(a.shape[len(a.shape) - len(b.shape) :] == b.shape, f"add needs b to match the end of a, got {a} and {b}")
    return a


@op
def mul(a: Tensor, b: Tensor) -> Tensor:
    """a * b. The shape of b is that of a, or its end."""
    require(a.dtype == b.dtype == "f32", f"mul works on f32, got {a} and {b}")
    require(a.shape[len(a.shape) - len(b.shape) :] == b.shape, f"mul needs b to match the end of a, got {a} and {b}")
    return a


@op
def div(a: Tensor, b: Tensor) -> Tensor:
    """a / b. The shape of b is that of a, or its end."""
    require(a.dtype == b.dtype == "f32", f"div works on f32, got {a} and {b}")
    require(a.shape[len(a.shape) - len(b.shape) :] == b.shape, f"div needs b to match the end of a, got {a} and {b}")
    return a


@op
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    require(x.dtype == "f32", f"silu works on f32, got {x}")
    return x


@op
def gelu(x: Tensor, *, approximate: str) -> Tensor:
    """x * Phi(x) (arXiv 1606.08415): exact with 'none', by the tanh formula with 'tanh'."""
    require(x.dtype == "f32", f"gelu works on f32, got {x}")
    require(approximate in ("none", "tanh"), f"gelu approximate is 'none' or 'tanh', not {approximate!r}")
    return x


@op
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    require(x.dtype == "f32", f"tanh works on f32, got {x}")
    return x


@op
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of the last axis: [..., 2m] -> [..., m] (arXiv 2002.05202)."""
    *lead, width = gate_up.shape
    require(isinstance(width, int) and width % 2 == 0 and gate_up.dtype == "f32", f"swiglu cannot halve {gate_up}")
    assert isinstance(width, int)
    return Tensor((*lead, width // 2), "f32")
