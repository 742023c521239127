from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlc.errors import BadConfig
from mlc.tools.bench import Case, cases, measure, prompt


class Machine:
    """Reads a prompt at 100 tokens/s and writes at 10, `slower` each run; keeps its own time."""

    def __init__(self, *, at_once: int = 1) -> None:
        self.now = 1000.0
        self.prompts: list[list[int]] = []
        self.slower = 1.0
        self.at_once = at_once

    def clock(self) -> float:
        return self.now

    def generate(self, tokens: list[int], count: int) -> Iterator[int]:
        self.prompts.append(tokens)
        self.now += len(tokens) / 100 * self.slower
        yield 1
        left = count - 1
        while left:
            came = min(left, self.at_once)
            self.now += came / 10 * self.slower
            left -= came
            yield came
        self.slower *= 2


def test_rates_are_tokens_over_the_time_they_took() -> None:
    machine = Machine()
    prefill, decode = measure(
        machine.generate,
        cases([512], [128], [4]),
        vocab=9999,
        context=4096,
        iterations=1,
        warmup=0,
        clock=machine.clock,
    )
    assert prefill.mean == pytest.approx(100)
    assert prefill.latency == pytest.approx(5120)
    assert decode.mean == pytest.approx(10 / 2)  # the second run is twice as slow
    assert decode.latency == pytest.approx(200)


def test_warm_ups_do_not_count_and_the_deviation_is_that_of_the_population() -> None:
    machine = Machine()
    (result,) = measure(
        machine.generate, [Case("prefill", 10, 1)], vocab=9999, context=64, iterations=2, warmup=1, clock=machine.clock
    )
    assert result.rates == pytest.approx((50, 25))
    assert [result.mean, result.deviation] == pytest.approx([37.5, 12.5])


def test_tokens_that_come_together_count_each() -> None:
    machine = Machine(at_once=5)
    (result,) = measure(
        machine.generate, [Case("decode", 4, 64)], vocab=9999, context=99, iterations=1, warmup=0, clock=machine.clock
    )
    assert result.mean == pytest.approx(10)


def test_prompts_are_those_of_the_published_method() -> None:
    assert prompt(0, 0, 3, 1 << 20) == [1131, 1132, 1133]
    assert prompt(2, 1, 2, 1 << 20) == [1000 + 2 * 131 + 2 * 719, 1000 + 2 * 131 + 2 * 719 + 1]
    assert prompt(0, 14, 200, 1 << 20)[83] == 1000, "ids wrap after 2048"
    assert max(prompt(5, 5, 2048, 300)) < 300, "and at the end of the vocabulary"


def test_every_iteration_of_every_case_has_its_own_prompt() -> None:
    machine = Machine()
    measure(machine.generate, cases([8, 8], [2], [8]), vocab=1 << 20, context=99, iterations=3, clock=machine.clock)
    assert len({tuple(p) for p in machine.prompts}) == len(machine.prompts) == 12


def test_a_sweep_holds_every_combination_and_leaves_out_what_is_zero() -> None:
    assert cases([0, 16], [0, 8], [4, 64]) == [Case("prefill", 16, 1), Case("decode", 4, 8), Case("decode", 64, 8)]
    assert [c.label for c in cases([16], [8], [4])] == ["TTFT (16 input tokens)", "Decode (8 tokens @ d4)"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0], [1], [4]), "nothing to measure"),
        (([0], [16], [0]), "--depth must be greater than 0"),
        (([-1], [16], [4]), "negative"),
    ],
)
def test_sweeps_that_measure_nothing_are_refused(arguments: tuple[list[int], ...], says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        cases(*arguments)


@pytest.mark.parametrize(
    ("iterations", "context", "says"),
    [(0, 4096, "--iterations must be greater than 0"), (1, 512, "needs 513 tokens of context and the model has 512")],
)
def test_runs_that_cannot_be_made_are_refused_before_anything_runs(iterations: int, context: int, says: str) -> None:
    machine = Machine()
    with pytest.raises(BadConfig, match=says):
        measure(machine.generate, [Case("prefill", 512, 1)], vocab=10, context=context, iterations=iterations)
    assert machine.prompts == []


def test_an_engine_that_stops_early_is_found_out() -> None:
    def lazy(tokens: list[int], count: int) -> Iterator[int]:
        yield 1

    with pytest.raises(AssertionError, match="asked for 8 tokens, got 1"):
        measure(lazy, [Case("decode", 4, 8)], vocab=10, context=99)
