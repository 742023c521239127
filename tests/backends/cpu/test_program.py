"""The walker: calls one after the other, threads meeting between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from mlc.backends.cpu.isa import Isa
from mlc.backends.cpu.kernel import Frame, Kernel, Pointer
from mlc.backends.cpu.program import stride
from mlc.backends.cpu.sync import PROGRESS, REPEATS, SYNC_WORDS
from mlc.backends.cpu.table import row

CALLS, ITEMS = 200, 24


def neighbour() -> Kernel:
    """y[i] = x[(i + 1) % n] + 1: each item needs what another thread made in the call before."""

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as i:
            T.buffer_store(f["y"], f["x"][tirx.floormod(i + 1, f["n"])] + 1, [i])

    return Kernel("neighbour", (Pointer("x", "int32"), Pointer("y", "int32")), ("n",), lambda sizes: sizes["n"], body)


def countdown() -> Kernel:
    """One repeat less."""

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi):
            T.buffer_store(f["y"], f["y"][REPEATS] - 1, [REPEATS])

    return Kernel(
        "countdown", (Pointer("x", "int32"), Pointer("y", "int32")), ("n",), lambda sizes: tirx.const(1), body
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("repeats", [0, 1, 50])
def test_the_list_begins_anew_as_often_as_there_are_repeats(
    machines: dict[Isa, Any], isa: Isa, threads: int, repeats: int
) -> None:
    machine, kernels = machines[isa], [neighbour(), countdown()]
    threads = min(threads, machine.threads)
    memory = machine.memory(1 << 20)
    table = memory.take((4, stride(kernels)), np.int64)
    sizes, sync = memory.take((2,), np.int32), memory.take((SYNC_WORDS,), np.int32)
    ends = [memory.take((ITEMS,), np.int32) for _ in range(2)]
    start = np.random.default_rng(0).integers(0, 1000, ITEMS, np.int32)
    ends[0][...], sizes[...], sync[...] = start, (ITEMS, 0), 0
    sync[PROGRESS + REPEATS] = repeats + 1  # the first time takes one
    there, back = ([memory.address(ends[i]), memory.address(ends[1 - i])] for i in range(2))
    counter = [memory.address(ends[0]), memory.address(sync[PROGRESS:])]
    always, never = (0, ITEMS, ITEMS), (1, ITEMS, ITEMS)
    calls = [(0, never, there), (0, always, there), (0, always, back), (1, always, counter)]
    for call, (kernel, guard, pointers) in enumerate(calls):
        table[call] = row(kernel, 1, guard, pointers, [0], table.shape[1])
    machine.run(machine.compile(kernels, isa), memory, table, sizes, sync, threads)
    times = 2 * (repeats + 1)
    assert np.array_equal(ends[0], np.roll(start, -times) + times) and not sync[PROGRESS + REPEATS]


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_call_sees_all_that_the_call_before_it_wrote(machines: dict[Isa, Any], isa: Isa, threads: int) -> None:
    machine, kernel = machines[isa], neighbour()
    threads = min(threads, machine.threads)
    memory = machine.memory(1 << 20)
    table = memory.take((CALLS, stride([kernel])), np.int64)
    sizes, sync = memory.take((1,), np.int32), memory.take((SYNC_WORDS,), np.int32)
    ends = [memory.take((ITEMS,), np.int32) for _ in range(2)]
    start = np.random.default_rng(0).integers(0, 1000, ITEMS, np.int32)
    ends[0][...], sizes[...], sync[...] = start, ITEMS, 0
    for call in range(CALLS):
        pointers = [memory.address(ends[(call + i) % 2]) for i in range(2)]
        table[call] = row(0, 1, (0, ITEMS, ITEMS), pointers, [0], table.shape[1])
    machine.run(machine.compile([kernel], isa), memory, table, sizes, sync, threads)
    assert np.array_equal(ends[CALLS % 2], np.roll(start, -CALLS) + CALLS)
