"""Compiling one kernel and running it, for the tests of CPU kernels."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "2")  # read when the pool starts; the walker needs as many as it is told
os.environ.setdefault("TVM_BIND_THREADS", "0")

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pytest
import tvm_ffi

from mlc.backends.cpu.isa import ISAS, Isa, host_features, host_isa
from mlc.backends.cpu.kernel import Kernel
from mlc.backends.cpu.program import stride
from mlc.backends.cpu.sync import SYNC_WORDS
from mlc.backends.cpu.table import row
from mlc.backends.tvm.build import compile_program

GUARD = 256  # bytes after each buffer; 0xFF is NaN as a float
Array = np.ndarray[Any, Any]


class RunKernel(Protocol):
    def __call__(
        self,
        kernel: Kernel,
        buffers: Mapping[str, Array | str],
        sizes: Mapping[str, int],
        *,
        outputs: Mapping[str, tuple[tuple[int, ...], Any]],
        isa: Isa = ...,
    ) -> dict[str, Array]: ...


@pytest.fixture(scope="session")
def run_kernel() -> RunKernel:
    """Run a kernel with one thread at once and with two threads an item at a time; returns its outputs.

    `buffers` are its inputs by pointer name; a string names the buffer that the pointer shares. `outputs` gives shape
    and dtype of what it writes: filled with 0xFF bytes (NaN) before, or with the contents of `buffers` where the same
    name is in both. Fails when the two runs differ in a bit, when an input changed, or when a byte was written past the
    end of any buffer.
    """
    compiled: dict[tuple[Kernel, Isa], Callable[..., None]] = {}

    def run(
        kernel: Kernel,
        buffers: Mapping[str, Array | str],
        sizes: Mapping[str, int],
        *,
        outputs: Mapping[str, tuple[tuple[int, ...], Any]],
        isa: Isa = host_isa(),  # noqa: B008
    ) -> dict[str, Array]:
        if (kernel, isa) not in compiled:
            compiled[kernel, isa] = compile_program([kernel], isa)
        results = [_call(compiled[kernel, isa], kernel, buffers, sizes, outputs, threads) for threads in (1, 2)]
        for name, one in results[0].items():
            assert one.tobytes() == results[1][name].tobytes(), f"{name} differs between one thread and two"
        return results[0]

    return run


def _call(
    walker: Callable[..., None],
    kernel: Kernel,
    buffers: Mapping[str, Array | str],
    sizes: Mapping[str, int],
    outputs: Mapping[str, tuple[tuple[int, ...], Any]],
    threads: int,
) -> dict[str, Array]:
    inputs = {name: array for name, array in buffers.items() if not isinstance(array, str)}
    memory = {name: _guarded(array.shape, array.dtype) for name, array in inputs.items()}
    for name, array in inputs.items():
        memory[name][...] = array
    for name, (shape, dtype) in outputs.items():
        memory.setdefault(name, _guarded(shape, dtype))
    if kernel.scratch:
        memory["scratch"] = _guarded((kernel.scratch * threads,), np.uint8)
    memory |= {name: memory[other] for name, other in buffers.items() if isinstance(other, str)}
    missing = [p.name for p in kernel.pointers if p.name not in memory]
    assert not missing, f"no buffer for {missing} of {kernel.name}"
    table = _guarded((stride([kernel]),), np.int64)
    pointers = [memory[p.name].ctypes.data for p in kernel.pointers]
    table[...] = row(0, 1, (0, -1 << 31, 1 << 31), pointers, range(len(kernel.sizes)), len(table))
    slots, sync = _guarded((max(1, len(kernel.sizes)),), np.int32), _guarded((SYNC_WORDS,), np.int32)
    slots[: len(kernel.sizes)] = [sizes[name] for name in kernel.sizes]
    sync[...] = 0
    walker(*(tvm_ffi.from_dlpack(a) for a in (table, slots, sync)), 0, 1, threads)
    for name, array in memory.items():
        raw = array.reshape(-1).view(np.uint8)
        guard = ctypes.string_at(raw.ctypes.data + raw.size, GUARD)
        assert guard == b"\xff" * GUARD, f"{kernel.name} wrote past the end of {name}"
        if name in inputs and name not in outputs:
            assert array.tobytes() == np.ascontiguousarray(inputs[name]).tobytes(), f"{kernel.name} changed {name}"
    return {name: memory[name] for name in outputs}


def _guarded(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array at a multiple of 64 bytes; it and the guard behind it are filled with 0xFF."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + GUARD + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    array: Array = raw[start : start + size].view(dtype).reshape(shape)
    return array


@pytest.fixture(scope="session")
def runnable() -> list[Isa]:
    """The instruction sets that this machine can run, its own best one (tuned for the CPU model) first."""
    host, features = host_isa(), host_features()
    others = (i for i in ISAS.values() if i.architecture == host.architecture and i.name != host.name)
    return [host, *(isa for isa in others if features.issuperset(isa.features))]
