"""How near a measured time is to what the machine could do: bytes against bandwidth, operations against peaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mlc.ir import Graph, parse_format

from .bench import Case
from .stats import Cost, Row, Step, decode_step, prefill_steps, summarize, total

Measured = Mapping[str, float]
"""What a limit was found to be, by its name; see `backends.tvm.limits`."""

NAMES = ("read", "bytes", "nibbles", "floats")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of this machine, as measured: bytes that it reads in a second, and operations of each kind."""

    read: float
    bytes: float  # products of bytes, widened one by one
    nibbles: float  # products of weights of 4 bits, added in pairs of eight before they are widened
    floats: float

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Limits:
        """The medians of several measurements."""
        return cls(**{name: median(found[name] for found in measured) for name in NAMES})

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def describe(self) -> str:
        return (
            f"Limits: reads {self.read / 1e9:.1f} GB/s; multiplies and adds {self.bytes / 1e9:.0f} Gop/s of bytes, "
            f"{self.nibbles / 1e9:.0f} with 4-bit weights, {self.floats / 1e9:.0f} of floats"
        )

    def peak(self, reads: str) -> tuple[str, float]:
        """Which arithmetic an op uses that reads weights of the type `reads`, and its operations per second."""
        format = parse_format(reads.partition("[")[0]) if reads else None
        if format is None:
            return "floats", self.floats
        return ("nibbles", self.nibbles) if format.bits <= 4 else ("bytes", self.bytes)

    def bind(self, reads: str, cost: Cost) -> tuple[str, float]:
        """The limit that an op meets first, and the seconds it needs at least."""
        name, peak = self.peak(reads)
        memory, arithmetic = cost.bytes / self.read, cost.operations / peak
        return ("read", memory) if memory >= arithmetic else (name, arithmetic)


@dataclass(frozen=True, slots=True)
class Work:
    """What a case makes the machine do at least, and how fast it was done."""

    binds: str  # field of `Limits`: `read` where the case decodes, the peak of its weights where it reads a prompt
    rate: float  # bytes or operations per second
    share: float  # of that limit

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def work(graph: Graph, case: Case, seconds: float, limits: Limits, *, step_tokens: int) -> Work:
    """Of a case that took `seconds`: weights and KV per second where it decodes, operations per second where it reads.

    `step_tokens` is how many tokens of a prompt one step takes.
    """
    rows = summarize_steps(graph, steps(case, step_tokens))
    if case.kind == "decode":
        cost = total(rows)
        rate = (cost.weights + cost.cache) * case.generated / seconds
        return Work("read", rate, rate / limits.read)
    heaviest = max(rows, key=lambda row: row.cost.operations if row.reads else 0.0)
    name, peak = limits.peak(heaviest.reads)
    rate = total(rows).operations / seconds
    return Work(name, rate, rate / peak)


def steps(case: Case, step_tokens: int) -> list[Step]:
    """Those of a prefill case, or the middle one of a decode case."""
    if case.kind == "prefill":
        return prefill_steps(case.prompt, most=step_tokens)
    return [decode_step(tokens=case.streams, context=case.prompt + case.generated // 2 + 1)]


def summarize_steps(graph: Graph, todo: Iterable[Step]) -> list[Row]:
    """The rows of several steps added up."""
    sums: dict[tuple[str, str], Cost] = {}
    for step in todo:
        for row in summarize(graph, step):
            key = row.op, row.reads
            sums[key] = sums.get(key, Cost()) + row.cost
    return [Row(op, reads, cost) for (op, reads), cost in sums.items()]
