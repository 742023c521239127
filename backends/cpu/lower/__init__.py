"""How each op becomes kernel calls on a CPU: shapes are constants of the kernels, token counts run-time sizes.

Importing this package registers the lowerings, a module per family of ops.
"""

from __future__ import annotations

from mlc.ir import Tensor

from ...layouts import layout_for
from ..isa import Isa
from . import attention, elementwise, moves, products, vision
from .context import PAGE, SPAN, CpuLowering
from .sampling import lower_sampling

__all__ = [
    "PAGE",
    "SPAN",
    "CpuLowering",
    "attention",
    "elementwise",
    "layout_of",
    "lower_sampling",
    "moves",
    "products",
    "vision",
]


def layout_of(t: Tensor, isa: Isa) -> str:
    """The layout in which this target's kernels read a weight matrix."""
    return str(layout_for(isa, t.format))
