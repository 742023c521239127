"""What a request may ask of the sampler. Checked here, once, before anything is queued."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np

from mlc.errors import InvalidRequest

GREEDY_BELOW = 1e-7  # a temperature under this takes the most probable token
MAX_LOGPROBS = 20  # alternatives reported per token
MAX_STOPS = 16  # stop strings, and stop ids
MAX_STOP_LENGTH = 1024  # characters of one stop string
MAX_BIASES = 1024  # entries of logit_bias
_TOKEN_IDS = 2**31  # ids are int32 on the device


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose each next token. Defaults are OpenAI's. Raises `InvalidRequest`, naming the field.

    The logits of one position pass, in this order, through: repetition_penalty, frequency_penalty and
    presence_penalty, logit_bias, the ban of stop ids (min_tokens), temperature, top_k, top_p, min_p. Each of the last
    three sees the distribution that the one before it left, renormalized, as in transformers.
    """

    temperature: float = 1.0  # 0 to 100; below 1e-7 the most probable token is taken (greedy)
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    top_p: float = 1.0  # keep the fewest most probable tokens whose mass reaches this, at least one; 1 keeps all
    min_p: float = 0.0  # keep tokens at least this fraction as probable as the most probable one
    repetition_penalty: float = 1.0  # 0.01 to 10; on tokens of the prompt and of the answer: > 1 makes them rarer
    presence_penalty: float = 0.0  # -2 to 2; subtracted once from tokens that the answer holds
    frequency_penalty: float = 0.0  # -2 to 2; subtracted for each time that the answer holds the token
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])  # token id → -100 to 100, added
    seed: int | None = None  # 64 bits; None: the engine draws one, so that repeats differ
    max_tokens: int | None = None  # tokens of the answer; None: to the end of the context
    min_tokens: int = 0  # stop ids are impossible, and stop strings unseen, before the answer has this many tokens
    stop: Sequence[str] = ()  # the answer ends before the first of these (a lone string counts as one)
    stop_ids: Sequence[int] = ()  # the answer ends with the first of these, besides the model's own end tokens
    ignore_eos: bool = False  # the model's own end tokens do not end the answer
    logprobs: int | None = None  # None: none; n: the chosen token's, and those of the n most probable, at most 20

    def __post_init__(self) -> None:
        _real(self, "temperature", 0.0, 100.0)
        _whole(self, "top_k", 0, _TOKEN_IDS - 1)
        _real(self, "top_p", 0.0, 1.0)
        _real(self, "min_p", 0.0, 1.0)
        _real(self, "repetition_penalty", 0.01, 10.0)
        _real(self, "presence_penalty", -2.0, 2.0)
        _real(self, "frequency_penalty", -2.0, 2.0)
        if self.seed is not None:
            _whole(self, "seed", -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _whole(self, "max_tokens", 1, _TOKEN_IDS - 1)
        _whole(self, "min_tokens", 0, _TOKEN_IDS - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _bad("min_tokens", self.min_tokens, f"at most max_tokens, {self.max_tokens}")
        if self.logprobs is not None:
            _whole(self, "logprobs", 0, MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise _bad("ignore_eos", self.ignore_eos, "true or false")
        _set(self, "stop", _stop_strings(self.stop))
        _set(self, "stop_ids", _stop_ids(self.stop_ids))
        _set(self, "logit_bias", _biases(self.logit_bias))

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, whatever the seed."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1 or self.top_p == 0.0

    def check_vocab(self, vocab: int) -> None:
        """Raise `InvalidRequest` if a field names a token id that a model of `vocab` tokens does not have."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_ids", self.stop_ids)):
            for token in ids:
                if token >= vocab:
                    raise _bad(name, token, f"token ids below {vocab}, the size of the vocabulary")


def _bad(name: str, value: object, expected: str) -> InvalidRequest:
    shown = repr(value)
    return InvalidRequest(f"{name} is {shown[:60]}{'…' * (len(shown) > 60)}; expected {expected}", param=name)


def _set(params: SamplingParams, name: str, value: object) -> None:
    object.__setattr__(params, name, value)  # the dataclass is frozen once it is built; this is the building


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_) and low <= int(value) <= high


def _is_real(value: object, low: float, high: float) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return math.isfinite(number) and low <= number <= high


def _whole(params: SamplingParams, name: str, low: int, high: int) -> None:
    value = getattr(params, name)
    if not _is_whole(value, low, high):
        raise _bad(name, value, f"a whole number from {low} to {high}")
    _set(params, name, int(value))


def _real(params: SamplingParams, name: str, low: float, high: float) -> None:
    value = getattr(params, name)
    if not _is_real(value, low, high):
        raise _bad(name, value, f"a finite number from {low:g} to {high:g}")
    _set(params, name, float(value))


def _stop_strings(value: object) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        raise _bad("stop", value, f"a string or a list of at most {MAX_STOPS} strings")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise _bad("stop", stop, f"strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(stops)


def _stop_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_STOPS:
        raise _bad("stop_ids", value, f"a list of at most {MAX_STOPS} token ids")
    for token in value:
        if not _is_whole(token, 0, _TOKEN_IDS - 1):
            raise _bad("stop_ids", token, "token ids, whole numbers from 0")
    return tuple(int(token) for token in value)


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        raise _bad("logit_bias", value, f"an object of at most {MAX_BIASES} token ids and biases")
    for token, bias in value.items():
        if not _is_whole(token, 0, _TOKEN_IDS - 1):
            raise _bad("logit_bias", token, "token ids, whole numbers from 0")
        if not _is_real(bias, -100.0, 100.0):
            raise _bad("logit_bias", bias, "finite biases from -100 to 100")
    return {int(token): float(bias) for token, bias in value.items()}
