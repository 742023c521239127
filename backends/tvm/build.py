"""Kernels to machine code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm.s_tir import transform as s_tir
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import transform as tir
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from ..cpu.isa import Isa
from ..cpu.kernel import Kernel
from ..cpu.program import program
from ..cpu.table import ENTRY
from ..native import Function

_PIPELINE = "mlc"


def _pipeline() -> tuple[Any, Any, Any]:
    """What hand-written CPU kernels need of TVM's lowering.

    The default passes take three times as long and find nothing to do; StorageRewrite among them drops the annotation
    that keeps `emit.stack` arrays on the stack.
    """
    passes = [
        s_tir.LowerOpaqueBlock(),
        tir.FlattenBuffer(),
        tir.VectorizeLoop(True),
        tir.UnrollLoop(),
        tir.StmtSimplify(),
        s_tir.RewriteUnsafeSelect(),
        tir.VerifyMemory(),
        tir.AnnotateEntryFunc(),
        tir.SplitHostDevice(),
        tir.MakePackedAPI(),
    ]
    return tvm.ir.transform.Sequential(passes), finalize_host_passes, finalize_device_passes


register_tir_pipeline(_PIPELINE, _pipeline)


def build(kernels: Sequence[Kernel], isa: Isa) -> Any:
    """The compiled module of `kernels` and the walker that calls them."""
    return tvm.compile(program(kernels, isa.architecture), target=isa.target(), tir_pipeline=_PIPELINE)


def compile_program(kernels: Sequence[Kernel], isa: Isa) -> Function:
    """The walker as a function (table, sizes, sync, first, last, threads); see `cpu.program`."""
    walker = build(kernels, isa)[ENTRY]
    return Function(walker.__chandle__(), walker)


def assembly(kernels: Sequence[Kernel], isa: Isa) -> str:
    """The assembly text of `kernels`."""
    text: str = build(kernels, isa).mod.inspect_source("asm")
    return text
