"""OpenAI's requests: their fields, what is refused, and what they mean to the engine. No I/O, no engine.

A field that OpenAI clients send and that changes nothing here (`user`, `store`, `metadata`, …) is accepted. One that
would change the answer and is not implemented is refused by name, never dropped. One that nobody knows is refused
with a guess at what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mlc.errors import InvalidRequest, RequestError, request_error

from ..sampling import SamplingParams
from .body import decode_body

COMPLETION_TOKENS = 16  # what OpenAI answers with at /v1/completions when max_tokens is not given

Text = str | list["Part"]
Prompt = str | list[str | int | list[int]]


class Part(msgspec.Struct, kw_only=True):
    """One piece of a message. Unknown fields of it are ignored: they go with the types that are refused."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: Text | None = None
    name: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    annotations: list[Any] | None = None


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted: there is nothing to obfuscate


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of both endpoints."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # accepted, and without effect here
    user: str | None = None
    metadata: Any = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(Common, kw_only=True, forbid_unknown_fields=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # the template refuses what it does not read
    parallel_tool_calls: bool | None = None  # accepted: without tools it has no effect
    tool_choice: Any = None
    # refused unless they ask for what happens anyway
    tools: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionRequest(Common, kw_only=True, forbid_unknown_fields=True):
    prompt: Prompt
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


# field → values, besides null, that ask for what happens anyway
_NOT_YET: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """`error` of the sampler or the engine, with the field as the client knows it: `names` has ours → theirs."""
    ours = error.param or ""
    theirs = ({"stop_ids": "stop_token_ids"} | dict(names)).get(ours, ours)
    if theirs == ours:
        return error
    text = str(error)
    return request_error(type(error).__name__, theirs + text[len(ours) :] if text.startswith(ours) else text, theirs)


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request, but for what only the tokenizer and the engine can check."""

    model: str | None
    params: SamplingParams
    n: int  # answers to each prompt
    stream: bool
    include_usage: bool
    echo: bool = False
    messages: tuple[dict[str, Any], ...] | None = None  # a chat, with the template's options
    template: Mapping[str, Any] | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()  # completions: texts, or token ids


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    choices: int = 16  # answers to one prompt (n)
    prompts: int = 64  # of one completion request, each of them times n


def parse_chat(body: bytes, limits: Limits, defaults: Mapping[str, Any]) -> Job:
    """The body of /v1/chat/completions. Raises `InvalidRequest`; `defaults` fill sampling fields left unset."""
    request = decode_body(body, ChatRequest)
    for field, harmless in _NOT_YET.items():
        value = getattr(request, field)
        if value is not None and value not in harmless:
            raise InvalidRequest(f"{field} is not supported yet; remove it", param=field)
    if not request.messages:
        raise InvalidRequest("messages is empty; expected at least one message", param="messages")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return Job(
        model=request.model,
        params=_params(request, defaults, _max_tokens(request), logprobs, "top_logprobs"),
        n=_choices(request, limits),
        stream=bool(request.stream),
        include_usage=_include_usage(request),
        messages=tuple(_message(message, i) for i, message in enumerate(request.messages)),
        template=request.chat_template_kwargs or {},
    )


def parse_completion(body: bytes, limits: Limits, defaults: Mapping[str, Any]) -> Job:
    """The body of /v1/completions. Raises `InvalidRequest`; `defaults` fill sampling fields left unset."""
    request = decode_body(body, CompletionRequest)
    if request.suffix:
        raise InvalidRequest("suffix is not supported yet; remove it", param="suffix")
    if request.best_of not in (None, request.n or 1):
        raise InvalidRequest(f"best_of is {request.best_of}; only the value of n is supported yet", param="best_of")
    if request.echo and request.logprobs is not None:
        raise InvalidRequest("echo with logprobs is not supported yet; ask for one of them", param="echo")
    max_tokens = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    prompts = _prompts(request.prompt)
    if len(prompts) > limits.prompts:
        raise InvalidRequest(f"prompt has {len(prompts)} prompts; expected at most {limits.prompts}", param="prompt")
    return Job(
        model=request.model,
        params=_params(request, defaults, max_tokens, request.logprobs, "logprobs"),
        n=_choices(request, limits),
        stream=bool(request.stream),
        include_usage=_include_usage(request),
        echo=bool(request.echo),
        prompts=prompts,
    )


def _message(message: Message, index: int) -> dict[str, Any]:
    """A message as chat templates read it: a role that all of them know, the content one text."""
    place = f"messages[{index}]"
    if message.role in ("tool", "function") or message.tool_calls or message.function_call or message.tool_call_id:
        raise InvalidRequest(f"{place}: tool calls are not supported yet", param=f"{place}.role")
    if message.role not in _ROLES:
        known = ", ".join(_ROLES)
        raise InvalidRequest(f"{place}.role is {message.role[:40]!r}; expected one of {known}", param=f"{place}.role")
    if message.audio is not None:
        raise InvalidRequest(f"{place}: audio is not supported yet", param=f"{place}.audio")
    if message.content is None:
        raise InvalidRequest(f"{place}.content is missing; expected a string", param=f"{place}.content")
    rendered = {"role": _ROLES[message.role], "content": _text(message.content, f"{place}.content")}
    for field in ("name", "reasoning_content"):
        if (value := getattr(message, field)) is not None:
            rendered[field] = value
    return rendered


def _text(content: Text, place: str) -> str:
    if isinstance(content, str):
        return content
    if not content:
        raise InvalidRequest(f"{place} is an empty list; expected text parts", param=place)
    for i, part in enumerate(content):
        if part.type != "text":
            raise InvalidRequest(
                f"{place}[{i}].type is {part.type[:40]!r}; only 'text' is supported yet", param=f"{place}[{i}].type"
            )
        if part.text is None:
            raise InvalidRequest(f"{place}[{i}].text is missing; expected a string", param=f"{place}[{i}].text")
    return "\n".join(part.text for part in content if part.text is not None)


def _prompts(prompt: Prompt) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise InvalidRequest("prompt is an empty list; expected texts or token ids", param="prompt")
    texts = tuple(item for item in prompt if isinstance(item, str))
    ids = tuple(item for item in prompt if isinstance(item, int))
    lists = tuple(tuple(item) for item in prompt if isinstance(item, list))
    if len(prompt) not in (len(texts), len(ids), len(lists)):
        raise InvalidRequest("prompt mixes texts and token ids; expected all of one kind", param="prompt")
    tokenized = (ids,) if ids else lists
    for tokens in tokenized:
        if not tokens:
            raise InvalidRequest("prompt holds an empty list; expected token ids", param="prompt")
        if min(tokens) < 0:
            raise InvalidRequest(f"prompt holds token id {min(tokens)}; expected ids from 0", param="prompt")
    return texts or tokenized


def _params(
    request: Common, defaults: Mapping[str, Any], max_tokens: int | None, logprobs: int | None, logprobs_field: str
) -> SamplingParams:
    """What the request leaves unset comes from `defaults`, then from `SamplingParams`."""
    given: dict[str, Any] = dict(defaults)
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    for name in (*names, "top_k", "seed", "stop", "min_tokens", "ignore_eos"):
        if (value := getattr(request, name)) is not None:
            given[name] = value
    if given.get("top_k") == -1:  # how some clients say "all"
        given["top_k"] = 0
    if request.logit_bias is not None:
        given["logit_bias"] = _biases(request.logit_bias)
    given |= {"max_tokens": max_tokens, "logprobs": logprobs, "stop_ids": request.stop_token_ids or ()}
    try:
        return SamplingParams(**given)
    except InvalidRequest as error:
        raise renamed(error, {"logprobs": logprobs_field}) from None


def _biases(biases: Mapping[str, float]) -> dict[int, float]:
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise InvalidRequest(f"logit_bias has the key {token[:40]!r}; expected token ids", param="logit_bias")
    return {int(token): bias for token, bias in biases.items()}


def _max_tokens(request: ChatRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_tokens is {old} and max_completion_tokens is {new}; send one of them", param="max_tokens"
        )
    return old if new is None else new


def _choices(request: Common, limits: Limits) -> int:
    n = 1 if request.n is None else request.n
    if not 1 <= n <= limits.choices:
        raise InvalidRequest(f"n is {n}; expected 1 to {limits.choices}", param="n")
    return n


def _include_usage(request: Common) -> bool:
    if request.stream_options is None:
        return False
    if not request.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    return bool(request.stream_options.include_usage)
