"""The fastest of several kernels, by trying them on this machine; what was found is kept for the next model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median

import msgspec

from ..cpu.choice import Trial
from ..cpu.isa import Isa
from ..cpu.kernel import Kernel
from ..executor import Executor, set_threads
from ..memory import allocate
from ..program import Call, Program, Ref
from .build import compile_program

_SECONDS = 0.4  # that the kernels of a trial run
_ROUNDS = 5  # at least
_MARGIN = 0.97  # of the usual kernel's time: one that takes more does not replace it
_KEPT = dict[str, str]  # a trial -> the name of its fastest kernel


class Autotuner:
    """Chooses among kernels for the machine it runs on; a `cpu.choice.Choose`.

    One thread runs the candidates by turns, round after round; `fastest` compares them within each, so that other load
    on the machine does not decide. Kernels are compiled for their trial, which takes most of the time.
    """

    def __init__(self, isa: Isa, seconds: float, folder: Path | None = None) -> None:
        """No trial begins after `seconds`; what is left over takes the usual kernel. Choices are read from `folder` and
        kept there where it can be written, by instruction set, CPU model and the source of the kernels.
        """
        self._isa, self._end = isa, time.perf_counter() + seconds
        self._path = folder and folder / f"choices-{isa.name}-{_fingerprint(isa)}.json"
        self._kept = _read(self._path)

    def __call__(self, kernels: Sequence[Kernel], trial: Trial) -> Kernel:
        """The kernel whose like was the fastest in `trial`."""
        names = [kernel.name for kernel in trial.kernels]
        key = " ".join([*names, *(f"{name}={size}" for name, size in trial.sizes.items())])
        best = self._kept.get(key)
        if best not in names:
            if time.perf_counter() > self._end:
                return kernels[0]
            best = names[fastest(_times(trial, self._isa))]
            self._keep(key, best)
        return kernels[names.index(best)]

    def _keep(self, key: str, best: str) -> None:
        self._kept[key] = best
        if self._path is None:
            return
        kept = _read(self._path) | self._kept  # another process may have found something meanwhile
        work = self._path.with_suffix(f".{time.monotonic_ns()}.partial")
        with suppress(OSError):  # then the next model asks again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            work.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
            work.replace(self._path)


def fastest(rounds: Sequence[Sequence[float]]) -> int:
    """Which of the candidates took the least time, `rounds` holding the seconds of each in each round: by the median of
    their ratios to the first, which only one that is clearly faster replaces.
    """
    ratios = [median(times[i] / times[0] for times in rounds) for i in range(len(rounds[0]))]
    best = min(range(len(ratios)), key=ratios.__getitem__)
    return best if ratios[best] < _MARGIN else 0


def _times(trial: Trial, isa: Isa) -> list[list[float]]:
    """Seconds of each kernel, round after round."""
    executors, random = _prepare(trial, isa), Random(0)
    rounds: list[list[float]] = []
    end = time.perf_counter() + _SECONDS
    while len(rounds) < _ROUNDS or time.perf_counter() < end:
        times = [0.0] * len(executors)
        # In no fixed order: whoever follows a long one is interrupted more often.
        for i in random.sample(range(len(times)), len(times)):
            began = time.perf_counter()
            executors[i].step(trial.sizes)
            times[i] = time.perf_counter() - began
        rounds.append(times)
    return rounds


def _read(path: Path | None) -> _KEPT:
    """What was kept; nothing where it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_KEPT) if path else {}
    except (OSError, msgspec.MsgspecError):
        return {}


def _fingerprint(isa: Isa) -> str:
    """What speed depends on, as far as it can be told: the CPU model, the compiler, and the kernels."""
    sha = hashlib.sha256(f"{isa} {version('apache-tvm')}".encode())
    for source in sorted((Path(__file__).parent.parent / "cpu").glob("*.py")):
        sha.update(source.read_bytes())
    return sha.hexdigest()[:12]


def _prepare(trial: Trial, isa: Isa) -> list[Executor]:
    """One program for each kernel, all with the same memory, which has been touched."""
    set_threads(1)
    run = compile_program(trial.kernels, isa)
    pointers = {pointer.name for kernel in trial.kernels for pointer in kernel.pointers} - {"scratch"}
    memory = {("input", name): allocate(trial.bytes[name]) for name in pointers}
    for array in memory.values():
        array[...] = 0  # an untouched page is one page for all; numbers that mean nothing may be slow (subnormal)
    names = tuple(kernel.name for kernel in trial.kernels)
    return [Executor(_program(kernel, names, trial), run, memory, threads=1) for kernel in trial.kernels]


def _program(kernel: Kernel, names: tuple[str, ...], trial: Trial) -> Program:
    refs = tuple(Ref("scratch") if p.name == "scratch" else Ref("input", p.name) for p in kernel.pointers)
    call = Call(op="trial", kernel=kernel.name, pointers=refs, sizes=tuple((name,) for name in kernel.sizes))
    return Program(
        name="trial",
        kernels=names,
        calls=(call,),
        forward=1,
        inputs=(),
        outputs=(),
        limits=dict(trial.sizes),
        arena=0,
        scratch=kernel.scratch,
    )
