"""From messages and texts to token ids: chat template and tokenizer. Slow for long texts: keep it off event loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlc.errors import InvalidRequest


class Tokenizer(Protocol):
    """What prompts need of a tokenizer, besides what the engine needs."""

    def encode(self, text: str, /) -> list[int]: ...
    def encode_chat(self, text: str, /) -> list[int]: ...
    def decode(self, tokens: Sequence[int], /) -> str: ...
    def token_bytes(self, token: int, /) -> bytes: ...


class Template(Protocol):
    """A chat template."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Prompts:
    """One model's way from text to tokens. Thread-safe."""

    tokenizer: Tokenizer
    template: Template | None  # None: the model is no chat model
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])  # fields of SamplingParams that it prefers

    def text(self, text: str) -> list[int]:
        """The tokens of a text to be continued."""
        return self.tokenizer.encode(text)

    def chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> list[int]:
        """The tokens of a conversation to be answered. Raises `InvalidRequest`; `options` go to the template."""
        if self.template is None:
            raise InvalidRequest(
                "this model has no chat template, so it cannot chat; send a prompt to /v1/completions", param="messages"
            )
        return self.tokenizer.encode_chat(self.template.render(messages, kwargs=options or {}))
