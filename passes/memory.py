"""The buffer plan: where in one arena every intermediate result lies, so that no step allocates memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes; kernels assume it


@dataclass(frozen=True, slots=True)
class Interval:
    """A buffer of `size` bytes, live from op `first`, which writes it, through op `last`, which reads it last."""

    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Plan:
    offsets: tuple[int, ...]  # bytes, one per interval
    size: int  # bytes of the whole arena


def plan_memory(intervals: Sequence[Interval]) -> Plan:
    """Offsets so that no two intervals live at once overlap: largest first, each at the lowest gap that fits.

    (Greedy by size; Pisarchyk and Lee, arXiv 2001.03288.)
    """
    order = sorted(range(len(intervals)), key=lambda i: (-intervals[i].size, intervals[i].first))
    offsets = [0] * len(intervals)
    placed: list[int] = []
    for i in order:
        wanted = intervals[i]
        alive = [j for j in placed if intervals[j].first <= wanted.last and wanted.first <= intervals[j].last]
        offset = 0
        for start, end in sorted((offsets[j], offsets[j] + intervals[j].size) for j in alive):
            if start - offset >= wanted.size:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[i] = offset
        placed.append(i)
    size = max((o + v.size for o, v in zip(offsets, intervals, strict=True)), default=0)
    return Plan(tuple(offsets), -(-size // ALIGNMENT) * ALIGNMENT)
