"""How fast a model reads prompts and writes answers, by the method of `mistralrs bench`, so that numbers compare.

Prompts are synthetic token ids, different in each iteration and the same for every engine. Nothing stops an answer but
its length. Knows no engine: it is given a function that generates, and a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from mlc.errors import BadConfig

Generate = Callable[[list[int], int], Iterator[int]]
"""(prompt, answer length) -> how many tokens came, each time that some came."""
Clock = Callable[[], float]
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """`prefill`: read `prompt` tokens and write one. `decode`: write `generated` tokens after a prompt of `prompt`."""

    kind: Literal["prefill", "decode"]
    prompt: int  # tokens
    generated: int  # tokens

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated

    @property
    def label(self) -> str:
        if self.kind == "prefill":
            return f"TTFT ({self.prompt} input tokens)"
        return f"Decode ({self.generated} tokens @ d{self.prompt})"


@dataclass(frozen=True, slots=True)
class Result:
    """The rates of all iterations, in tokens per second."""

    case: Case
    rates: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Population standard deviation."""
        return pstdev(self.rates)

    @property
    def latency(self) -> float:
        """Mean milliseconds to the first token (prefill), or from token to token (decode)."""
        tokens = self.case.prompt if self.case.kind == "prefill" else 1
        return fmean(1000 * tokens / rate for rate in self.rates)


def cases(prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int]) -> list[Case]:
    """Every prefill and every decode case of a sweep. A prompt of 0 skips prefill, an answer under 2 skips decode.

    Raises BadConfig.
    """
    if min((*prompts, *generated, *depths), default=0) < 0:
        raise BadConfig("lengths must not be negative")
    decodes = [length for length in generated if length >= 2]
    if decodes and 0 in depths:
        raise BadConfig("--depth must be greater than 0 when decode is measured (--gen-len 2 or more)")
    result = [Case("prefill", length, 1) for length in prompts if length]
    result += [Case("decode", depth, length) for length in decodes for depth in depths]
    if not result:
        raise BadConfig("nothing to measure: give --prompt-len above 0, or --gen-len 2 or more")
    return result


def prompt(case: int, iteration: int, length: int, vocab: int) -> list[int]:
    """The synthetic prompt of case number `case`; iterations are counted from 0, warm-ups first."""
    start = ((iteration + 1) * 131 + case * 719) % 2048
    return [(1000 + (start + i) % 2048) % vocab for i in range(length)]


def measure(
    generate: Generate,
    todo: Sequence[Case],
    *,
    vocab: int,
    context: int,
    iterations: int = 3,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
    progress: Callable[[Case, int], None] = lambda case, iteration: None,
) -> list[Result]:
    """Run every case `warmup + iterations` times, the warm-ups uncounted.

    `progress` is called before each run. Raises BadConfig where a case does not fit `context`, the model's tokens.
    """
    if iterations < 1:
        raise BadConfig("--iterations must be greater than 0")
    if warmup < 0:
        raise BadConfig("--warmup must not be negative")
    longest = max(case.tokens for case in todo)
    if longest > context:
        raise BadConfig(
            f"the benchmark needs {longest} tokens of context and the model has {context}; shorten --prompt-len, "
            "--gen-len or --depth, or raise --max-context"
        )
    results: list[Result] = []
    for number, case in enumerate(todo):
        rates: list[float] = []
        for iteration in range(warmup + iterations):
            progress(case, iteration)
            rate = _rate(generate, case, prompt(number, iteration, case.prompt, vocab), clock)
            if iteration >= warmup:
                rates.append(rate)
        results.append(Result(case, tuple(rates)))
    return results


def _rate(generate: Generate, case: Case, tokens: list[int], clock: Clock) -> float:
    """Tokens per second of one run."""
    begin = clock()
    first = last = begin
    count = 0
    for came in generate(tokens, case.generated):
        last = clock()
        if not count:
            first = last
        count += came
    assert count == case.generated, f"asked for {case.generated} tokens, got {count}"
    if case.kind == "prefill":
        return case.prompt / max(first - begin, 1e-9)
    return (case.generated - 1) / max(last - first, 1e-9)
