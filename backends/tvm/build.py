"""Kernels to machine code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm

from ..cpu.isa import Isa
from ..cpu.kernel import Kernel
from ..cpu.program import program
from ..cpu.table import ENTRY


def build(kernels: Sequence[Kernel], isa: Isa) -> Any:
    """The compiled module of `kernels` and the walker that calls them."""
    # Storage rewriting drops the annotation that keeps `emit.stack` arrays on the stack, and there is nothing to merge.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        return tvm.compile(program(kernels, isa.architecture), target=isa.target())


def compile_program(kernels: Sequence[Kernel], isa: Isa) -> Callable[..., None]:
    """The walker as a function (table, sizes, sync, first, last, threads); see `cpu.program`."""
    walker: Callable[..., None] = build(kernels, isa)[ENTRY]
    return walker


def assembly(kernels: Sequence[Kernel], isa: Isa) -> str:
    """The assembly text of `kernels`."""
    text: str = build(kernels, isa).mod.inspect_source("asm")
    return text
