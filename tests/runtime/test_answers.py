"""From tokens to text, and when an answer ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc.runtime.batch import Batch
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from tests.runtime.conftest import (
    EOS,
    GREEDY,
    HashModel,
    engine,
    prompt,
    run,
)


def forced(text: bytes | list[int], **params: Any) -> tuple[Engine, Request]:
    """An engine whose model answers `text` to the prompt, whatever else it would say."""
    model, answer = HashModel(), [*text]

    def force(batch: Batch, logits: NDArray[np.float32]) -> None:
        for r, row in enumerate(batch.rows.tolist()):
            logits[r, answer[int(batch.positions[row]) - 2]] = 100.0

    model.fails = force
    return engine(model), Request(prompt(3), SamplingParams(temperature=0, **params), id="r")


def test_an_end_token_ends_the_answer_and_is_counted_but_not_shown() -> None:
    one, request = forced([*b"Hi.", EOS])
    collected = run(one, request)
    last = collected.last("r")
    assert (collected.text("r"), collected.tokens("r")) == ("Hi.", [*b"Hi.", EOS])
    assert (last.finish_reason, last.stop) == ("stop", EOS)
    assert last.usage is not None and last.usage.completion_tokens == 4


def test_an_ignored_end_token_ends_nothing() -> None:
    one, request = forced([*b"Hi", EOS, *b"you!"], ignore_eos=True, max_tokens=6)
    collected = run(one, request)
    assert collected.text("r") == "Hiyou" and collected.last("r").finish_reason == "length"


def test_a_stop_id_ends_the_answer() -> None:
    one, request = forced(b"Hi.", stop_ids=[ord(".")])
    collected = run(one, request)
    assert collected.text("r") == "Hi" and collected.last("r").stop == ord(".")


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    one, request = forced(b"one <en<end> two", stop=["<end>", "never"])
    collected = run(one, request)
    assert (collected.text("r"), collected.last("r").stop) == ("one <en", "<end>")
    assert collected.last("r").finish_reason == "stop"


def test_what_was_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    one, request = forced(b"one <en", stop=["<end>"], max_tokens=7)
    assert run(one, request).text("r") == "one <en"
    one, request = forced([*b"one <en", EOS], stop=["<end>"])
    assert run(one, request).text("r") == "one <en"


def test_stop_strings_are_unseen_before_the_least_number_of_tokens() -> None:
    one, request = forced(b"a.b.c.", stop=["."], min_tokens=3)
    assert run(one, request).text("r") == "a.b"


def test_characters_are_whole_when_they_are_shown() -> None:
    one, request = forced("né😀x".encode(), max_tokens=8)
    collected = run(one, request)
    assert [output.text for output in collected.outputs["r", 0]] == ["n", "", "é", "", "", "", "😀", "x"]
    one, request = forced("😀".encode(), max_tokens=2)
    assert run(one, request).text("r") == "\ufffd"


def test_an_answer_that_reaches_the_end_of_the_context_ends_with_length() -> None:
    for one, limit in ((engine(), 128), (engine(max_context=30), 30), (engine(HashModel(6)), 24)):
        collected = run(one, Request(prompt(20), replace(GREEDY, max_tokens=None), id="r"))
        assert collected.last("r").finish_reason == "length" and len(collected.tokens("r")) == limit - 20


def test_log_probabilities_come_with_each_token() -> None:
    collected = run(engine(), Request(prompt(9), replace(GREEDY, max_tokens=3, logprobs=2), id="r"))
    for output in collected.outputs["r", 0]:
        assert output.logprobs is not None and len(output.logprobs) == len(output.tokens) == 1
        assert output.logprobs[0].top[0] == (output.tokens[0], output.logprobs[0].logprob)
