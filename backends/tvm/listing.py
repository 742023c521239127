"""The assembly of one kernel, for reading."""

from __future__ import annotations

import tvm

from ..cpu.emit import PINS
from ..cpu.isa import Isa
from ..cpu.kernel import Kernel
from . import build


def listing(kernel: Kernel, isa: Isa) -> str:
    """Assembly text that holds the function `NAME_compute_`: `kernel` compiled alone.

    In a library the compiler puts kernels into their caller, where nobody could find them.
    """
    function = kernel.prim_func(PINS).with_attr("global_symbol", kernel.name)
    module = tvm.compile(tvm.IRModule({kernel.name: function}), target=isa.target(), tir_pipeline=build._PIPELINE)
    text: str = module.mod.inspect_source("asm")
    return text
