"""The walker: calls one after the other, threads meeting between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from mlc.backends.cpu.emit import const
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
        table[call] = row(0, (0, 1, 7)[call % 3], (0, ITEMS, ITEMS), pointers, [0], table.shape[1])
    machine.run(machine.compile([kernel], isa), memory, table, sizes, sync, threads)
    assert np.array_equal(ends[CALLS % 2], np.roll(start, -CALLS) + CALLS)


ROUNDS = 200  # of work on an item, so that threads have the time to meet


def signature() -> Kernel:
    """Each item goes on by ROUNDS numbers of a random generator, and notes who did it."""

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as i:
            T.buffer_store(f["thread"], f.thread, [i])
            with T.serial(0, ROUNDS):
                T.buffer_store(f["state"], f["state"][i] * const(1664525, "uint32") + const(1, "uint32"), [i])

    pointers = Pointer("state", "uint32"), Pointer("thread", "int32")
    return Kernel("signature", pointers, ("n",), lambda sizes: sizes["n"], body)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("items", [0, 1, 2, 23, 5001])
def test_every_item_is_handled_once_and_threads_work_towards_each_other(
    machines: dict[Isa, Any], isa: Isa, threads: int, items: int
) -> None:
    machine, kernel, calls = machines[isa], signature(), 12
    threads = min(threads, machine.threads)
    memory = machine.memory(1 << 20)
    table = memory.take((calls, stride([kernel])), np.int64)
    sizes, sync = memory.take((1,), np.int32), memory.take((SYNC_WORDS,), np.int32)
    state, thread = memory.take((items + 1,), np.uint32), memory.take((items + 1,), np.int32)
    sizes[...], sync[...], state[...], thread[...] = items, 0, np.arange(items + 1), -1
    for call in range(calls):
        pointers = [memory.address(state), memory.address(thread)]
        table[call] = row(0, (0, 1000, 3)[call % 3], (0, items, items), pointers, [0], table.shape[1])
    machine.run(machine.compile([kernel], isa), memory, table, sizes, sync, threads)
    expected = np.arange(items + 1, dtype=np.uint32)
    for _ in range(calls * ROUNDS):
        expected[:items] = expected[:items] * np.uint32(1664525) + np.uint32(1)
    assert np.array_equal(state, expected)
    assert (np.diff(thread[:items] % 2) >= 0).all(), "those with odd numbers come from the end"
    assert thread[:items].min(initial=0) >= 0 and thread[:items].max(initial=0) < threads


def claimer() -> Kernel:
    """Makes the claims asked for, of call 0 and then of call 1, with a ticket of its own."""

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi), T.serial(0, f["n"]) as i:
            arguments = [f["asked"][i * 5 + j] for j in range(5)]
            found = T.Bind(tirx.call_extern("int64", "mlc_claim", tirx.address_of(f["ticket"][0]), *arguments))
            T.buffer_store(f["found"], found, [i])

    pointers = Pointer("asked", "int32"), Pointer("ticket", "int32"), Pointer("found", "int64")
    return Kernel("claimer", pointers, ("n",), lambda sizes: const(1), body)


def test_claims_are_shares_of_what_is_left_from_both_ends(machines: dict[Isa, Any], isa: Isa) -> None:
    machine, kernel = machines[isa], claimer()
    asked = [  # call, items, least, shares, thread -> first, count
        (0, 100, 1, 4, 0, 0, 25),
        (0, 100, 1, 4, 1, 82, 18),
        (0, 100, 1, 4, 2, 25, 14),
        (0, 100, 20, 4, 3, 62, 20),
        (0, 100, 7, 1 << 30, 0, 39, 7),
        (1, 100, 1, 4, 0, -1, -1),  # another call runs
        (0, 100, 1, 4, 0, 46, 4),
        (0, 100, 99, 4, 1, 50, 12),
    ]
    memory = machine.memory(1 << 16)
    table = memory.take((1, stride([kernel])), np.int64)
    sizes, sync = memory.take((1,), np.int32), memory.take((SYNC_WORDS,), np.int32)
    wanted, ticket = memory.take((len(asked), 5), np.int32), memory.take((SYNC_WORDS,), np.int32)
    found = memory.take((len(asked),), np.int64)
    sizes[...], sync[...], ticket[...], wanted[...] = len(asked), 0, 0, [row[:5] for row in asked]
    pointers = [memory.address(array) for array in (wanted, ticket, found)]
    table[0] = row(0, 1, (0, len(asked), len(asked)), pointers, [0], table.shape[1])
    machine.run(machine.compile([kernel], isa), memory, table, sizes, sync, 1)
    assert [(int(f) >> 32, int(np.int32(f & 0xFFFFFFFF))) if f >= 0 else (-1, -1) for f in found] == [
        row[5:] for row in asked
    ]
