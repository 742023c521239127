"""The same request gives the same tokens, whatever else the engine does; it ends once, and leaves nothing."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from mlc.runtime.batch import Batch
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from tests.runtime.conftest import (
    GREEDY,
    SEEDED,
    Collected,
    HashModel,
    engine,
    expected,
    finish,
    prompt,
    run,
)

REQUESTS = [Request(prompt(3 + 7 * i, i), replace(GREEDY, max_tokens=3 + i % 5), id=f"greedy{i}") for i in range(9)] + [
    Request(prompt(3 + 5 * i, i), replace(SEEDED, seed=i, repetition_penalty=1.1), id=f"seeded{i}") for i in range(9)
]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[int]]:
    """The tokens of each of REQUESTS in an engine of its own, in one shot."""
    model_tokens = 128
    return {
        request.id or "": run(engine(HashModel(max_tokens=model_tokens)), request).tokens(request.id or "")
        for request in REQUESTS
    }


def test_greedy_tokens_are_those_of_the_model(alone: dict[str, list[int]]) -> None:
    for request in REQUESTS[:9]:
        assert alone[request.id or ""] == expected(list(request.tokens), request.params.max_tokens or 0)


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(lambda: engine(HashModel(256, max_tokens=256, max_sequences=32)), id="in one batch"),
        pytest.param(lambda: engine(HashModel(max_tokens=8)), id="in small chunks"),
        pytest.param(lambda: engine(HashModel(max_tokens=1, max_sequences=1)), id="token by token"),
        pytest.param(lambda: engine(HashModel(20)), id="in a tiny pool, preempted"),
        pytest.param(lambda: engine(HashModel(22, page_size=3), prefix_cache=False), id="preempted, nothing shared"),
        pytest.param(lambda: engine(HashModel(page_size=1, pages=100)), id="pages of one token"),
        pytest.param(lambda: engine(max_steps=5), id="several steps a call"),
        pytest.param(lambda: engine(HashModel(20), max_steps=32), id="several steps a call, preempted"),
    ],
)
def test_the_same_request_gives_the_same_tokens_alone_and(one: Any, alone: dict[str, list[int]]) -> None:
    busy = one()
    collected = run(busy, *REQUESTS)
    assert {request.id: collected.tokens(request.id or "") for request in REQUESTS} == alone
    if busy.statistics().pages <= 22:
        assert busy.statistics().preemptions > 0
    again = run(busy, *REQUESTS)  # now with a warm prefix cache
    assert {request.id: again.tokens(request.id or "") for request in REQUESTS} == alone


def test_a_shared_prefix_changes_nothing_but_the_work() -> None:
    stem, model = prompt(40), HashModel()
    warm, cold = engine(model), engine(prefix_cache=False)
    requests = [Request(stem + prompt(5, i), SEEDED, id=str(i)) for i in range(6)]
    for request in requests:
        with_cache, without = run(warm, request), run(cold, request)
        assert with_cache.tokens(request.id or "") == without.tokens(request.id or "")
    usage = with_cache.last("5").usage
    assert usage is not None and usage.cached_tokens == 40
    assert warm.statistics().cached_tokens == 5 * 40 and cold.statistics().cached_tokens == 0
    assert warm.statistics().pages_cached > 0 == cold.statistics().pages_cached


def test_a_conversation_continues_on_the_pages_of_the_answer() -> None:
    one, first = engine(), prompt(10)
    answer = run(one, Request(first, GREEDY, id="a")).tokens("a")
    usage = run(one, Request(first + answer + [1, 2], GREEDY, id="b")).last("b").usage
    assert usage is not None and usage.cached_tokens == 20  # of 21 tokens with k, v: the full pages


def test_tenants_do_not_see_each_others_pages() -> None:
    one = engine()
    run(one, Request(prompt(20), GREEDY, salt="a"))
    usage = run(one, Request(prompt(20), GREEDY, salt="b", id="b")).last("b").usage
    assert usage is not None and usage.cached_tokens == 0


def test_choices_share_the_pages_of_their_prompt_and_differ_by_their_random_numbers() -> None:
    model = HashModel()
    many = run(engine(model), Request(prompt(41), SEEDED, n=4, id="r"))
    tokens = [many.tokens("r", i) for i in range(4)]
    assert len({tuple(answer) for answer in tokens}) == 4
    assert tokens[0] == run(engine(), Request(prompt(41), SEEDED, id="r")).tokens("r")
    assert sum(model.sizes) == 41 + 3 * 1 + 4 * 11  # the prompt once, its last token for each of the others
    for i in (1, 2, 3):
        usage = many.last("r", i).usage
        assert usage is not None and (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (41, 40, 12)


@pytest.fixture
def slow_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the model may take as long as they like: `max_steps` alone limits them."""
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)


