"""What fails, fails alone; what cannot be served is refused by name. Streams, times and settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlc.errors import BadConfig, GenerationFailed, InvalidRequest, Overloaded, PromptTooLong
from mlc.runtime.batch import Batch
from mlc.runtime.engine import Engine
from mlc.runtime.request import Output, Request
from tests.runtime.conftest import (
    GREEDY,
    SEEDED,
    VOCAB,
    Collected,
    HashModel,
    engine,
    expected,
    finish,
    prompt,
    run,
)


def failing(requests: Sequence[str], how: str, caplog: pytest.LogCaptureFixture) -> tuple[Engine, Collected]:
    """Run three requests of which the second fails as described."""
    model = HashModel()
    one = engine(model)
    caplog.set_level(logging.CRITICAL, "mlc.engine")
    for i, name in enumerate(requests):
        one.submit(Request(prompt(9, i), SEEDED, id=name))
    collected = Collected()
    collected.add(one.step())
    victim: Any = next(choice for choice in one._choices.values() if choice.request == requests[1])

    def broken(*_: object) -> Any:
        raise KeyError("a secret")

    if how == "logits":

        def spoil(batch: Batch, logits: NDArray[np.float32]) -> None:
            logits[1] = np.nan
            model.fails = None

        model.fails = spoil
    elif how == "sampler":
        victim.sampler_state.record = broken
    else:
        victim._decoder.push = broken
    return one, finish(one, collected)


@pytest.mark.parametrize(
    ("how", "message"),
    [("logits", "token 2 of the answer are not finite"), ("sampler", "KeyError"), ("decoder", "KeyError")],
)
def test_a_failing_request_ends_only_itself(how: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    one, collected = failing(["a", "b", "c"], how, caplog)
    last = collected.last("b")
    assert last.finish_reason == "error" and last.error is not None and message in last.error
    assert "secret" not in last.error
    for i, name in ((0, "a"), (2, "c")):
        assert collected.tokens(name) == run(engine(), Request(prompt(9, i), SEEDED, id=name)).tokens(name)
    assert one.statistics().finished == {"error": 1, "length": 2}


def test_pages_of_a_request_that_failed_are_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    one, _ = failing(["a", "b", "c"], "logits", caplog)
    usages = [run(one, Request(prompt(9, i), GREEDY, id="again")).last("again").usage for i in range(3)]
    assert [usage.cached_tokens for usage in usages if usage is not None] == [8, 0, 8]


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mlc.engine")
    model = HashModel(max_tokens=8, max_sequences=2)
    one = engine(model)
    run(one, Request(prompt(20, 1), GREEDY))
    assert one.statistics().pages_cached > 0
    for name in ("a", "b", "c"):
        one.submit(Request(prompt(6), GREEDY, id=name))
    collected = Collected()
    collected.add(one.step())
    model.cache[:] = 0  # whatever was cached is garbage from now on

    def explode(*_: object) -> None:
        model.fails = None
        raise MemoryError("the device is on fire")

    model.fails = explode
    finish(one, collected)
    for name in ("a", "b"):
        last = collected.last(name)
        assert last.finish_reason == "error" and last.error is not None and "MemoryError" in last.error
        assert "fire" not in last.error
    assert collected.tokens("c") == expected(prompt(6), 12)
    assert run(one, Request(prompt(20, 1), GREEDY, id="old")).tokens("old") == expected(prompt(20, 1), 12)


def test_wrong_logits_of_a_broken_model_are_an_error_and_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mlc.engine")
    model = HashModel()
    one = engine(model)
    model.run = lambda batch: np.zeros((5, VOCAB), np.float32)  # type: ignore[method-assign]
    last = run(one, Request(prompt(3), replace(GREEDY, logprobs=0), id="r")).last("r")
    assert last.error is not None and "5 rows of logits" in last.error


BAD_REQUESTS: list[tuple[Request, str]] = [
    (Request([], GREEDY), "prompt"),
    (Request([1, VOCAB], GREEDY), "prompt"),
    (Request([1, -1], GREEDY), "prompt"),
    (Request([1, 2**70], GREEDY), "prompt"),
    (Request([1.5, 2.0], GREEDY), "prompt"),  # type: ignore[list-item]
    (Request("text", GREEDY), "prompt"),  # type: ignore[arg-type]
    (Request([[1], [2, 3]], GREEDY), "prompt"),  # type: ignore[list-item]
    (Request(5, GREEDY), "prompt"),  # type: ignore[arg-type]
    (Request([1], GREEDY, n=0), "n"),
    (Request([1], GREEDY, n=-3), "n"),
    (Request([1], GREEDY, n=129), "n"),
    (Request([1], GREEDY, n=True), "n"),
    (Request([1], GREEDY, n=1.5), "n"),  # type: ignore[arg-type]
    (Request([1], GREEDY, salt=3), "salt"),  # type: ignore[arg-type]
    (Request([1], GREEDY, id=3), "id"),  # type: ignore[arg-type]
    (Request([1], replace(GREEDY, stop_ids=[VOCAB])), "stop_ids"),
    (Request([1], replace(GREEDY, logit_bias={VOCAB: 1.0})), "logit_bias"),
]


@pytest.mark.parametrize(("request_", "param"), BAD_REQUESTS)
def test_a_bad_request_is_refused_by_name_and_leaves_no_trace(request_: Request, param: str) -> None:
    one = engine()
    with pytest.raises(InvalidRequest) as caught:
        one.submit(request_)
    assert caught.value.param == param and one.idle
    one.check()


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers() -> None:
    for one, limit in ((engine(), 128), (engine(HashModel(6)), 24), (engine(max_context=10), 10)):
        with pytest.raises(PromptTooLong, match=rf"has {limit} tokens and the model's context holds {limit}"):
            one.submit(Request(prompt(limit), GREEDY))
        assert run(one, Request(prompt(limit - 1), GREEDY, id="r")).last("r").finish_reason == "length"


def test_the_queue_is_bounded() -> None:
    one = engine(max_queue=3)
    one.submit(Request(prompt(5), GREEDY, n=2))
    with pytest.raises(Overloaded, match="2 answers wait, 2 more were asked for, and the queue holds 3"):
        one.submit(Request(prompt(5), GREEDY, n=2))
    one.submit(Request(prompt(5), GREEDY))
    assert one.statistics().rejected == 1 and one.statistics().waiting == 3
    finish(one)


def test_an_id_under_way_is_refused() -> None:
    one = engine()
    one.submit(Request(prompt(5), GREEDY, id="request-1"))
    with pytest.raises(InvalidRequest, match="'request-1' is under way"):
        one.submit(Request(prompt(5), GREEDY, id="request-1"))
    assert one.submit(Request(prompt(5), GREEDY)) == "request-2"
    finish(one)


def test_generate_yields_the_outputs_of_its_request_alone() -> None:
    one = engine()
    other = one.submit(Request(prompt(30), GREEDY))
    streams: list[Iterator[Output]] = [one.generate("Hello", GREEDY), one.generate(prompt(7), SEEDED, n=2)]
    seen: list[list[Output]] = [[], []]
    while any(streams):
        for i, stream in enumerate(streams):
            output = next(stream, None)
            if output is not None:
                seen[i].append(output)
            else:
                streams[i] = iter(())
        if sum(len(output.tokens) for outputs in seen for output in outputs) == 36:
            break
    finished = finish(one)
    hello = [token for output in seen[0] for token in output.tokens]
    assert hello == expected(list(b"Hello"), 12) and {output.choice for output in seen[1]} == {0, 1}
    assert finished.tokens(other) == expected(prompt(30), 12)


def test_closing_a_stream_cancels_its_request() -> None:
    one = engine()
    stream = one.generate("Hello", GREEDY)
    next(stream)
    assert not one.idle
    stream.close()  # type: ignore[attr-defined]
    assert one.idle and one.statistics().finished == {"cancelled": 1}


def test_a_stream_tells_that_its_request_was_cancelled() -> None:
    one = engine()
    stream = one.generate("Hello", GREEDY)
    name = next(stream).request
    one.cancel(name)
    assert [output.finish_reason for output in stream] == ["cancelled"] and one.idle


def test_a_stream_raises_what_ended_its_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mlc.engine")
    model = HashModel()
    one = engine(model)

    def spoil(batch: Batch, logits: NDArray[np.float32]) -> None:
        logits[:] = np.inf

    model.fails = spoil
    with pytest.raises(GenerationFailed, match="not finite"):
        list(one.generate("Hello", GREEDY))
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        list(one.generate("", GREEDY))
    assert one.idle


def test_times_and_counts_add_up() -> None:
    model = HashModel()
    one = engine(model)
    last = run(one, Request(prompt(40), GREEDY, id="r")).last("r")
    times, statistics = last.timings, one.statistics()
    assert times is not None and times.prefill_seconds and times.decode_seconds and times.first_token_seconds
    assert times.queue_seconds + times.prefill_seconds == pytest.approx(times.first_token_seconds)
    assert times.first_token_seconds + times.decode_seconds == pytest.approx(times.total_seconds)
    assert statistics.steps == len(model.sizes) == 2 + 11 and statistics.computed_tokens == sum(model.sizes) == 51
    assert (statistics.prompt_tokens, statistics.completion_tokens) == (40, 12)
    assert 0 < statistics.model_seconds < statistics.step_seconds and statistics.last_step_tokens == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_queue": 0}, "max_queue is 0; expected a whole number from 1"),
        ({"max_queue": None}, "max_queue is None"),
        ({"max_context": -1}, "max_context is -1"),
        ({"prefix_cache": 1}, "prefix_cache is 1; expected true or false"),
        ({"max_context": 129}, "max_context is 129 and the model was compiled for at most 128"),
        ({"max_step_tokens": 33}, "max_step_tokens is 33"),
        ({"max_sequences": 9}, "max_sequences is 9"),
        ({"max_sequences": 4, "max_step_tokens": 3}, "max_sequences is 4 and a step takes 3 tokens"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        engine(**settings)


def test_settings_lower_the_limits_of_the_model() -> None:
    model = HashModel()
    one = engine(model, max_step_tokens=5, max_sequences=2)
    run(one, *(Request(prompt(9, i), GREEDY) for i in range(4)))
    assert max(model.sizes) == 5
    assert engine(max_step_tokens=3).limits.sequences == 3
