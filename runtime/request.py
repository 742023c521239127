"""What goes into the engine and what comes out: plain data, fit to cross a process boundary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]


class StreamDecoder(Protocol):
    """Turns the tokens of one answer into text, and holds back bytes that are not a whole character yet."""

    def push(self, tokens: Sequence[int], /) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> Collection[int]: ...  # tokens by which the model ends an answer
    def encode(self, text: str, /) -> list[int]: ...
    def stream_decoder(self, *, continues: bool = False) -> StreamDecoder: ...  # `continues`: the text goes on


@dataclass(frozen=True, slots=True)
class Request:
    """`n` independent answers to one prompt."""

    tokens: Sequence[int] | NDArray[np.integer]  # the prompt
    params: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1  # choices; each derives its own random numbers from the seed
    salt: str = ""  # prompts share cached pages only with those of equal salt (tenant, adapter)
    continues: bool = False  # the answer goes on with the prompt's text, so a leading blank belongs to it
    id: str | None = None  # unique among the requests under way; None: the engine makes one up


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one choice."""

    prompt_tokens: int
    completion_tokens: int  # the end token included
    cached_tokens: int  # of the prompt, taken from the prefix cache


class Timings(msgspec.Struct, frozen=True):
    """Seconds of one choice. None: it ended before."""

    queue_seconds: float  # from the submission to the first step that it took part in, or to its end
    prefill_seconds: float | None  # from there to its first token
    first_token_seconds: float | None  # from the submission to its first token
    decode_seconds: float | None  # from the first token to the last
    total_seconds: float  # from the submission to the end


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural log-probabilities in the model's own distribution, before penalties, temperature and filters."""

    logprob: float  # of the chosen token
    top: tuple[tuple[int, float], ...]  # (token id, log-probability) of the most probable tokens, descending


class Output(msgspec.Struct, frozen=True):
    """What one step added to one choice. Each choice ends with exactly one that has a `finish_reason`."""

    request: str
    choice: int  # from 0
    text: str  # may lag behind the tokens: stop strings and incomplete characters are held back
    tokens: tuple[int, ...]  # the end token included, whose text is not shown
    logprobs: tuple[TokenLogprobs, ...] | None  # one per token; None unless asked for
    finish_reason: FinishReason | None = None
    stop: str | int | None = None  # the stop string or token id that ended the answer
    error: str | None = None  # safe to show to the sender
    usage: Usage | None = None  # with the finish_reason
    timings: Timings | None = None  # with the finish_reason
