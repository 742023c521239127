"""The step program: one native call that walks an op table, all threads inside one parallel region.

The table is data, not code: a row of int64 words per op (see `table.row`). Compiling a model therefore costs its
distinct kernels, not its layers, and the same table run one row at a time is the flat list that debugging and profiling
use.

Between two ops stands a barrier. Inside an op, threads claim items from an atomic counter, so a thread that lost its
core does less and delays the others by at most one grain.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .kernel import EXTENT, Expr, Kernel
from .sync import COUNTER, CURSORS, LINE, SYNC_WORDS, llvm_ir
from .table import ENTRY, HEAD

_ARRAYS = {"table": "int64", "sizes": "int32", "sync": "int32"}


def stride(kernels: Sequence[Kernel]) -> int:
    """int64 words in one row of the op table."""
    return HEAD + max(len(k.pointers) + len(k.sizes) for k in kernels)


def program(kernels: Sequence[Kernel], architecture: str) -> tvm.IRModule:
    """The module of `kernels` and the walker `mlc_run`, which calls kernel i for table rows whose first word is i."""
    names = [tvm.ir.GlobalVar(k.name) for k in kernels]
    functions = {name: k.prim_func() for name, k in zip(names, kernels, strict=True)}
    walk = tvm.ir.GlobalVar("walk")
    functions[walk] = _walk(kernels, names)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(ENTRY)
        T.func_attr({"global_symbol": ENTRY, "tirx.noalias": True})
        table = T.arg("table", T.buffer((tirx.Var("words", "int64"),), "int64"))
        sizes = T.arg("sizes", T.buffer((tirx.Var("slots", "int64"),), "int32"))
        sync = T.arg("sync", T.buffer((SYNC_WORDS,), "int32"))
        first, last, threads = (T.arg(name, T.int32()) for name in ("first", "last", "threads"))

        def call(thread: Expr) -> None:
            arguments = [table.data, sizes.data, sync.data, first, last, thread, threads]
            T.evaluate(tvm.ir.Call(walk, arguments, ret_ty="int32"))

        with T.attr(tirx.const(0, "int32"), "pragma_import_llvm", llvm_ir(architecture)), T.If(threads == 1):
            with T.Then():
                call(tirx.const(0, "int32"))  # a launch would wake the pool, and wait until it has a core
            with T.Else(), T.parallel(0, threads) as thread:
                call(thread)
    functions[tvm.ir.GlobalVar(ENTRY)] = builder.get()
    return tvm.IRModule(functions)


def _walk(kernels: Sequence[Kernel], names: Sequence[tvm.ir.GlobalVar]) -> tvm.tirx.PrimFunc:
    """One thread's part of all ops: (table, sizes, sync, first, last, thread, threads) -> int32 0."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, is_private=True):
        T.func_name("walk")
        T.func_attr({"tirx.noalias": True})
        T.func_ret(tvm.ir.PrimType("int32"))
        handles = [T.arg(name, T.handle(dtype)) for name, dtype in _ARRAYS.items()]
        first, last, thread, threads = (T.arg(name, T.int32()) for name in ("first", "last", "thread", "threads"))
        table, sizes, sync = (
            T.decl_buffer((EXTENT,), dtype, data=handle)
            for handle, dtype in zip(handles, _ARRAYS.values(), strict=True)
        )
        with T.serial(first, last) as op:
            base = T.Bind(op.astype("int64") * stride(kernels))
            kernel = T.Bind(table[base].astype("int32"))
            guard = T.Bind(sizes[table[base + 2]].astype("int64"))
            with T.If(tirx.all(table[base + 3] <= guard, guard <= table[base + 4])), T.Then():
                for number, (k, name) in enumerate(zip(kernels, names, strict=True)):
                    with T.If(kernel == number), T.Then():
                        _run_op(k, name, table, base, sizes, sync, thread, threads)
                with T.If(threads > 1), T.Then():
                    T.evaluate(tirx.call_extern("int32", "mlc_barrier", tirx.address_of(sync[0]), threads))
        T.add_to_parent(tirx.Return(tirx.const(0, "int32")))
    return builder.get()


def _run_op(
    k: Kernel, name: tvm.ir.GlobalVar, table: Expr, base: Expr, sizes: Expr, sync: Expr, thread: Expr, threads: Expr
) -> None:
    """One thread's part of one op: claim a grain of items, handle it, until none is left."""
    words = tirx.address_of(table[base])
    pointers = [
        T.Bind(tirx.call_extern("handle", "mlc_pointer", words, tirx.const(HEAD + i, "int64")))
        for i in range(len(k.pointers))
    ]
    first_size = HEAD + len(k.pointers)
    values = {n: T.Bind(sizes[table[base + (first_size + i)]]) for i, n in enumerate(k.sizes)}
    items = T.Bind(k.items(values))

    def handle(lo: Expr, hi: Expr) -> None:
        T.evaluate(tvm.ir.Call(name, [*pointers, *values.values(), lo, hi, thread], ret_ty="int32"))

    with T.If(threads == 1):
        with T.Then():
            handle(tirx.const(0, "int32"), items)
        with T.Else():
            asked = table[base + 1].astype("int32")
            grain = T.Bind(tirx.Select(asked > 0, asked, tirx.max(items // (threads * 8), 1)))
            cursor = CURSORS + thread * LINE  # a loop variable in memory: TIR would allocate a local one on the heap

            def take() -> None:
                T.buffer_store(
                    sync, tirx.call_extern("int32", "mlc_take", tirx.address_of(sync[COUNTER]), grain), [cursor]
                )

            take()
            with T.While(sync[cursor] < items):
                lo = T.Bind(sync[cursor])
                handle(lo, tirx.min(lo + grain, items))
                take()