def fuzzed(seed: int, max_steps: int) -> tuple[Collected, dict[str, int], Engine]:
    """A run of random requests, some cancelled when they have a certain number of tokens, and what was cancelled."""
    when, collected, cancels = random.Random(seed), Collected(), dict[str, int]()
    size = when.choice((1, 4, 7))
    model = HashModel(when.choice((90, 200, 400)) // size, page_size=size, max_tokens=64, max_sequences=4)
    one, left = engine(model, max_steps=max_steps, prefix_cache=when.random() < 0.7), 25
    stems = [prompt(30, i) for i in range(2)]
    while left or not one.idle:
        while left and (one.idle or when.random() < 0.1):
            left -= 1
            rng = random.Random(seed * 100 + left)  # what is asked for does not depend on when
            params = replace(
                rng.choice((GREEDY, SEEDED)),
                max_tokens=rng.randrange(1, 60),
                stop=rng.choice(((), [chr(code) for code in rng.sample(range(32, 127), 15)] + ["é"])),
                stop_ids=rng.choice(([], [], rng.sample(range(256), 16))),
                repetition_penalty=rng.choice((1.0, 1.0, 1.0, 1.3)),
                logprobs=rng.choice((None, None, None, 2)),
            )
            tokens = rng.choice(stems)[: rng.randrange(1, 30)] + prompt(rng.randrange(5), left)
            name = one.submit(Request(tokens, params, n=rng.choice((1, 1, 2)), id=f"r{left}"))
            if rng.random() < 0.2:
                cancels[name] = rng.randrange(1, 30)
        collected.add(one.step())
        for name in [name for name, after in cancels.items() if after <= most_tokens(collected, name)]:
            if not one.cancel(name):
                del cancels[name]
    one.check()
    return collected, cancels, one


def most_tokens(collected: Collected, name: str) -> int:
    return max((len(collected.tokens(*key)) for key in collected.outputs if key[0] == name), default=0)


@pytest.mark.usefixtures("slow_calls")
@pytest.mark.parametrize("seed", range(12))
def test_several_steps_in_one_call_give_what_single_steps_give(seed: int) -> None:
    single, _, _ = fuzzed(seed, 1)
    several, cancelled, one = fuzzed(seed, random.Random(seed).choice((2, 5, 32)))
    assert one.statistics().pages_free == one.statistics().pages
    compared = 0
    for key, outputs in several.outputs.items():
        last, alone = several.last(*key), single.outputs.get(key)
        assert outputs and alone
        if key[0] in cancelled or single.last(*key).finish_reason == "cancelled" or last.finish_reason == "cancelled":
            both = list(zip(several.tokens(*key), single.tokens(*key), strict=False))
            assert all(a == b for a, b in both)
            continue
        compared += 1
        assert several.tokens(*key) == single.tokens(*key) and several.text(*key) == single.text(*key)
        expected_last = single.last(*key)
        assert (last.finish_reason, last.stop) == (expected_last.finish_reason, expected_last.stop)
        assert last.usage is not None and expected_last.usage is not None
        assert last.usage.completion_tokens == expected_last.usage.completion_tokens == len(several.tokens(*key))
    assert compared > 10
    assert any(len(output.tokens) > 1 for outputs in several.outputs.values() for output in outputs)


@pytest.mark.usefixtures("slow_calls")
def test_steps_share_a_call_while_nobody_could_start_and_none_needs_us_between_them() -> None:
    model = HashModel(max_sequences=2)
    one = engine(model, max_steps=4)

    def calls(*requests: Request) -> list[list[int]]:
        """How many tokens each call gave to each choice that got any."""
        for request in requests:
            one.submit(request)
        made = list[list[int]]()
        while not one.idle:
            made.append([len(output.tokens) for output in one.step()])
        return made

    assert calls(Request(prompt(9), GREEDY)) == [[1], [4], [4], [3]]
    assert calls(Request(prompt(9), SEEDED)) == [[1], [4], [4], [3]]
    for native in (replace(GREEDY, repetition_penalty=1.1), replace(GREEDY, logit_bias={1: 1.0})):
        assert calls(Request(prompt(9), native)) == [[1], [4], [4], [3]]
    for needy in (replace(GREEDY, logprobs=0), replace(GREEDY, min_tokens=12)):
        assert calls(Request(prompt(9), needy)) == [[1]] * 12
    early = replace(GREEDY, min_tokens=6, max_tokens=12)
    assert calls(Request(prompt(9), early)) == [[1]] * 6 + [[4], [2]]
    two_seats = calls(*(Request(prompt(9, i), GREEDY) for i in range(3)))
    assert two_seats[1:5] == [[4, 4], [4, 4], [3, 3], [1]], "the third one waits for a seat"
    stop = expected(prompt(9), 12)[6]
    ends = replace(GREEDY, stop_ids=[stop])
    first = expected(prompt(9), 12).index(stop)
    sizes = list(model.sizes)
    assert sum(map(sum, calls(Request(prompt(9), ends)))) == first + 1
    assert len(model.sizes) - len(sizes) == first + 1  # no step was made in vain
    statistics = one.statistics()
    assert statistics.steps == len(model.sizes) and statistics.computed_tokens == sum(model.sizes)


def test_a_call_takes_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of a step takes 10 ms, and a call 60 ms: the pace of the last decoding step tells how many that are."""
    now, model = [0.0], HashModel()

    def run_on_the_clock(batch: Batch, logits: object) -> None:
        now[0] += 0.01 * len(batch.tokens)

    monkeypatch.setattr("mlc.runtime.engine.perf_counter", lambda: now[0])
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 0.0601)
    model.fails = run_on_the_clock
    one, steps = engine(model, max_steps=256), list[int]()

    def call() -> int:
        before = len(model.sizes)
        one.step()
        return len(model.sizes) - before

    one.submit(Request(prompt(9), replace(GREEDY, max_tokens=34)))
    steps += [call() for _ in range(4)]
    one.submit(Request(prompt(9, 1), GREEDY))
    while not one.idle:
        steps.append(call())
    # the first step, then 1 to learn the pace, then 6; with the second prompt 1, then 3 of two rows; alone again
    assert steps == [1, 1, 6, 6, 1, 3, 3, 3, 2, 3, 5]


def test_requests_without_a_seed_differ() -> None:
    params = replace(SEEDED, seed=None)
    collected = run(engine(), Request(prompt(5), params, id="a"), Request(prompt(5), params, id="b"))
    assert collected.tokens("a") != collected.tokens("b")


def test_a_cancelled_request_ends_at_once_and_frees_its_pages() -> None:
    one = engine()
    one.submit(Request(prompt(30), GREEDY, n=2, id="r"))
    waiting = one.submit(Request(prompt(5), GREEDY))
    collected = Collected()
    for _ in range(3):
        collected.add(one.step())
    assert one.cancel("r") and not one.cancel("r") and not one.cancel("unknown")
    assert one.statistics().running == 1
    one.cancel(waiting)
    assert one.statistics().pages_free == one.statistics().pages and not one.idle
    finish(one, collected)
    last = collected.last("r", 0)
    assert last.finish_reason == "cancelled" == collected.last("r", 1).finish_reason
    assert last.usage is not None and last.usage.completion_tokens == len(collected.tokens("r")) > 0
    assert last.timings is not None and last.timings.decode_seconds is not None
    assert collected.last(waiting).finish_reason == "cancelled"
    assert one.submit(Request(prompt(5), GREEDY, id="r")) == "r"  # the id is free again


def test_200_requests_cancelled_at_random_each_end_once_and_leave_every_page_free() -> None:
    rng, one, collected = random.Random(3), engine(HashModel(24), max_queue=1000), Collected()
    stems, left, alive = [prompt(40, i) for i in range(3)], 200, set[str]()
    while left or not one.idle:
        if left and rng.random() < 0.3:
            left -= 1
            params = replace(rng.choice((GREEDY, SEEDED)), max_tokens=rng.randrange(1, 40))
            tokens = rng.choice(stems)[: rng.randrange(1, 40)] + prompt(rng.randrange(10), left)
            alive.add(one.submit(Request(tokens, params, n=rng.choice((1, 1, 1, 3)))))
        elif alive and rng.random() < 0.1:
            one.cancel(rng.choice(sorted(alive)))
        outputs = one.step()
        collected.add(outputs)
        alive -= {output.request for output in outputs if output.finish_reason is not None}
    reasons = Counter(collected.last(name, index).finish_reason for name, index in collected.outputs)
    statistics = one.statistics()
    assert reasons == statistics.finished and reasons["cancelled"] > 20 and reasons["length"] > 100
    assert statistics.requests == 200 and statistics.preemptions > 0
    assert statistics.pages_free == statistics.pages and statistics.waiting == statistics.running == 0
