"""Bodies and chunks of OpenAI's API without a server; the shapes are judged by the `openai` client's own types."""

from __future__ import annotations

import json
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_choice import Logprobs as CompletionLogprobs

from mlc.errors import InvalidRequest, Overloaded
from mlc.runtime.request import Output, Timings, TokenLogprobs, Usage
from mlc.runtime.server import sse
from mlc.runtime.server.answers import ChatAnswers, Head, TextAnswers
from mlc.runtime.server.replies import error_body

HEAD = Head("id-1", 1_700_000_000, "toy", "fp")
TIMINGS = Timings(0.1, 0.1, 0.2, 0.3, 0.5)


def answers(kind: Any = ChatAnswers, **options: Any) -> Any:
    defaults = {"n": 1, "prompt_tokens": [3], "token_bytes": lambda t: bytes([t]), "logprobs": False}
    return kind(HEAD, **(defaults | {"include_usage": False} | options))


def step(text: str, token: int = 97, choice: int = 0, **more: Any) -> tuple[int, Output]:
    return choice, Output("1", choice, text, (token,), more.pop("logprobs", None), **more)


def last(text: str, choice: int = 0, reason: Any = "stop", tokens: int = 2, **more: Any) -> tuple[int, Output]:
    usage = Usage(3, tokens, 1)
    return step(text, choice=choice, finish_reason=reason, usage=usage, timings=TIMINGS, **more)


def as_json(body: Any) -> Any:
    event = sse.event(body)
    assert event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2
    return json.loads(event[6:])


def told(logprob: float, *top: tuple[int, float]) -> tuple[TokenLogprobs, ...]:
    return (TokenLogprobs(logprob, top),)


def test_a_chat_answer_is_what_the_client_expects() -> None:
    pieces = [step("H"), step("o", choice=1), last("i"), last("x", choice=1, reason="length")]
    body = ChatCompletion.model_validate(as_json(answers(n=2).whole(pieces)), strict=True)
    assert [(c.index, c.message.content, c.finish_reason) for c in body.choices] == [
        (0, "Hi", "stop"),
        (1, "ox", "length"),
    ]
    assert body.choices[0].message.role == "assistant" and body.choices[0].logprobs is None
    assert body.usage is not None and body.usage.prompt_tokens_details is not None
    assert (body.usage.prompt_tokens, body.usage.completion_tokens, body.usage.total_tokens) == (3, 4, 7)
    assert body.usage.prompt_tokens_details.cached_tokens == 1, "the prompt is one, however many answers it has"
    assert (body.id, body.object, body.created, body.model) == ("id-1", "chat.completion", 1_700_000_000, "toy")


def test_a_streamed_chat_opens_with_the_role_and_closes_with_the_usage() -> None:
    made = answers(include_usage=True)
    chunks = made.opening() + made.chunks([step("H")]) + made.chunks([last("i")]) + made.closing()
    parsed = [ChatCompletionChunk.model_validate(as_json(chunk), strict=True) for chunk in chunks]
    assert [[(c.delta.role, c.delta.content, c.finish_reason) for c in chunk.choices] for chunk in parsed] == [
        [("assistant", "", None)],
        [(None, "H", None)],
        [(None, "i", "stop")],
        [],
    ]
    assert [chunk.usage is not None for chunk in parsed] == [False, False, False, True]
    assert all(as_json(chunk)["usage"] is None for chunk in chunks[:-1])
    assert answers().closing() == [] and "usage" not in as_json(answers().opening()[0])


def test_a_reader_that_lags_behind_gets_one_chunk_for_many_steps_and_none_for_no_text() -> None:
    made = answers()
    assert [as_json(c)["choices"][0]["delta"] for c in made.chunks([step("a"), step("b"), step("c")])] == [
        {"content": "abc"}
    ]
    assert made.chunks([step("")]) == []


def test_logprobs_of_a_chat_spell_each_token_but_the_one_that_ends_it() -> None:
    pieces = [
        step("", 0xC3, logprobs=told(-0.5, (0xC3, -0.5), (98, -9.0))),
        step("é", 0xA9, logprobs=told(-float("inf"))),
        last("", logprobs=told(-1.0), stop=97),
    ]
    body = ChatCompletion.model_validate(as_json(answers(logprobs=True).whole(pieces)), strict=True)
    logprobs = body.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("\ufffd", [0xC3], -0.5)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("\ufffd", -0.5), ("b", -9.0)]
    assert (second.logprob, second.bytes) == (-9999.0, [0xA9]), "JSON has no -inf"
    assert bytes((first.bytes or []) + (second.bytes or [])).decode() == "é" == body.choices[0].message.content


def test_a_completion_answers_each_prompt_n_times_after_its_echo() -> None:
    made = answers(TextAnswers, n=2, prompt_tokens=[3, 3], echo=["P", "Q"])
    pieces = [last(text, choice=i) for i, text in enumerate("abcd")]
    body = Completion.model_validate(as_json(made.whole(pieces)), strict=True)
    assert [(c.index, c.text) for c in body.choices] == [(0, "Pa"), (1, "Pb"), (2, "Qc"), (3, "Qd")]
    assert body.usage == CompletionUsage.model_validate(
        {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 2}}
    )
    assert [as_json(c)["choices"][0]["text"] for c in made.opening()] == ["P", "P", "Q", "Q"]


def test_logprobs_of_a_completion_keep_their_offsets_through_a_stream() -> None:
    made = answers(TextAnswers, logprobs=True)
    offsets = []
    for piece in (
        step("a", logprobs=told(-1.0, (97, -1.0))),
        step("b", 98, logprobs=told(-2.0)),
        last("", reason="length", logprobs=told(-3.0)),
    ):
        for chunk in made.chunks([piece]):
            logprobs = CompletionLogprobs.model_validate(as_json(chunk)["choices"][0]["logprobs"], strict=True)
            offsets.append((logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset))
    assert offsets == [(["a"], [-1.0], [0]), (["b"], [-2.0], [1]), (["a"], [-3.0], [2])]


def test_an_event_stays_one_event_whatever_the_text_holds() -> None:
    text = "a\nb\r\n\ndata: [DONE]\u2028\x00"
    assert as_json({"text": text}) == {"text": text}


def test_an_error_has_openais_form() -> None:
    assert error_body(InvalidRequest("no", param="n")) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": None}
    }
    assert error_body(Overloaded("full"))["error"]["type"] == "rate_limit_error"
