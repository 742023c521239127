"""The engine in this process, as a Python program uses it.

    with Engine("folder/of/a/compiled/model") as engine:
        print(engine.chat("What is a prime number?", max_tokens=100))
        for delta in engine.stream("Once upon a time", temperature=0):
            print(delta.text, end="", flush=True)

A conversation is a text, taken as what the user says, or a list of dicts with `role` and `content`. Other keyword
arguments of all calls are the fields of `SamplingParams`. Calls may come from any thread, those that begin with an `a`
from any event loop; the engine answers them together. All raise the kinds of `RequestError`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlc.errors import InvalidRequest

from . import engine as core
from .load import load_engine, load_prompts
from .loop import EngineLoop
from .prompts import Prompts
from .request import FinishReason, Output, Request, Timings, TokenLogprobs, Usage
from .sampling import SamplingParams
from .settings import EngineSettings, Statistics
from .streams import Piece
from .tokenizer import Tokenizer

Conversation = str | Sequence[Mapping[str, Any]]
Text = str | Sequence[int]  # or its token ids

_SAMPLING = tuple(field.name for field in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to an answer."""

    text: str  # may lag behind the tokens: incomplete characters and stop strings are held back
    tokens: tuple[int, ...]  # the end token included
    logprobs: tuple[TokenLogprobs, ...] | None  # one per token, if asked for
    finish_reason: FinishReason | None  # with the last


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `str` of it is its text."""

    text: str
    tokens: tuple[int, ...]  # the end token included
    logprobs: tuple[TokenLogprobs, ...] | None  # one per token, if asked for
    finish_reason: FinishReason  # "stop": by the model or a stop string; "length": max_tokens, or the context is full
    usage: Usage
    timings: Timings

    def __str__(self) -> str:
        return self.text


class Engine:
    """A compiled model, ready to answer. It holds the model's memory until it is closed: use it in a `with`."""

    def __init__(
        self,
        artifact: str | Path,
        *,
        threads: int | None = None,
        max_context: int | None = None,
        kv_tokens: int | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        """`threads` compute (default: the cores that others leave free); a conversation has at most `max_context`
        tokens; the memory for all that run or are remembered holds `kv_tokens` tokens. Raises `ArtifactError` and its
        kinds.
        """
        folder = Path(artifact)
        tokenizer = Tokenizer.open(folder)
        self._begin(
            lambda: load_engine(
                folder,
                tokenizer=tokenizer,
                threads=threads,
                max_context=max_context,
                kv_tokens=kv_tokens,
                settings=settings,
            ),
            load_prompts(folder, tokenizer),
        )

    @classmethod
    def over(cls, make_engine: Callable[[], core.Engine], prompts: Prompts) -> Self:
        """An engine of any making; `make_engine` is called on the thread that will compute."""
        engine = cls.__new__(cls)
        engine._begin(make_engine, prompts)
        return engine

    def _begin(self, make_engine: Callable[[], core.Engine], prompts: Prompts) -> None:
        self._prompts = prompts
        self._loop = EngineLoop(make_engine)

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._loop.context

    @property
    def statistics(self) -> Statistics:
        """What the engine has counted."""
        return self._loop.statistics

    def tokenize(self, text: str) -> list[int]:
        """The token ids of `text`, as `complete` would send them to the model."""
        return self._prompts.text(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._prompts.tokenizer.decode(tokens)

    def chat(self, messages: Conversation, *, template: Mapping[str, Any] | None = None, **sampling: Any) -> Answer:
        """Answer a conversation. `template` has options of the chat template, such as `enable_thinking`."""
        return self._answers([self._turn(messages, template, sampling)])[0]

    async def achat(
        self, messages: Conversation, *, template: Mapping[str, Any] | None = None, **sampling: Any
    ) -> Answer:
        request = await asyncio.to_thread(self._turn, messages, template, sampling)
        return (await self._aanswers([request]))[0]

    def stream_chat(
        self, messages: Conversation, *, template: Mapping[str, Any] | None = None, **sampling: Any
    ) -> Generator[Delta, None, None]:
        """`chat`, piece by piece. It starts with the first `next`; closing the iterator cancels it."""
        with closing(self._pieces([self._turn(messages, template, sampling)])) as pieces:
            yield from map(_delta, pieces)

    async def astream_chat(
        self, messages: Conversation, *, template: Mapping[str, Any] | None = None, **sampling: Any
    ) -> AsyncGenerator[Delta, None]:
        request = await asyncio.to_thread(self._turn, messages, template, sampling)
        async with aclosing(self._apieces([request])) as pieces:
            async for piece in pieces:
                yield _delta(piece)

    def complete(self, prompt: Text, **sampling: Any) -> Answer:
        """Continue a text."""
        return self._answers([self._start(prompt, sampling)])[0]

    async def acomplete(self, prompt: Text, **sampling: Any) -> Answer:
        return (await self._aanswers([await asyncio.to_thread(self._start, prompt, sampling)]))[0]

    def stream(self, prompt: Text, **sampling: Any) -> Generator[Delta, None, None]:
        """`complete`, piece by piece. It starts with the first `next`; closing the iterator cancels it."""
        with closing(self._pieces([self._start(prompt, sampling)])) as pieces:
            yield from map(_delta, pieces)

    async def astream(self, prompt: Text, **sampling: Any) -> AsyncGenerator[Delta, None]:
        request = await asyncio.to_thread(self._start, prompt, sampling)
        async with aclosing(self._apieces([request])) as pieces:
            async for piece in pieces:
                yield _delta(piece)

    def batch(self, prompts: Sequence[str | Sequence[Mapping[str, Any]]], **sampling: Any) -> list[Answer]:
        """Many at once, answered in their order: texts are continued, lists of messages answered."""
        return self._answers(self._batch(prompts, sampling))

    async def abatch(self, prompts: Sequence[str | Sequence[Mapping[str, Any]]], **sampling: Any) -> list[Answer]:
        return await self._aanswers(await asyncio.to_thread(self._batch, prompts, sampling))

    def close(self) -> None:
        """Stop computing and give the memory back. Whoever still waits for an answer gets `EngineDead`."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _turn(self, messages: Conversation, template: Mapping[str, Any] | None, sampling: Mapping[str, Any]) -> Request:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return Request(self._prompts.chat(messages, template), self._params(sampling))

    def _start(self, prompt: Text, sampling: Mapping[str, Any]) -> Request:
        tokens = self._prompts.text(prompt) if isinstance(prompt, str) else prompt
        return Request(tokens, self._params(sampling), continues=True)

    def _batch(
        self, prompts: Sequence[str | Sequence[Mapping[str, Any]]], sampling: Mapping[str, Any]
    ) -> list[Request]:
        return [self._start(p, sampling) if isinstance(p, str) else self._turn(p, None, sampling) for p in prompts]

    def _params(self, sampling: Mapping[str, Any]) -> SamplingParams:
        for name in sampling:
            if name not in _SAMPLING:
                raise InvalidRequest(f"{name} is no sampling parameter; there are {', '.join(_SAMPLING)}", param=name)
        return SamplingParams(**{**self._prompts.defaults, **sampling})

    def _pieces(self, requests: Sequence[Request]) -> Generator[Piece, None, None]:
        event = threading.Event()
        stream = self._loop.open(requests, event.set)
        try:
            for pieces in stream.wait(event):
                yield from pieces
        finally:
            stream.close()

    async def _apieces(self, requests: Sequence[Request]) -> AsyncGenerator[Piece, None]:
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)

        stream = self._loop.open(requests, wake)
        try:
            async for pieces in stream.pieces(event):
                for piece in pieces:
                    yield piece
        finally:
            stream.close()

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        return _collect(self._pieces(requests), len(requests))

    async def _aanswers(self, requests: Sequence[Request]) -> list[Answer]:
        return _collect([piece async for piece in self._apieces(requests)], len(requests))


def _delta(piece: Piece) -> Delta:
    output = piece[1]
    return Delta(output.text, output.tokens, output.logprobs, output.finish_reason)


def _collect(pieces: Iterable[Piece], count: int) -> list[Answer]:
    """The answers that `pieces` make up, each of which has ended."""
    parts = [list[Output]() for _ in range(count)]
    for index, output in pieces:
        parts[index].append(output)
    return [_join(outputs) for outputs in parts]


def _join(outputs: Sequence[Output]) -> Answer:
    last = outputs[-1]
    assert last.finish_reason is not None and last.usage is not None and last.timings is not None
    return Answer(
        "".join(output.text for output in outputs),
        tuple(token for output in outputs for token in output.tokens),
        None if last.logprobs is None else tuple(told for output in outputs for told in output.logprobs or ()),
        last.finish_reason,
        last.usage,
        last.timings,
    )
