"""The step program: one native call that walks an op table, all threads inside one parallel region.

The table is data, not code: a row of int64 words per op (see `table.row`). Compiling a model therefore costs its
distinct kernels, not its layers, and the same table run one row at a time is the flat list that debugging and profiling
use.

Threads claim items of the current call from a ticket; whoever ends its last item publishes the next call (see `sync`).
A thread that lost its core delays the others by at most the claim it holds. Behind the last call the walker begins anew
as long as a kernel has left repeats in `sync`: several steps in one native call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .emit import PINS, const
from .kernel import EXTENT, Expr, Kernel, import_llvm
from .sync import CURSORS, LINE, SYNC_WORDS, llvm_ir
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

        with import_llvm(llvm_ir(architecture) + PINS), T.If(threads == 1):
            with T.Then():
                call(tirx.const(0, "int32"))  # a launch would wake the pool, and wait until it has a core
            with T.Else():
                _extern("mlc_publish", tirx.address_of(sync[0]), _next("mlc_next", kernels, table, sizes, first, last))
                with T.parallel(0, threads) as thread:
                    call(thread)
    functions[tvm.ir.GlobalVar(ENTRY)] = builder.get()
    return tvm.IRModule(functions)


def _extern(name: str, *arguments: Expr) -> None:
    T.evaluate(tirx.call_extern("int32", name, *arguments))


def _next(name: str, kernels: Sequence[Kernel], table: Expr, sizes: Expr, *arguments: Expr) -> Expr:
    """`mlc_next` or `mlc_following` (see `sync`): the call that comes now."""
    words, slots = tirx.address_of(table[0]), tirx.address_of(sizes[0])
    return tirx.call_extern("int32", name, words, slots, *arguments, tirx.const(stride(kernels), "int64"))


def _walk(kernels: Sequence[Kernel], names: Sequence[tvm.ir.GlobalVar]) -> tvm.tirx.PrimFunc:
    """One thread's part of all calls: (table, sizes, sync, first, last, thread, threads) -> int32 0."""
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
        alone = threads == 1
        shared = tirx.address_of(sync[0])
        cursor = CURSORS + thread * LINE  # loop variables in memory: TIR would allocate local ones on the heap
        with T.If(alone):
            with T.Then():
                T.buffer_store(sync, _next("mlc_next", kernels, table, sizes, first, last), [cursor])
            with T.Else():
                T.buffer_store(sync, tirx.call_extern("int32", "mlc_call", shared), [cursor])
        with T.While(sync[cursor] < last):
            call = T.Bind(sync[cursor])
            base = T.Bind(call.astype("int64") * stride(kernels))
            number = T.Bind(table[base].astype("int32"))

            def following() -> Expr:
                return _next("mlc_following", kernels, table, sizes, shared, call + 1, last)

            for i, (k, name) in enumerate(zip(kernels, names, strict=True)):
                with T.If(number == i), T.Then():
                    items, handle = _bind(k, name, table, base, sizes, thread)
                    with T.If(alone):
                        with T.Then():
                            handle(tirx.const(0, "int32"), items)
                        with T.Else():
                            _share(
                                shared,
                                sync,
                                cursor + 1,
                                call,
                                items,
                                table[base + 1],
                                thread,
                                threads,
                                handle,
                                following,
                            )
            with T.If(alone):
                with T.Then():
                    T.buffer_store(sync, following(), [cursor])
                with T.Else():
                    T.buffer_store(sync, tirx.call_extern("int32", "mlc_call", shared), [cursor])
        T.add_to_parent(tirx.Return(tirx.const(0, "int32")))
    return builder.get()


def _bind(
    k: Kernel, name: tvm.ir.GlobalVar, table: Expr, base: Expr, sizes: Expr, thread: Expr
) -> tuple[Expr, Callable[[Expr, Expr], None]]:
    """The number of items of the table row at `base`, and what handles a range of them."""
    words = tirx.address_of(table[base])
    pointers = [
        T.Bind(tirx.call_extern("handle", "mlc_pointer", words, tirx.const(HEAD + i, "int64")))
        for i in range(len(k.pointers))
    ]
    first_size = HEAD + len(k.pointers)
    values = {n: T.Bind(sizes[table[base + (first_size + i)]]) for i, n in enumerate(k.sizes)}

    def handle(lo: Expr, hi: Expr) -> None:
        T.evaluate(tvm.ir.Call(name, [*pointers, *values.values(), lo, hi, thread], ret_ty="int32"))

    return T.Bind(k.items(values)), handle


def _share(
    shared: Expr,
    sync: Expr,
    cursor: Expr,
    call: Expr,
    items: Expr,
    grain: Expr,
    thread: Expr,
    threads: Expr,
    handle: Callable[[Expr, Expr], None],
    following: Callable[[], Expr],
) -> None:
    """One thread's part of a call: claim some items, handle them, until the call is over.

    With a `grain` a claim has so many items, otherwise half of a fair share of what is left.
    """
    claims = T.Bind(tirx.max(items, 1))  # a call without items must end too
    least = T.Bind(tirx.max(grain.astype("int32"), 1))
    shares = T.Bind(tirx.Select(grain > 0, const(1 << 30), threads * 2))

    def claim() -> None:
        found = T.Bind(tirx.call_extern("int64", "mlc_claim", shared, call, claims, least, shares, thread))
        T.buffer_store(sync, (found >> const(32, "int64")).astype("int32"), [cursor])
        T.buffer_store(sync, found.astype("int32"), [cursor + 1])

    claim()
    with T.While(sync[cursor] >= 0):
        lo, count = T.Bind(sync[cursor]), T.Bind(sync[cursor + 1])
        handle(lo, tirx.min(lo + count, items))
        with T.If(tirx.call_extern("int32", "mlc_done", shared, count, claims) == 1), T.Then():
            _extern("mlc_publish", shared, following())
        claim()
