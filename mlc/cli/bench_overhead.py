"""bench --profile: what a turn of the engine costs besides the model: choosing tokens, and what happens in Python.

The engine is the one that `mlc serve` runs, tokenizer and messages included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count, islice
from statistics import median
from time import perf_counter
from typing import Any

from mlc.backends.module import LanguageModel
from mlc.errors import BadConfig
from mlc.runtime.driver import Driver
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.settings import EngineSettings
from mlc.runtime.tokenizer import Tokenizer
from mlc.runtime.wire import Submit, Turn, pack
from mlc.tools.bench import prompt

ANSWER = 128  # tokens of an answer; there are several answers, so that the depth stays what was asked for
_SECONDS, _LEAST_ROUNDS = 3.0, 2


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of one step in which every stream gets a token, medians of many turns of the engine."""

    step: float  # all of it
    sampling: float  # of those, kernels that choose tokens
    rest: float  # of those, outside of native code: scheduling, batches, penalties, text, messages

    @property
    def share(self) -> float:
        """Of the step, what the model's own computation does not take."""
        return (self.sampling + self.rest) / self.step

    def as_dict(self) -> dict[str, float]:
        return {f"{name}_seconds": value for name, value in asdict(self).items()} | {"share": self.share}

    def describe(self) -> str:
        parts = [f"{1e6 * part:.0f} µs ({100 * part / self.step:.1f} %)" for part in (self.sampling, self.rest)]
        return (
            f"a step of the engine: {1e6 * self.step:.0f} µs, of which choosing tokens takes {parts[0]}, and "
            f"scheduling, text and everything else outside of kernels {parts[1]}"
        )


def sampling_params(options: Sequence[str]) -> SamplingParams:
    """From NAME=VALUE for each field that is not the default; greedy without any. Raises BadConfig, InvalidRequest."""
    names = [f.name for f in fields(SamplingParams) if f.name not in ("max_tokens", "ignore_eos")]
    values: dict[str, Any] = {} if options else {"temperature": 0.0}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or name not in names:
            raise BadConfig(f"--sampling {option!r} is not NAME=VALUE with a NAME of {', '.join(names)}")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text  # a stop string
    return SamplingParams(**values)


@dataclass(slots=True)
class _Turn:
    """A turn of the engine: seconds, of those in native code, and steps of the model."""

    seconds: float = 0.0
    native: float = 0.0
    sampling: float = 0.0  # of those, in calls that do nothing else
    fused: float = 0.0  # of those, sampling in calls that do more, each taken to be as long as one made again
    again: float = 0.0  # besides: samplings made again
    repeated: int = 0  # calls for which that was done
    steps: int = 0

    def per_step(self) -> tuple[float, float, float]:
        """All, sampling, the rest."""
        return (
            self.seconds / self.steps,
            self.sampling / self.steps + self.fused / max(1, self.repeated),
            (self.seconds - self.native) / self.steps,
        )


@dataclass
class _Meter:
    """Stands before the native code of a model and times its calls.

    Where one call runs the graph and samples, the sampling is made once more to be timed: it depends on logits alone.
    What a call takes that does nothing is taken off.
    """

    model: LanguageModel
    turn: _Turn = field(default_factory=_Turn)

    def __post_init__(self) -> None:
        self._native, self.model.executor.native = self.model.executor.native, self

    def __call__(self, *arguments: Any) -> None:
        *memory, first, last, threads = arguments
        seconds = self._timed(*arguments)
        self.turn.native += seconds
        if first >= self.model.program.forward:
            self.turn.sampling += seconds
        elif last > self.model.program.forward:
            choosing = self.model.choosing
            for _ in range(2):  # the first finds Python's side of a call out of the caches
                nothing = self._timed(*memory, choosing, choosing, threads)
                once = self._timed(*memory, self.model.program.forward, choosing, threads)
                self.turn.again += nothing + once
            self.turn.repeated += 1
            self.turn.fused += max(0.0, once - nothing)

    def _timed(self, *arguments: Any) -> float:
        began = perf_counter()
        self._native(*arguments)
        return perf_counter() - began


def measure_overhead(
    model: LanguageModel, tokenizer: Tokenizer, params: SamplingParams, *, depth: int, streams: int
) -> Overhead:
    """Of answers behind `depth` tokens, `streams` at a time. The model has room for ANSWER + 1 tokens more of each."""
    meter = _Meter(model)
    driver = Driver(Engine(model, tokenizer, EngineSettings(max_sequences=streams)))
    tokenizer.stream_decoder().push(range(model.vocab))  # random weights write tokens that no server has spelled yet
    params = replace(params, max_tokens=ANSWER, ignore_eos=True)
    taken, numbers = list[_Turn](), count()
    end = perf_counter() + _SECONDS
    for done in count():
        if done >= _LEAST_ROUNDS and perf_counter() > end:
            break
        for number in islice(numbers, streams):
            tokens = prompt(0, number % streams, max(1, depth), model.vocab)
            driver.apply(Submit.of(number, Request(tokens, params)))
        turns = list(_round(driver, meter, streams))
        taken += turns if done else []  # the first touches memory that no later one has to
    if not any(taken):
        raise BadConfig("the answers ended too soon to be measured: leave more room behind --depth")
    return Overhead(*(median(column) for column in zip(*(turn.per_step() for turn in taken), strict=True)))


def _round(driver: Driver, meter: _Meter, streams: int) -> Iterator[_Turn]:
    """Turn until all answers have ended; those turns that gave each stream tokens, but not its first."""
    written = dict[str, int]()
    while not driver.idle:
        meter.turn = turn = _Turn()
        began = perf_counter()
        frame = driver.turn()
        pack(Turn(frame))
        turn.seconds = perf_counter() - began - turn.again
        for refusal in frame.refused:
            raise refusal.error()
        for output in frame.outputs:
            if output.error is not None:
                raise BadConfig(f"the engine could not continue an answer: {output.error}")
            written[output.request] = written.get(output.request, 0) + len(output.tokens)
            turn.steps = len(output.tokens)
        first = [written[output.request] == len(output.tokens) for output in frame.outputs]
        if len(frame.outputs) == streams and not any(first):
            yield turn
