"""How many threads are worth computing with: the cores this process may use, less what others take of them.

All threads meet after every op, so one that shares its core delays all: two threads beside a busy process are slower
than one. Linux tells how long each core was busy and how much of that was ours; the rest is the foreign load.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_STAT = "/proc/stat"
_STAT_BYTES = 1 << 16  # the lines of the cores come first; this is room for a thousand of them
_PERIOD = 0.1  # seconds between looks
_SAMPLES = 3  # looks that a decision spans: the kernel counts in steps of 10 ms
_LEAVE, _RETURN = 0.35, 0.2  # foreign load, in cores, that costs a thread, and that gives it back
_PATIENCE, _MOST_PATIENCE = 0.5, 8.0  # seconds before a thread is tried again; doubled each time that was wrong


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds: of the clock, of CPU time this process has used, and that each core it may use was not free."""

    time: float
    own: float
    busy: dict[int, float]


def allowed_cores() -> set[int]:
    """The numbers of the cores in this process' affinity mask."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that the cgroups of this process allow it, version 1 or 2; infinity without a limit."""
    return min(_quotas(root), default=math.inf)


def _quotas(root: Path) -> Iterator[float]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        inner = mount / group.lstrip("/")
        if ".." in inner.parts:  # the group lies outside of the mounted tree
            inner = mount
        while True:
            yield _quota_of(inner, version=1 if controllers else 2)
            if inner == mount:
                break
            inner = inner.parent


def _quota_of(group: Path, *, version: int) -> float:
    try:
        if version == 2:
            share, period = (group / "cpu.max").read_text().split()
        else:
            share, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if share == "max" or int(share) <= 0 else int(share) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def usable_cores() -> int:
    """The cores this process may use: its affinity mask, cut by the cgroup's quota."""
    return max(1, int(min(len(allowed_cores()), quota())))


def read_sample(path: str = _STAT) -> Sample | None:
    """A sample of this moment, or None where the system does not tell."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            text = os.read(file, _STAT_BYTES)
        finally:
            os.close(file)
        busy = parse_stat(text, allowed_cores())
    except (OSError, ValueError):
        return None
    return Sample(time.monotonic(), time.process_time(), busy) if busy else None


def parse_stat(text: bytes, cores: set[int]) -> dict[int, float]:
    """Seconds that each of `cores` was not free, from /proc/stat. Raises ValueError for lines that are not its."""
    seconds = 1 / os.sysconf("SC_CLK_TCK")
    busy: dict[int, float] = {}
    for line in text.split(b"\n"):
        if not line.startswith(b"cpu"):
            break
        name, *ticks = line.split()
        if name != b"cpu" and (core := int(name[3:])) in cores:
            user, nice, system, _, _, irq, softirq, *steal = map(int, ticks[:8])
            busy[core] = (user + nice + system + irq + softirq + sum(steal)) * seconds
    return busy


def foreign_load(old: Sample, new: Sample) -> float:
    """Cores' worth of time that others took, and a hypervisor stole, between two samples."""
    elapsed = new.time - old.time
    both = old.busy.keys() & new.busy.keys()
    taken = sum(max(0.0, new.busy[core] - old.busy[core]) for core in both) - (new.own - old.own)
    return max(0.0, taken / elapsed) if elapsed > 0 else 0.0


def threads_beside(foreign: float, most: int) -> int:
    """How many threads to run beside others that take `foreign` cores: at least one, at most `most`."""
    return max(1, min(most, math.floor(len(allowed_cores()) - foreign + _LEAVE)))


def measure_foreign_load(seconds: float = 0.3) -> float | None:
    """The foreign load over the next `seconds`, in cores; None where the system does not tell."""
    old = read_sample()
    time.sleep(seconds)
    new = read_sample()
    return foreign_load(old, new) if old and new else None


class LoadPolicy:
    """Chooses the number of threads for a step, 1 to `most`. Costs a clock reading, and 50 µs ten times a second."""

    def __init__(
        self,
        most: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sample: Callable[[], Sample | None] = read_sample,
    ) -> None:
        self._most = self._threads = most
        self._clock, self._sample = clock, sample
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._patience, self._raised, self._may_raise = _PATIENCE, -math.inf, -math.inf
        self._ended = clock()
        self._look()

    def threads(self) -> int:
        """The number of threads for the step that begins now."""
        now = self._clock()
        if now - self._ended > _PERIOD:  # what others did while we rested says nothing about now
            self._samples.clear()
            self._due = now
        if now >= self._due:
            self._look()
        return self._threads

    def ended(self) -> None:
        """The step is over."""
        self._ended = self._clock()

    def _look(self) -> None:
        now = self._clock()
        self._due = now + _PERIOD
        sample = self._sample()
        if sample is None:
            return
        self._samples.append(sample)
        if len(self._samples) > 1:
            free = len(sample.busy) - foreign_load(self._samples[0], sample)
            self._decide(now, free)

    def _decide(self, now: float, free: float) -> None:
        """`free` cores are not taken by others."""
        lower, higher = (max(1, min(self._most, math.floor(free + load))) for load in (_LEAVE, _RETURN))
        if lower < self._threads:
            mistaken = now - self._raised < 2 * self._patience
            self._patience = min(2 * self._patience, _MOST_PATIENCE) if mistaken else _PATIENCE
            self._threads, self._may_raise = lower, now + self._patience
        elif higher > self._threads and now >= self._may_raise:
            self._threads, self._raised = higher, now
