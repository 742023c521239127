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
from mlc.backends.cpu.sync import SYNC_WORDS
from mlc.backends.cpu.table import row

CALLS, ITEMS = 200, 24


def neighbour() -> Kernel:
    """y[i] = x[(i + 1) % n] + 1: each item needs what another thread made in the call before."""

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as i:
            T.buffer_store(f["y"], f["x"][tirx.floormod(i + 1, f["n"])] + 1, [i])

    return Kernel("neighbour", (Pointer("x", "int32"), Pointer("y", "int32")), ("n",), lambda sizes: sizes["n"], body)


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
    machine.run(machine.compile(kernel, isa), memory, table, sizes, sync, threads)
    assert np.array_equal(ends[CALLS % 2], np.roll(start, -CALLS) + CALLS)
