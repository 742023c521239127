from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlc.errors import BadConfig
from mlc.tools.bench import Case, Result, cases, check, measure, measure_starts, prompt


class Fake:
    """Reads a prompt at 100 tokens/s and writes a step at 10, `slower` each time; remembers its orders."""

    def __init__(self, name: str = "a", *, foreign: float = 0.0, journal: list[tuple[str, str]] | None = None) -> None:
        self.name, self.foreign, self.slower = name, foreign, 1.0
        self.journal = journal if journal is not None else []
        self.orders: list[tuple[str, dict[str, Any]]] = []

    def ask(self, do: str, *, seconds: float = 0.0, **order: Any) -> dict[str, Any]:
        self.orders.append((do, order))
        self.journal.append((self.name, do))
        if do == "setup":
            return {"flash": "off"}
        if do == "memory":
            return {"resident": 5, "peak": 7}
        if do not in ("prefill", "decode"):
            return {}
        took = len(order["prompt"]) / 100 if do == "prefill" else order["tokens"] / 10
        self.slower *= 2
        return {"seconds": took * self.slower / 2, "cpu": 0.0, "foreign": self.foreign}

    def settle(self) -> bool:
        self.journal.append((self.name, "settle"))
        return True

    def prompts(self) -> list[tuple[int, ...]]:
        return [tuple(order["prompt"]) for do, order in self.orders if do == "prefill"]


def test_rates_are_tokens_over_the_time_they_took() -> None:
    (prefill,), (decode,) = measure(
        [Fake()], cases([512], [128], [4], [8])[:1] + cases([0], [128], [4], [8]), vocab=9999, iterations=1, warmup=0
    )
    assert prefill.rate == pytest.approx(100)
    assert prefill.latency == pytest.approx(5120)
    assert decode.rate == pytest.approx(8 * 10 / 2), (
        "eight streams write a token each in a step; the second run is slow"
    )
    assert decode.latency == pytest.approx(200), "of one stream"


def test_warm_ups_do_not_count_and_the_median_does() -> None:
    ((result,),) = measure([Fake()], [Case("prefill", 10, 1)], vocab=9999, iterations=3, warmup=1)
    assert result.rates == pytest.approx((50, 25, 12.5))
    assert [result.rate, result.mean] == pytest.approx([25, 29.1666667])
    assert result.deviation == pytest.approx(15.5902, abs=1e-3), "that of the population"
    assert result.settings == {"flash": "off"}


def test_sides_take_turns_and_each_is_idle_before_the_next_begins() -> None:
    journal: list[tuple[str, str]] = []
    sides = [Fake("a", journal=journal), Fake("b", journal=journal)]
    measure(sides, [Case("decode", 4, 8)], vocab=99, iterations=2, warmup=1)
    start = [(side, order) for side in "ab" for order in ("setup", "fill", "settle")]
    turn = [(side, order) for side in "ab" for order in ("decode", "settle")]
    assert journal == start + 3 * turn


def test_both_sides_get_the_same_tokens_and_streams_differ() -> None:
    sides = [Fake("a"), Fake("b")]
    measure(sides, cases([8], [4], [16], [3]), vocab=1 << 20, iterations=2)
    assert sides[0].orders == sides[1].orders
    (filled,) = [order["prompts"] for do, order in sides[0].orders if do == "fill"]
    assert len({tuple(p) for p in filled}) == 3 and {len(p) for p in filled} == {16}


def test_a_number_is_marked_where_others_took_more_than_a_tenth_of_the_machine() -> None:
    case = Case("prefill", 10, 1)
    assert not Result(case, (1.0,) * 3, (0.5, 0.09, 0.0)).disturbed, "the median counts"
    assert Result(case, (1.0,) * 3, (0.5, 0.11, 0.0)).disturbed


def test_prompts_are_those_of_the_published_method() -> None:
    assert prompt(0, 0, 3, 1 << 20) == [1131, 1132, 1133]
    assert prompt(2, 1, 2, 1 << 20) == [1000 + 2 * 131 + 2 * 719, 1000 + 2 * 131 + 2 * 719 + 1]
    assert prompt(0, 14, 200, 1 << 20)[83] == 1000, "ids wrap after 2048"
    assert max(prompt(5, 5, 2048, 300)) < 300, "and at the end of the vocabulary"


def test_every_iteration_of_every_prefill_has_its_own_prompt() -> None:
    side = Fake()
    measure([side], cases([8, 8], [0], [4]), vocab=1 << 20, iterations=3)
    assert len(set(side.prompts())) == len(side.prompts()) == 8


def test_a_sweep_holds_every_combination_and_leaves_out_what_is_zero() -> None:
    assert cases([0, 16], [0, 8], [4, 64]) == [Case("prefill", 16, 1), Case("decode", 4, 8), Case("decode", 64, 8)]
    assert cases([0], [0], [4], or_none=True) == []
    assert cases([0], [8], [4], [1, 8]) == [Case("decode", 4, 8), Case("decode", 4, 8, 8)]
    labels = [c.label for c in cases([16], [8], [4], [1, 2])]
    assert labels == ["TTFT (16 input tokens)", "Decode (8 tokens @ d4)", "Decode (8 tokens @ d4, 2 streams)"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0], [1], [4]), "nothing to measure"),
        (([0], [16], [0]), "--depth must be greater than 0"),
        (([0], [16], [4], [0]), "--streams must be greater than 0"),
        (([-1], [16], [4]), "negative"),
    ],
)
def test_sweeps_that_measure_nothing_are_refused(arguments: tuple[list[int], ...], says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        cases(*arguments)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"iterations": 0}, "--iterations must be greater than 0"),
        ({"warmup": -1}, "--warmup must not be negative"),
        ({"context": 512}, "needs 515 tokens of context and the model has 512"),
        ({"sequences": 3}, "--streams 4 is more than the 3 sequences"),
    ],
)
def test_runs_that_cannot_be_made_are_refused(changed: dict[str, int], says: str) -> None:
    limits = {"context": 4096, "sequences": 64, "iterations": 3, "warmup": 1}
    with pytest.raises(BadConfig, match=says):
        check([Case("decode", 512, 2, 4)], **{**limits, **changed})


def test_a_start_lasts_until_the_first_token_and_sides_take_turns() -> None:
    now = 0.0
    journal: list[tuple[str, str]] = []

    @contextmanager
    def opener(name: str, seconds: float) -> Iterator[Fake]:
        nonlocal now
        journal.append((name, "open"))
        now += seconds
        yield Fake(name, journal=journal)
        now += 1000.0
        journal.append((name, "close"))

    ours, theirs = iter([1.0, 9.0, 2.0]), iter([4.0, 4.0, 5.0])
    openers = [lambda: opener("a", next(ours)), lambda: opener("b", next(theirs))]
    a, b = measure_starts(openers, vocab=99, context=64, iterations=3, clock=lambda: now)
    assert (a.first_token_seconds, b.first_token_seconds) == (2.0, 4.0)
    assert (a.resident, a.peak) == (5, 7)
    orders = ("open", "setup", "prefill", "memory", "close")
    assert journal == 3 * [(side, order) for side in "ab" for order in orders]
