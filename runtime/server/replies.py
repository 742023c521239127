"""OpenAI's response bodies: structs that encode to them, in their order of fields. No I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from mlc.errors import RequestError


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]  # characters


class PromptDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatMessage(msgspec.Struct):
    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class TextChoice(msgspec.Struct):
    """Of a completion, and of a chunk of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str


class Chunk(msgspec.Struct):
    """A piece of a stream, of either kind. `usage` is null until the last, and absent unless asked for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice] | list[TextChoice]
    system_fingerprint: str
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class Model(msgspec.Struct):
    id: str
    created: int
    context_length: int  # tokens; not in OpenAI's, and what clients most often ask for
    object: str = "model"
    owned_by: str = "mlc"


class ModelList(msgspec.Struct):
    data: list[Model]
    object: str = "list"


def error_body(error: RequestError) -> dict[str, Any]:
    """The body that OpenAI clients raise from."""
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}
