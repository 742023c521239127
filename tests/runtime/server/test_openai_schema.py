"""Requests of OpenAI's API without a server: what they mean, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.errors import InvalidRequest
from mlc.runtime.server.openai import ChatRequest, CompletionRequest, Job, Limits, parse_chat, parse_completion

HI = {"role": "user", "content": "Hi"}


def chat(**fields: Any) -> Job:
    return parse_chat(json.dumps({"messages": [HI]} | fields).encode(), Limits(), {})


def complete(**fields: Any) -> Job:
    return parse_completion(json.dumps({"prompt": "Hi"} | fields).encode(), Limits(), {})


def test_a_request_with_every_field_means_what_it_says() -> None:
    job = chat(
        model="m",
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={"5": -100},
        seed=-(2**63),
        max_completion_tokens=7,
        stop=["a", "b"],
        stop_token_ids=[3],
        ignore_eos=True,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=4,
        chat_template_kwargs={"enable_thinking": False},
    )
    params = job.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 0, 0.1)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, -1, 2)
    assert (params.logit_bias, params.seed, params.max_tokens) == ({5: -100}, -(2**63), 7)
    assert (params.stop, params.stop_ids, params.ignore_eos, params.logprobs) == (("a", "b"), (3,), True, 4)
    assert (job.model, job.n, job.stream, job.include_usage) == ("m", 2, True, True)
    assert job.template == {"enable_thinking": False} and job.messages == ({"role": "user", "content": "Hi"},)


def test_what_a_request_leaves_unset_or_null_comes_from_the_model_and_then_from_the_sampler() -> None:
    body = json.dumps({"messages": [HI], "temperature": None, "top_p": 0.3, "n": None, "stop": None}).encode()
    params = parse_chat(body, Limits(), {"temperature": 0.6, "top_p": 0.9, "top_k": 20}).params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.3, 20, 0)
    assert params.max_tokens is None and params.logprobs is None
    assert complete().params.max_tokens == 16, "OpenAI's default"
    assert complete(logprobs=0).params.logprobs == 0, "the chosen token's only, which is not the same as none"


def test_fields_that_change_nothing_are_accepted() -> None:
    chat(user="u", store=True, metadata={"a": "b"}, service_tier="auto", parallel_tool_calls=False)
    chat(tools=[], tool_choice="none", response_format={"type": "text"}, modalities=["text"], prompt_cache_key="k")
    complete(best_of=1, suffix=None, user="u")


def test_messages_become_what_templates_know() -> None:
    job = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Eve"},
            {"role": "assistant", "content": "c", "refusal": None, "annotations": [], "tool_calls": None},
        ]
    )
    assert job.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb", "name": "Eve"},
        {"role": "assistant", "content": "c"},
    )


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_or_a_list_of_either(prompt: Any, prompts: Any) -> None:
    assert complete(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"tempratur": 1}, "tempratur"),
    ],
)
def test_bad_values_are_refused_by_the_name_of_their_field_at_both_endpoints(
    fields: dict[str, Any], param: str
) -> None:
    for request in (chat, complete):
        with pytest.raises(InvalidRequest) as refusal:
            request(**fields)
        assert refusal.value.param == param and param.partition("[")[0] in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0]"),
        ({"messages": [HI, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"chat_template_kwargs": ["enable_thinking"]}, "chat_template_kwargs"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_bad_chats_are_refused_by_the_name_of_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat(**fields)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x", "format": "wav"}},
        {"functions": [{"name": "f"}]},
        {"reasoning_effort": "high"},
        {"web_search_options": {}},
        {"prediction": {"type": "content", "content": "x"}},
    ],
)
def test_what_would_change_the_answer_and_is_not_there_yet_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="not supported yet") as refusal:
        chat(**fields)
    assert refusal.value.param in fields


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    ],
)
def test_media_and_tool_calls_in_messages_are_refused_for_now(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="supported yet"):
        chat(messages=[message])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [HI]}, "messages"),
    ],
)
def test_bad_completions_are_refused_by_the_name_of_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        complete(**fields)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"null",
        b"{} x",
        b"\xef\xbb\xbf{}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 6000 + b"}",
        b'{"prompt": "a", "metadata": ' + b"9" * 6000 + b"}",
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}',
        b'{"prompt": "a", "metadata": {"x": 1, "x": 2}}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"prompt": "a", "what": ' + b"[" * 100_000,
    ],
)
def test_a_body_that_parsers_may_disagree_on_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_completion(body, Limits(), {})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from([*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__, "unknown"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_FIELDS, _JSON, max_size=4), st.booleans())
def test_any_json_is_either_a_job_or_refused(fields: dict[str, Any], chatting: bool) -> None:
    try:
        job = chat(**fields) if chatting else complete(**fields)
    except InvalidRequest:
        return
    assert 1 <= job.n <= 16 and (job.messages or job.prompts)
