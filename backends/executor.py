"""Runs a program: resolves where everything lies once, then makes one native call a step.

Knows nothing of graphs and never loads the TVM compiler, only its 3 MB run-time library.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlc.errors import ArtifactError, Corrupt

from .cpu.sync import INTERRUPT, LEFT, MADE, MAX_CALLS, MAX_THREADS, PROGRESS, REPEATS, SPINS, SYNC_WORDS
from .cpu.table import ENTRY, HEAD, row
from .load import LoadPolicy, usable_cores
from .memory import ALIGNMENT, allocate
from .native import Function, global_function, load_function
from .program import Program, Ref, Size, evaluate_size

_SPINS = 2000  # pauses of a waiting thread, about 50 to 100 µs; with more threads than cores it would block others

Array = np.ndarray[Any, Any]


def load_library(path: Path) -> Function:
    """The native walker of a compiled library (`.so`), or of LLVM IR text (`.ll`), which needs TVM's compiler."""
    if path.suffix == ".ll":
        importlib.import_module("tvm")  # registers the loader of LLVM text
    try:
        return load_function(path, ENTRY)
    except RuntimeError as error:
        raise Corrupt(f"{path} cannot be loaded ({error}); compile the model again") from None


def set_threads(threads: int) -> None:
    """Give the pool room for `threads`, and for all cores. Only the first call of a process has an effect."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # pinning would ignore the cores this process was given
    os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, usable_cores())))
    os.environ.setdefault(
        "TVM_THREAD_POOL_SPIN_COUNT", "3000"
    )  # about a millisecond; 300000 would keep cores from others


class _Pool(threading.local):
    """The calling thread's pool: TVM launches as many workers as it was told last, whatever the number of threads."""

    def __init__(self) -> None:
        self._asked = self._width = 1

    def use(self, threads: int) -> int:
        """Make the next launch one of `threads`; returns how many the pool really has."""
        if threads == 1:
            return 1  # no launch
        if threads != self._asked:
            global_function("runtime.config_threadpool")(_ANY_CORES, threads)
            self._asked, self._width = threads, global_function("runtime.NumThreads")().bits
        return self._width


_ANY_CORES = 1  # affinity mode "big": without TVM_BIND_THREADS it binds nothing
_pool = _Pool()


class Executor:
    """One program with its memory. For one Python thread only: the thread pool belongs to its first user."""

    def __init__(
        self,
        program: Program,
        run: Function,
        memory: Mapping[tuple[str, str], Array],
        *,
        threads: int,
        load: LoadPolicy | None = None,
    ) -> None:
        """`memory` holds what the program does not own: (kind, name) -> array, for weights, inputs, outputs, kv, step
        and rope. A step runs on `threads` threads, or on as many as `load` says, which are at most these.
        """
        if not 1 <= threads <= MAX_THREADS:
            raise ArtifactError(f"threads must be 1 to {MAX_THREADS}, got {threads}")
        if len(program.calls) > MAX_CALLS:
            raise Corrupt(f"program {program.name} makes {len(program.calls)} calls; at most {MAX_CALLS} are possible")
        self.program = program
        self.threads = threads
        self._load = load
        self._memory = dict(memory)
        self._memory["arena", ""] = allocate(program.arena)
        self._memory["scratch", ""] = allocate(program.scratch * self.threads)
        sizes = {s for call in program.calls for s in (*call.sizes, *([call.guard.size] if call.guard else []))}
        self._slots: dict[Size, int] = {size: i for i, size in enumerate(sorted(sizes))}
        self._sizes = allocate(4 * (len(self._slots) + 1)).view(np.int32)
        self._symbols: dict[str, int] = {}  # whose values `_sizes` holds
        self._sync = allocate(4 * SYNC_WORDS).view(np.int32)
        self._sync[SPINS] = _SPINS if threads <= usable_cores() else 0
        self._progress = self._memory["step", "progress"] = self._sync[PROGRESS:]
        self._table = self._build_table()
        # The native call, given the first call, the end, and the threads; a profiler may stand before it.
        self.native: Callable[[int, int, int], object] = run.bind(
            self._table.reshape(-1), self._sizes, self._sync, 0, 0, 1
        )

    def _build_table(self) -> Array:
        kernels = {name: i for i, name in enumerate(self.program.kernels)}
        stride = HEAD + max(len(c.pointers) + len(c.sizes) for c in self.program.calls)
        table = allocate(8 * stride * len(self.program.calls)).view(np.int64).reshape(-1, stride)
        always = (len(self._slots), 0, 0)  # the slot behind the last stays zero
        for i, call in enumerate(self.program.calls):
            guard = call.guard and (self._slots[call.guard.size], call.guard.low, call.guard.high)
            table[i] = row(
                kernels[call.kernel],
                call.grain,
                guard or always,
                [self._address(ref) for ref in call.pointers],
                [self._slots[size] for size in call.sizes],
                stride,
            )
        return table

    def _address(self, ref: Ref) -> int:
        try:
            array = self._memory[ref.kind, ref.name]
        except KeyError:
            raise Corrupt(f"the program reads {ref.kind} {ref.name!r}, which the artifact does not have") from None
        address = array.ctypes.data + ref.offset
        assert address % ALIGNMENT == 0, f"{ref} is not aligned"
        return int(address)

    def step(self, symbols: Mapping[str, int], first: int = 0, end: int | None = None) -> None:
        """Make the calls from `first` up to `end` (None: all), the symbols having the given values. One native call."""
        self._set_sizes(symbols)
        self._progress[REPEATS] = self._progress[MADE] = 0
        self._native_call(first, end)

    def steps(self, symbols: Mapping[str, int], wanted: int) -> int:
        """Make all calls, of which one counts steps (see `cpu.sample.tally`), up to `wanted` times in one native call.
        Returns how many steps were made.
        """
        self._set_sizes(symbols)
        self._progress[REPEATS] = self._progress[LEFT] = wanted
        self._progress[MADE] = 0
        self._native_call(0, None)
        return int(self._progress[MADE])

    def interrupt(self, wanted: bool) -> None:
        """From any thread: `steps` under way, and those to come, end with the step they are in; False ends that."""
        self._progress[INTERRUPT] = wanted

    def _native_call(self, first: int, end: int | None) -> None:
        self.native(first, len(self.program.calls) if end is None else end, self.threads_now())
        if self._load:
            self._load.ended()

    def step_flat(self, symbols: Mapping[str, int], observe: Callable[[int], None]) -> None:
        """Make the calls one by one; `observe(i)` is called after call i. The results are those of `step`."""
        self._set_sizes(symbols)
        threads = self.threads_now()
        for i in range(len(self.program.calls)):
            self.native(i, i + 1, threads)
            observe(i)

    def threads_now(self) -> int:
        """The number of threads of a step that begins now."""
        return _pool.use(self._load.threads() if self._load else self.threads)

    def runs(self, index: int, symbols: Mapping[str, int]) -> bool:
        """Whether call `index` is made for these sizes."""
        guard = self.program.calls[index].guard
        return guard is None or guard.low <= evaluate_size(guard.size, dict(symbols)) <= guard.high

    def _set_sizes(self, symbols: Mapping[str, int]) -> None:
        if symbols == self._symbols:
            return
        known = self._symbols = dict(symbols)
        for size, slot in self._slots.items():
            self._sizes[slot] = evaluate_size(size, known)
