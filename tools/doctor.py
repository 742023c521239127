"""Is everything here that mlc needs? Each check is one line: what was found, and what to do where it is not right."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from .machine import Machine

Status = Literal["ok", "note", "fail"]

_SELF_TEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Check:
    """`note` is worth knowing and no fault; `advice` says what to do."""

    name: str
    found: str
    status: Status = "ok"
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def software() -> list[Check]:
    """Python, and the packages whose versions matter."""
    python = f"{sys.version.split()[0]} at {sys.executable}"
    checks = [Check("python", python)]
    for package in ("apache-tvm", "apache-tvm-ffi", "numpy", "tokenizers", "sanic"):
        found = _version(package)
        missing = f"run `pip install '{_pinned(package)}'`"
        checks.append(Check(package, found) if found else Check(package, "not installed", "fail", missing))
    torch = _version("torch")
    checks.append(
        Check("torch", torch)
        if torch
        else Check("torch", "not installed", "note", "not needed; the development tests compare with it")
    )
    return checks


def hardware(machine: Machine) -> list[Check]:
    """The machine, and settings of it that cost speed."""
    cores = f"{machine.usable} of {machine.cores} usable"
    checks = [
        Check("cpu", f"{machine.cpu} ({machine.architecture}, {machine.system})"),
        Check("cores", cores),
        Check("memory", f"{machine.available / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free"),
    ]
    if machine.huge_pages:
        advice = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled makes decoding up to 25 % faster"
        never = machine.huge_pages == "never"
        checks.append(Check("huge pages", machine.huge_pages, "note" if never else "ok", advice if never else ""))
    return checks


def threads(usable: int, quota: float, foreign: float | None, chosen: int) -> list[Check]:
    """How many threads a step gets now: of `usable` cores, when others take `foreign` of them.

    `quota` is the cores' worth of time that the cgroup allows; infinity without a limit.
    """
    limit = "none" if math.isinf(quota) else f"{quota:.1f} cores"
    checks = [Check("quota", limit)]
    if foreign is None:
        checks.append(Check("foreign load", "unknown: this system does not count it"))
    elif chosen < usable:
        advice = "answers come faster when other programs leave the cores alone"
        checks.append(Check("foreign load", f"{foreign:.1f} cores", "note", advice))
    else:
        checks.append(Check("foreign load", f"{foreign:.1f} cores"))
    return [*checks, Check("threads", f"{chosen} now, 1 to {usable} by load")]


def compiler() -> Check:
    """What links the kernels."""
    for name in ("cc", "gcc", "clang", "g++", "c++"):
        if path := shutil.which(name):
            return Check("C compiler", path)
    advice = "models compile anyway: their kernels become machine code when they are opened, which takes longer"
    return Check("C compiler", "none; LLVM text instead", "note", advice)


def tvm_works() -> Check:
    """Uses TVM in a process of its own, in the way that crashes where tvm and tvm-ffi do not fit each other."""
    code = "import tvm; tvm.ir.save_json(tvm.tirx.const(1))"
    fits = f"run `pip install '{_pinned('apache-tvm')}' '{_pinned('apache-tvm-ffi')}'`"
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_SELF_TEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("tvm self-test", f"did not end within {_SELF_TEST_SECONDS:g} s", "fail", fits)
    if result.returncode == 0:
        return Check("tvm self-test", "passed")
    last = (result.stderr.strip().splitlines() or [""])[-1]
    how = f"crashed with signal {-result.returncode}" if result.returncode < 0 else f"failed: {last[:200]}"
    return Check("tvm self-test", how, "fail", fits)


def cache(folder: Path) -> Check:
    """The compiled models kept on this machine, and whether more can be."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    size, models = 0, 0
    if folder.is_dir():
        models = sum(1 for p in folder.iterdir() if p.is_dir())
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    found = f"{folder}: {models} models, {size / 1e6:.0f} MB; {shutil.disk_usage(existing).free / 1e9:.0f} GB free"
    if not os.access(existing, os.W_OK):
        return Check("cache", found, "fail", "the folder cannot be written; set MLC_CACHE to one that can")
    return Check("cache", found)


def hugging_face(folder: Path, offline: bool) -> Check:
    """Where checkpoints come from."""
    models = sum(1 for p in folder.glob("models--*")) if folder.is_dir() else 0
    found = f"{folder}: {models} models"
    if offline:
        return Check("hugging face", f"{found}; offline", "note", "unset HF_HUB_OFFLINE to download models")
    return Check("hugging face", found)


def attempt(name: str, probe: Callable[[], str]) -> Check:
    """A check that is a call: it fails where the call raises."""
    try:
        return Check(name, probe())
    except Exception as error:  # a doctor must survive what ails the patient
        return Check(name, f"{type(error).__name__}: {error}", "fail")


def healthy(checks: Sequence[Check]) -> bool:
    return all(check.status != "fail" for check in checks)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _pinned(package: str) -> str:
    """The requirement by which our own package names `package`."""
    try:
        declared = requires("mlc-engine") or []
    except PackageNotFoundError:
        declared = []
    texts = (text.partition(";")[0].strip() for text in declared)
    return next((text for text in texts if re.match(rf"{package}(?![\w-])", text)), package)
