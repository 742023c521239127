"""Aligned memory, in huge pages where the system has them: two cores read weights a quarter faster from 2 MB pages."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALIGNMENT = 64  # bytes; kernels assume it
_HUGE = 2 << 20  # bytes of a huge page
_HUGE_SHARE = 0.9  # of a mapped file in huge pages, for it to be read as fast as a copy
_PROBE = 16 * _HUGE
_POPULATE_READ = 22  # MADV_POPULATE_READ, which Python does not name


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


def map_huge(path: Path) -> Array | None:
    """The bytes of a file in huge pages of the system's own cache of it: read-only, uint8, nothing copied.

    None where it lies there in small pages, as on file systems that know no others. What is in no cache yet is read
    from the disk into huge ones. Raises OSError, and ValueError for an empty file.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    try:
        memory.madvise(_POPULATE_READ, 0, min(_PROBE, array.size))
        if not _huge_bytes(array):  # then the rest is not worth the time
            return None
        memory.madvise(_POPULATE_READ)
    except OSError:  # Linux before 5.14
        return None
    return array if _huge_bytes(array) >= _HUGE_SHARE * array.size else None


def _huge_bytes(memory: Array, smaps: Path = Path("/proc/self/smaps")) -> int:
    """How much of a mapped file lies in huge pages; 0 where the system does not tell."""
    start, found = memory.ctypes.data, False
    try:
        with smaps.open(errors="replace") as lines:
            for line in lines:  # to the end only if need be: the system makes the text as it is read
                name, _, rest = line.partition(" ")
                if not name.endswith(":"):
                    low, _, high = name.partition("-")
                    found = int(low, 16) <= start < int(high, 16)
                elif found and name == "FilePmdMapped:":
                    return int(rest.split()[0]) << 10
    except OSError:
        pass
    return 0


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
