"""How fast a model reads prompts and writes answers: the cases, the order in which sides take turns, the numbers.

The cases are those of `mistralrs bench`, so that numbers compare: synthetic token ids, greedy, nothing stops an answer
but its length. Every side is a worker that answers orders (see `peers/serve.py`); while one is timed, the others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from statistics import fmean, median, pstdev
from typing import Any, Literal, Protocol

from mlc.errors import BadConfig

Clock = Callable[[], float]
"""Seconds."""

FOREIGN_LIMIT = 0.1  # share of the machine that others may take before a number is marked
_SECONDS = 120.0  # that any order may take
_SLOWEST = 1.0  # tokens per second; who is slower counts as stuck
_START_PROMPT = 32  # tokens
START_CONTEXT = 512  # tokens


class Side(Protocol):
    """A process that is measured; see `workers.Worker`."""

    name: str

    def ask(self, do: str, *, seconds: float = ..., **order: Any) -> dict[str, Any]: ...
    def settle(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Case:
    """`prefill`: read `prompt` tokens and choose one. `decode`: write `generated` tokens to each of `streams` sequences
    of `prompt` tokens, all in one batch.
    """

    kind: Literal["prefill", "decode"]
    prompt: int  # tokens
    generated: int  # tokens of one stream
    streams: int = 1

    @property
    def context(self) -> int:
        """Tokens that one stream needs room for: the one that follows the prompt is not among those timed."""
        return self.prompt + self.generated + 1

    @property
    def counted(self) -> int:
        """Tokens by which the rate is counted."""
        return self.prompt if self.kind == "prefill" else self.generated * self.streams

    @property
    def label(self) -> str:
        if self.kind == "prefill":
            return f"TTFT ({self.prompt} input tokens)"
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        return f"Decode ({self.generated} tokens @ d{self.prompt}{streams})"


@dataclass(frozen=True, slots=True)
class Result:
    """All timed spans of one side in one case."""

    case: Case
    seconds: tuple[float, ...]
    foreign: tuple[float, ...]  # shares of the machine that other processes took meanwhile
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def time(self) -> float:
        """Seconds, the median."""
        return median(self.seconds)

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second."""
        return tuple(self.case.counted / max(seconds, 1e-9) for seconds in self.seconds)

    @property
    def rate(self) -> float:
        """The median."""
        return median(self.rates)

    @property
    def mean(self) -> float:
        return fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Population standard deviation."""
        return pstdev(self.rates)

    @property
    def latency(self) -> float:
        """Mean milliseconds to the first token (prefill), or from token to token of a stream (decode)."""
        tokens = 1 if self.case.kind == "prefill" else self.case.generated
        return fmean(1000 * seconds / tokens for seconds in self.seconds)

    @property
    def disturbed(self) -> bool:
        """Whether others took so much of the machine that the number says little."""
        return median(self.foreign) > FOREIGN_LIMIT

    def as_dict(self) -> dict[str, Any]:
        return {
            "test": self.case.kind,
            "prompt": self.case.prompt,
            "generated": self.case.generated,
            "streams": self.case.streams,
            "tokens_per_second": self.rate,
            "mean": self.mean,
            "deviation": self.deviation,
            "latency_ms": self.latency,
            "rates": list(self.rates),
            "foreign": list(self.foreign),
            "disturbed": self.disturbed,
            "settings": dict(self.settings),
        }


def cases(
    prompts: Sequence[int],
    generated: Sequence[int],
    depths: Sequence[int],
    streams: Sequence[int] = (1,),
    *,
    or_none: bool = False,
) -> list[Case]:
    """Every prefill and every decode case of a sweep. A prompt of 0 skips prefill, an answer under 2 skips decode.

    Raises BadConfig, also where nothing is left, unless that is asked for (`or_none`).
    """
    if min((*prompts, *generated, *depths), default=0) < 0:
        raise BadConfig("lengths must not be negative")
    decodes = [length for length in generated if length >= 2]
    if decodes and 0 in depths:
        raise BadConfig("--depth must be greater than 0 when decode is measured (--gen-len 2 or more)")
    if decodes and min(streams, default=0) < 1:
        raise BadConfig("--streams must be greater than 0")
    result = [Case("prefill", length, 1) for length in prompts if length]
    result += [Case("decode", depth, length, n) for length in decodes for n in streams for depth in depths]
    if not result and not or_none:
        raise BadConfig("nothing to measure: give --prompt-len above 0, or --gen-len 2 or more, or --start")
    return result


def prompt(case: int, iteration: int, length: int, vocab: int) -> list[int]:
    """The synthetic prompt of case number `case`; iterations are counted from 0, warm-ups first."""
    start = ((iteration + 1) * 131 + case * 719) % 2048
    return [(1000 + (start + i) % 2048) % vocab for i in range(length)]


def check(todo: Sequence[Case], *, context: int, sequences: int, iterations: int, warmup: int) -> None:
    """Raises BadConfig where a case does not fit the model: its `context` tokens and `sequences` of a step."""
    if iterations < 1:
        raise BadConfig("--iterations must be greater than 0")
    if warmup < 0:
        raise BadConfig("--warmup must not be negative")
    most = max((case.streams for case in todo), default=0)
    if most > sequences:
        raise BadConfig(f"--streams {most} is more than the {sequences} sequences this model was compiled for")
    longest = max((case.context for case in todo), default=0)
    if longest > context:
        raise BadConfig(
            f"the benchmark needs {longest} tokens of context and the model has {context}; shorten --prompt-len, "
            "--gen-len or --depth"
        )


def measure(
    sides: Sequence[Side],
    todo: Sequence[Case],
    *,
    vocab: int,
    iterations: int = 3,
    warmup: int = 1,
    expected: Sequence[int] = (),
    progress: Callable[[Case, int], None] = lambda case, iteration: None,
    between: Callable[[Case], None] = lambda case: None,
) -> list[tuple[Result, ...]]:
    """Run every case `warmup + iterations` times on each side by turns, the warm-ups uncounted.

    A result for each case and side. `expected` processes are not counted as foreign; `progress` is called before each
    round, `between` after each that counts.
    """
    results: list[tuple[Result, ...]] = []
    for number, case in enumerate(todo):
        settings = [_setup(side, case, number, vocab) for side in sides]
        spans: list[list[dict[str, float]]] = [[] for _ in sides]
        for iteration in range(warmup + iterations):
            progress(case, iteration)
            for side, taken in zip(sides, spans, strict=True):
                span = _run(side, case, prompt(number, iteration, case.prompt, vocab), expected)
                side.settle()
                if iteration >= warmup:
                    taken.append(span)
            if iteration >= warmup:
                between(case)
        results.append(
            tuple(
                Result(case, tuple(s["seconds"] for s in taken), tuple(s["foreign"] for s in taken), chosen)
                for taken, chosen in zip(spans, settings, strict=True)
            )
        )
    return results


def _setup(side: Side, case: Case, number: int, vocab: int) -> dict[str, Any]:
    """Make a side ready for a case; returns its settings."""
    seconds = _allowance(case)
    settings = side.ask("setup", seconds=seconds, kind=case.kind, context=case.context, streams=case.streams)
    if case.kind == "decode":
        prompts = [prompt(number, stream, case.prompt, vocab) for stream in range(case.streams)]
        side.ask("fill", seconds=seconds, prompts=prompts)
    side.settle()
    return settings


def _run(side: Side, case: Case, tokens: list[int], expected: Sequence[int]) -> dict[str, float]:
    order: dict[str, Any] = {"prompt": tokens} if case.kind == "prefill" else {"tokens": case.generated}
    span = side.ask(case.kind, seconds=_allowance(case), expected=list(expected), **order)
    return {name: float(value) for name, value in span.items()}


def _allowance(case: Case) -> float:
    """Seconds after which a side counts as stuck."""
    return _SECONDS + case.context * case.streams / _SLOWEST


@dataclass(frozen=True, slots=True)
class Start:
    """A process from its start to its first token, medians of several."""

    first_token_seconds: float
    resident: int  # bytes, when the first token was there
    peak: int  # bytes, until then

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Opener = Callable[[], AbstractContextManager[Side]]
"""Starts a side's process, with the model loaded."""


def measure_starts(
    openers: Sequence[Opener], *, vocab: int, context: int, iterations: int, clock: Clock = time.perf_counter
) -> list[Start]:
    """Start each side anew `iterations` times, by turns."""
    taken = [
        [_start(opener, vocab, min(context, START_CONTEXT), clock) for opener in openers] for _ in range(iterations)
    ]
    return [
        Start(
            median(seconds for seconds, _ in of_side),
            int(median(memory["resident"] for _, memory in of_side)),
            int(median(memory["peak"] for _, memory in of_side)),
        )
        for of_side in zip(*taken, strict=True)
    ]


def _start(opener: Opener, vocab: int, context: int, clock: Clock) -> tuple[float, dict[str, int]]:
    """Seconds to the first token, and the memory it took."""
    began = clock()
    with opener() as side:
        side.ask("setup", kind="prefill", context=context, streams=1)
        side.ask("prefill", prompt=prompt(0, 0, min(_START_PROMPT, context - 2), vocab))
        return clock() - began, side.ask("memory")
