"""Measures what the kernels of `cpu.limits` measure, on this machine, compiled now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from ..cpu import limits
from ..cpu.isa import host_isa
from ..cpu.kernel import Kernel
from ..executor import Executor, set_threads
from ..memory import allocate
from ..program import Call, Program, Ref
from .build import compile_program

POOL = 512 << 20  # bytes; far more than any cache
_ITEMS = 256  # of arithmetic, for each thread
_SECONDS = 0.15  # for each limit
_PASSES = 5  # at least

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Probe:
    executor: Executor
    items: int
    amount: float  # bytes or operations of a pass

    def rate(self, clock: Clock, passes: int, seconds: float) -> float:
        """Bytes or operations per second: the median of so many passes, or more that fill the time."""
        symbols = {"items": self.items}
        self.executor.step(symbols)  # wakes the threads
        rates: list[float] = []
        end = clock() + seconds
        while len(rates) < passes or clock() < end:
            began = clock()
            self.executor.step(symbols)
            rates.append(self.amount / (clock() - began))
        return median(rates)


class Limits:
    """`measure` may be called again and again. For one Python thread only, like every executor."""

    def __init__(self, threads: int) -> None:
        """Takes some seconds, and POOL bytes."""
        set_threads(threads)
        isa = host_isa()
        bytes_1, bytes_8 = (limits.multiply_bytes(isa, pairs) for pairs in (1, 8))
        kernels = [limits.read(isa), bytes_1, bytes_8, limits.multiply_floats(isa)]
        self._run = compile_program(kernels, isa)
        self._kernels = tuple(kernel.name for kernel in kernels)
        self._threads, self._lanes = threads, isa.lanes
        pool = allocate(POOL)
        pool[...] = 1  # an untouched page is one page of zeros for all
        random = np.random.default_rng(0)
        integers = allocate(limits.OPERANDS).view(np.int8)
        integers[...] = random.integers(0, 16, integers.size)
        floats = allocate(limits.OPERANDS).view(np.float32)
        floats[...] = random.uniform(-1, 1, floats.size)
        items = _ITEMS * threads
        products = items * limits.byte_operations(isa)
        self._probes = {
            "read": self._probe(kernels[0], pool, POOL // limits.SLICE, POOL),
            "bytes": self._probe(bytes_1, integers, items, products),
            "nibbles": self._probe(bytes_8, integers, items, products),
            "floats": self._probe(kernels[3], floats, items, items * limits.float_operations(isa)),
        }

    def measure(
        self, clock: Clock = time.perf_counter, *, passes: int = _PASSES, seconds: float = _SECONDS
    ) -> dict[str, float]:
        """`read` bytes per second; operations per second on `bytes` (products widened one by one), on `nibbles` (eight
        added before they are widened), and on `floats`: medians of `passes`, or more that fill `seconds` for each.
        """
        return {name: probe.rate(clock, passes, seconds) for name, probe in self._probes.items()}

    def _probe(self, kernel: Kernel, source: Any, items: int, amount: float) -> _Probe:
        program = Program(
            name="limits",
            kernels=self._kernels,
            calls=(
                Call(
                    op="limit",
                    kernel=kernel.name,
                    pointers=(Ref("input", "x"), Ref("output", "0")),
                    sizes=(("items",),),
                    grain=1,
                ),
            ),
            forward=1,
            inputs=(),
            outputs=(),
            limits={"items": items},
            arena=0,
            scratch=0,
        )
        memory = {("input", "x"): source, ("output", "0"): allocate(4 * items * self._lanes)}
        return _Probe(Executor(program, self._run, memory, threads=self._threads), items, amount)
