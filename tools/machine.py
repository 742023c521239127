"""What this machine is, read from the operating system. Every fact may be missing; nothing here raises."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str  # model name
    architecture: str
    system: str
    cores: int  # that the system has
    usable: int  # cores this process may use
    memory: int  # bytes this process may use
    available: int  # bytes of it that are free now
    huge_pages: str  # of anonymous memory: always, madvise, never; empty where unknown
    load: float  # runnable processes in the last minute

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine(usable: int) -> Machine:
    """This machine, now. `usable` cores are those that the caller found it may use."""
    memory = _meminfo()
    limit = _cgroup_number("memory.max")
    total = memory.get("MemTotal", 0)
    return Machine(
        cpu=_cpu_model(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=os.cpu_count() or 1,
        usable=usable,
        memory=min(total, limit) if limit and total else total,
        available=memory.get("MemAvailable", 0),
        huge_pages=_huge_pages(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def read_text(path: str) -> str:
    """The file's text; empty where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cgroup_number(name: str) -> int:
    text = read_text(f"/sys/fs/cgroup/{name}").strip()
    return int(text) if text.isdigit() else 0


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    result: dict[str, int] = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            result[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return result


def _huge_pages() -> str:
    text = read_text("/sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0]
