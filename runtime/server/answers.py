"""From what the engine adds to each choice to OpenAI's bodies and chunks. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..request import TokenLogprobs
from ..streams import Piece
from .replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Chunk,
    Completion,
    CompletionLogprobs,
    Delta,
    PromptDetails,
    TextChoice,
    TokenLogprob,
    TopLogprob,
    Usage,
)

LEAST_LOGPROB = -9999.0  # what OpenAI says for impossible tokens: JSON has no -inf


@dataclass(frozen=True, slots=True)
class Head:
    """What every body and chunk of one request repeats."""

    id: str
    created: int  # seconds since 1970
    model: str
    fingerprint: str


@dataclass(slots=True)
class Growth:
    """What some pieces add to one choice."""

    texts: list[str] = field(default_factory=list[str])
    tokens: list[tuple[int, TokenLogprobs]] = field(default_factory=list[tuple[int, TokenLogprobs]])
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Answers(ABC):
    """All choices of one request: `n` for each prompt, numbered through. `token_bytes` spells a token."""

    def __init__(
        self,
        head: Head,
        *,
        n: int,
        prompt_tokens: Sequence[int],  # of each prompt
        token_bytes: Callable[[int], bytes],
        logprobs: bool,
        include_usage: bool,
    ) -> None:
        self.head, self.n, self.choices = head, n, n * len(prompt_tokens)
        self.logprobs = logprobs
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.prompt_tokens = sum(prompt_tokens)
        self._token_bytes = token_bytes
        self._include_usage = include_usage

    @abstractmethod
    def opening(self) -> list[Chunk]:
        """Chunks that come before the first token."""

    @abstractmethod
    def whole(self, pieces: Iterable[Piece]) -> ChatCompletion | Completion:
        """The body of an answer that is not streamed, from all pieces."""

    @abstractmethod
    def _chunk_choice(self, index: int, growth: Growth) -> ChatChunkChoice | TextChoice: ...

    def chunks(self, pieces: Iterable[Piece]) -> list[Chunk]:
        """One chunk for each choice that grew, however many pieces it grew by."""
        grown = self._grow(pieces)
        return [
            self._chunk([self._chunk_choice(index, growth)])
            for index, growth in grown.items()
            if growth.finish_reason is not None or growth.tokens or growth.text
        ]

    def closing(self) -> list[Chunk]:
        """Chunks that come after the last token."""
        if not self._include_usage:
            return []
        chunk = self._chunk([])
        chunk.usage = self.usage()
        return [chunk]

    def usage(self) -> Usage:
        total = self.prompt_tokens + self.completion_tokens
        return Usage(self.prompt_tokens, self.completion_tokens, total, PromptDetails(self.cached_tokens))

    def _grow(self, pieces: Iterable[Piece]) -> dict[int, Growth]:
        grown: dict[int, Growth] = {}
        for index, output in pieces:
            growth = grown.setdefault(index, Growth())
            growth.texts.append(output.text)
            if output.logprobs is not None:
                told = list(zip(output.tokens, output.logprobs, strict=True))
                growth.tokens += told[:-1] if isinstance(output.stop, int) else told  # an end token shows no text
            if output.finish_reason is not None:
                growth.finish_reason = output.finish_reason
                assert output.usage is not None
                self.completion_tokens += output.usage.completion_tokens
                if index % self.n == 0:  # the other choices share the pages of this one's prompt
                    self.cached_tokens += output.usage.cached_tokens
        return grown

    def _chunk(self, choices: list[ChatChunkChoice] | list[TextChoice] | list[ChatChunkChoice | TextChoice]) -> Chunk:
        head = self.head
        chunk = Chunk(head.id, self._object, head.created, head.model, choices, head.fingerprint)  # type: ignore[arg-type]
        if self._include_usage:
            chunk.usage = None
        return chunk

    @property
    @abstractmethod
    def _object(self) -> str: ...

    def _spell(self, token: int) -> str:
        return self._token_bytes(token).decode("utf-8", "replace")


class ChatAnswers(Answers):
    @property
    def _object(self) -> str:
        return "chat.completion.chunk"

    def opening(self) -> list[Chunk]:
        delta = Delta(role="assistant", content="")
        return [self._chunk([ChatChunkChoice(index, delta, None, None)]) for index in range(self.choices)]

    def whole(self, pieces: Iterable[Piece]) -> ChatCompletion:
        grown = self._grow(pieces)
        choices = [
            ChatChoice(
                index, ChatMessage("assistant", growth.text), self._logprobs(growth), growth.finish_reason or "stop"
            )
            for index, growth in sorted(grown.items())
        ]
        head = self.head
        return ChatCompletion(
            head.id, "chat.completion", head.created, head.model, choices, self.usage(), head.fingerprint
        )

    def _chunk_choice(self, index: int, growth: Growth) -> ChatChunkChoice:
        delta = Delta(content=growth.text) if growth.text or growth.tokens else Delta()
        return ChatChunkChoice(index, delta, self._logprobs(growth), growth.finish_reason)

    def _logprobs(self, growth: Growth) -> ChatLogprobs | None:
        if not self.logprobs:
            return None
        content = list[TokenLogprob]()
        for token, told in growth.tokens:
            top = [TopLogprob(self._spell(t), _clamp(logprob), list(self._token_bytes(t))) for t, logprob in told.top]
            content.append(TokenLogprob(self._spell(token), _clamp(told.logprob), list(self._token_bytes(token)), top))
        return ChatLogprobs(content)


class TextAnswers(Answers):
    """Completions; `echo` has the text of each prompt if answers begin with it."""

    def __init__(
        self,
        head: Head,
        *,
        n: int,
        prompt_tokens: Sequence[int],
        token_bytes: Callable[[int], bytes],
        logprobs: bool,
        include_usage: bool,
        echo: Sequence[str] = (),
    ) -> None:
        super().__init__(
            head,
            n=n,
            prompt_tokens=prompt_tokens,
            token_bytes=token_bytes,
            logprobs=logprobs,
            include_usage=include_usage,
        )
        self._echo = echo
        self._offsets = [0] * self.choices  # characters told with logprobs so far

    @property
    def _object(self) -> str:
        return "text_completion"

    def opening(self) -> list[Chunk]:
        if not self._echo:
            return []
        return [self._chunk([TextChoice(index, self._prompt(index), None, None)]) for index in range(self.choices)]

    def whole(self, pieces: Iterable[Piece]) -> Completion:
        choices = [self._chunk_choice(index, growth) for index, growth in sorted(self._grow(pieces).items())]
        for choice in choices:
            choice.text = self._prompt(choice.index) + choice.text
        head = self.head
        return Completion(head.id, self._object, head.created, head.model, choices, self.usage(), head.fingerprint)

    def _chunk_choice(self, index: int, growth: Growth) -> TextChoice:
        return TextChoice(index, growth.text, self._logprobs(index, growth), growth.finish_reason)

    def _prompt(self, index: int) -> str:
        return self._echo[index // self.n] if self._echo else ""

    def _logprobs(self, index: int, growth: Growth) -> CompletionLogprobs | None:
        if not self.logprobs:
            return None
        told = CompletionLogprobs([], [], [], [])
        for token, logprobs in growth.tokens:
            spelt = self._spell(token)
            told.tokens.append(spelt)
            told.token_logprobs.append(_clamp(logprobs.logprob))
            told.top_logprobs.append({self._spell(t): _clamp(logprob) for t, logprob in logprobs.top})
            told.text_offset.append(self._offsets[index])
            self._offsets[index] += len(spelt)
        return told


def _clamp(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
