"""What a CPU kernel is: typed pointers, run-time sizes, and a body that works on a range of items.

A kernel knows nothing of threads. It says how many independent items its work has (`items`), and its body handles the
items `lo <= i < hi`. The step program hands out ranges to threads as they become free, so a thread that lost its core
delays nobody. Kernels are shared by all layers of a model: whatever differs between two calls is a pointer or a size.

A row of the result must not depend on the rows beside it, nor on how items are split: every kernel family of an op adds
in the same order, so a request gives the same tokens alone and in a batch, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

Expr = Any  # a TIR expression


@dataclass(frozen=True, slots=True)
class Pointer:
    """A buffer parameter. It is 64-byte aligned; its extent is the caller's business."""

    name: str
    dtype: str  # TIR name: float32, float16, uint16 (bfloat16 bits), int8, uint8, int32


@dataclass(frozen=True, slots=True)
class Frame:
    """What a kernel body sees: `frame.buffers[name][index]`, sizes, the items to handle, the thread's number."""

    buffers: Mapping[str, Any]
    sizes: Mapping[str, Expr]
    lo: Expr
    hi: Expr
    thread: Expr

    def __getitem__(self, name: str) -> Any:
        return self.buffers[name] if name in self.buffers else self.sizes[name]


@dataclass(frozen=True, eq=False)
class Kernel:
    """One compiled function. `name` must tell two different bodies apart: it holds every constant of the body.

    `sizes` are int32 scalars known only at run time (tokens in the step, and the like).
    `items(sizes)` gives the number of items as a TIR expression of them.
    `grain` is how many items a thread takes at a time; 0 means half of its fair share of what is left.
    `strip` says that an item makes so many neighbouring columns of a row of `y`, or the rest, strip by strip and row by
    row, so that another kernel may go on with it at once (see `then`); 0 says nothing.
    `scratch` is bytes of private memory per thread, reached as the uint8-aligned pointer parameter `scratch`
    (declare it last in `pointers`; the body adds `thread * scratch` itself through `emit.scratch`).
    """

    name: str
    pointers: tuple[Pointer, ...]
    sizes: tuple[str, ...]
    items: Callable[[Mapping[str, Expr]], Expr]
    body: Callable[[Frame], None]
    grain: int = 0
    scratch: int = 0
    strip: int = 0

    def prim_func(self, helpers: str = "") -> tvm.tirx.PrimFunc:
        """A private function (pointers..., sizes..., lo, hi, thread) -> int32 0.

        `helpers` is LLVM IR text of functions that the body calls by name, unless the module has them already.
        """
        with IRBuilder() as builder, T.prim_func(s_tir=True, is_private=True):
            T.func_name(self.name)
            T.func_attr({"tirx.noalias": True})
            T.func_ret(tvm.ir.PrimType("int32"))
            handles = [T.arg(p.name, T.handle(p.dtype)) for p in self.pointers]
            sizes = {name: T.arg(name, T.int32()) for name in self.sizes}
            lo, hi, thread = (T.arg(name, T.int32()) for name in ("lo", "hi", "thread"))
            buffers = {
                p.name: T.decl_buffer((EXTENT,), p.dtype, data=handle)
                for p, handle in zip(self.pointers, handles, strict=True)
            }
            with import_llvm(helpers):
                self.body(Frame(buffers, sizes, lo, hi, thread))
            T.add_to_parent(tirx.Return(tirx.const(0, "int32")))
        return builder.get()


def then(first: Kernel, second: Kernel) -> Kernel:
    """One kernel of two with as many items: `second` takes each item of y, its x, when `first` has made it.

    Its pointers are those of `first`, and those of `second` but x.
    """
    own = tuple(p for p in second.pointers if p.name != "x")
    assert first.sizes == second.sizes and first.strip and not (first.scratch or second.scratch)

    def body(f: Frame) -> None:
        inner = {"x": f["y"], **{p.name: f[p.name] for p in own}}
        with T.serial(f.lo, f.hi) as item:
            first.body(Frame(f.buffers, f.sizes, item, item + 1, f.thread))
            second.body(Frame(inner, f.sizes, item, item + 1, f.thread))

    return Kernel(f"{first.name}_{second.name}", (*first.pointers, *own), first.sizes, first.items, body)


def import_llvm(text: str) -> AbstractContextManager[None]:
    """Code emitted inside may call the functions that the LLVM IR `text` defines."""
    return T.attr(tirx.const(0, "int32"), "pragma_import_llvm", text) if text else nullcontext()


EXTENT = 1 << 40  # extents are not checked in kernels; int64 keeps TIR from narrowing index arithmetic
