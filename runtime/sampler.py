"""From logits to tokens, in numpy: exact, and the same alone as in a batch, since each row is treated by itself.

What makes a vocabulary of 150,000 fast: nothing is sorted but a short head of the most probable tokens, found through
the maxima of 64-token blocks; the rest takes part as one sum.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlc.errors import GenerationFailed

from .batch import Logits
from .sampling import SamplingParams
from .sequence import Int32s

_BLOCK = 64  # tokens
_HEAD = 64  # most probable tokens looked at first, where it is not known how many are needed
_GROWTH = 4  # and how many times more the next time
_DRAWS = 64  # uniform numbers made at once

Float64s = NDArray[np.float64]
Ids = NDArray[np.intp]


class Sampled(NamedTuple):
    """One token. Log-probabilities are natural, of the model's own distribution: before penalties and temperature."""

    token: int
    logprob: float | None  # None unless the request asks for logprobs
    top: tuple[tuple[int, float], ...]  # the most probable tokens and their log-probabilities, descending


class Draws:
    """Uniform numbers in [0, 1), found by index: the Philox stream (Salmon et al., 2011) of a seed and a choice."""

    def __init__(self, seed: int, choice: int) -> None:
        self._key = np.array([seed & (2**64 - 1), choice], np.uint64)
        self._block = -1
        self._values: list[float] = []

    def __getitem__(self, index: int) -> float:
        block, offset = divmod(index, _DRAWS)
        if block != self._block:
            counter = np.array([0, block, 0, 0], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
            self._block, self._values = block, generator.random(_DRAWS).tolist()
        return self._values[offset]


class _Occurrences:
    """Distinct tokens of an answer and how often it holds each, as arrays that grow."""

    def __init__(self) -> None:
        self._ids, self._counts, self._size = np.zeros(16, np.int32), np.zeros(16, np.int32), 0
        self._index: dict[int, int] = {}

    @property
    def ids(self) -> Int32s:
        return self._ids[: self._size]

    @property
    def counts(self) -> Int32s:
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        i = self._index.setdefault(token, self._size)
        if i == self._size:
            if i == len(self._ids):
                self._ids = np.append(self._ids, np.zeros(i, np.int32))
                self._counts = np.append(self._counts, np.zeros(i, np.int32))
            self._ids[i] = token
            self._size += 1
        self._counts[i] += 1


class SamplerState:
    """One answer as the sampler sees it. It depends on the request alone: not on other requests, not on preemption.

    `prompt` holds the tokens of the prompt, for the repetition penalty; their order and number do not matter.
    """

    def __init__(
        self, params: SamplingParams, *, prompt: Int32s, seed: int, choice: int = 0, stop_ids: Collection[int] = ()
    ) -> None:
        self.params = params
        self._prompt = prompt
        self.answered = 0  # tokens
        self._draws = Draws(seed, choice)
        self._bias_ids = np.array(list(params.logit_bias), np.int32)
        self._biases = np.array(list(params.logit_bias.values()), np.float32)
        self._stop_ids = np.array(sorted(stop_ids), np.int32)
        penalizes = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        self._occurrences = _Occurrences() if penalizes else None

    @property
    def draw(self) -> float:
        """The uniform number in [0, 1) that decides the next token."""
        return self._draws[self.answered]

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` would change anything."""
        return self._occurrences is not None or len(self._biases) > 0 or self.answered < self.params.min_tokens

    def adjust(self, logits: Logits) -> None:
        """Apply penalties, biases and bans to `logits` [vocab], in place."""
        params, seen = self.params, self._occurrences
        if seen is not None:
            if params.repetition_penalty != 1.0:
                ids, penalty = np.concatenate((self._prompt, seen.ids)), np.float32(params.repetition_penalty)
                values = logits[ids]  # read before any is written: an id that occurs twice is penalized once
                logits[ids] = np.where(values > 0, values / penalty, values * penalty)
            frequency, presence = np.float32(params.frequency_penalty), np.float32(params.presence_penalty)
            logits[seen.ids] -= frequency * seen.counts.astype(np.float32) + presence
        if len(self._biases):
            logits[self._bias_ids] += self._biases
        if self.answered < params.min_tokens:
            logits[self._stop_ids] = -np.inf

    def record(self, token: int) -> None:
        """`token` was chosen."""
        self.answered += 1
        if self._occurrences is not None:
            self._occurrences.add(token)


class Sampler:
    """Chooses tokens for a vocabulary of `vocab`. Holds scratch space only: all that matters is in the states."""

    def __init__(self, vocab: int) -> None:
        self._adjusted = np.zeros(vocab, np.float32)
        self._weights = np.zeros(-(-vocab // _BLOCK) * _BLOCK, np.float32)  # what lies past the vocabulary stays 0

    def sample(self, logits: Logits, states: Sequence[SamplerState]) -> list[Sampled | Exception]:
        """The next token of each row of `logits` [r, vocab], which stays as it is.

        A row that fails yields its exception in place of a token, and leaves the others alone.
        """
        if len(logits) != len(states):
            raise GenerationFailed(
                f"{len(states)} sequences sample and the model returned {len(logits)} rows of logits"
            )
        results: list[Sampled | Exception] = []
        best = logits.argmax(axis=1).tolist() if states else []
        with np.errstate(over="ignore"):  # a low temperature makes a logit -inf, that is, its token impossible
            for row, top, state in zip(logits, best, states, strict=True):
                try:
                    results.append(self._choose(row, top, state))
                except Exception as error:
                    results.append(error)
        return results

    def _choose(self, row: Logits, best: int, state: SamplerState) -> Sampled:
        params, x = state.params, row
        # argmax finds a NaN if there is one, so this sees every value that is no logit
        if not math.isfinite(row[best]):
            raise GenerationFailed(
                f"the model's logits for token {state.answered + 1} of the answer are not finite; "
                "its weights or the quantization may be damaged: try other weights, or --quant none"
            )
        token = best
        if state.adjusts:
            x = self._adjusted
            np.copyto(x, row)
            state.adjust(x)
            token = int(x.argmax())
            if not math.isfinite(x[token]):
                raise GenerationFailed("logit_bias and min_tokens leave no token possible; relax them")
        if not params.greedy:
            token = self._draw(x, float(x[token]), params, state.draw)
        result = Sampled(token, None, ())
        if params.logprobs is not None:
            result = Sampled(token, *self._logprobs(row, best, token, params.logprobs))
        state.record(token)
        return result

    def _draw(self, x: Logits, peak: float, params: SamplingParams, u: float) -> int:
        """The token at `u` [0, 1) of the distribution that `params` make of the logits `x`; `peak` is their maximum."""
        if 0 < params.top_k < len(x) or params.top_p < 1.0:
            ids, weights = self._nucleus(x, peak, params)
        elif params.min_p > 0.0:
            bound = np.float32(peak + params.temperature * math.log(params.min_p))
            ids = np.flatnonzero(x >= np.nextafter(bound, np.float32(-np.inf)))
            weights = _weights(x[ids], peak, params.temperature)
        else:
            return self._draw_any(x, peak, params.temperature, u)
        kept = weights >= params.min_p  # the largest weight is 1
        return int(ids[kept][_at(weights[kept].cumsum(), u)])

    def _nucleus(self, x: Logits, peak: float, params: SamplingParams) -> tuple[Ids, Float64s]:
        """Ids and weights of what top_k, then top_p leave, most probable first."""
        vocab, limited = len(x), 0 < params.top_k < len(x)
        count = params.top_k if limited else min(_HEAD, vocab)
        total = None if limited else self._exponentials(x, peak, params.temperature).sum(dtype=np.float64)
        while True:
            ids = _head(x, count)
            weights = _weights(x[ids], peak, params.temperature)
            if params.top_p == 1.0:
                return ids, weights
            cumulative = weights.cumsum()
            wanted = params.top_p * (cumulative[-1] if total is None else total)
            if limited or count == vocab or cumulative[-1] >= wanted:
                end = int(cumulative.searchsorted(wanted)) + 1
                return ids[:end], weights[:end]
            count = min(vocab, count * _GROWTH)

    def _draw_any(self, x: Logits, peak: float, temperature: float, u: float) -> int:
        """Among all tokens: first the block, then the token in it."""
        blocks = self._exponentials(x, peak, temperature).reshape(-1, _BLOCK)
        cumulative = np.add.reduce(blocks, axis=1, dtype=np.float64).cumsum()
        block = _at(cumulative, u)
        inside = blocks[block].cumsum(dtype=np.float64)
        before = cumulative[block] - inside[-1]
        share = (u * cumulative[-1] - before) / inside[-1]
        return block * _BLOCK + _at(inside, min(max(share, 0.0), 1.0))

    def _exponentials(self, x: Logits, peak: float, temperature: float) -> Logits:
        """exp((x - peak) / temperature), [vocab] padded with zeros to whole blocks; overwritten by the next call."""
        weights = self._weights[: len(x)]
        np.subtract(x, np.float32(peak), out=weights)
        weights *= np.float32(1.0 / temperature)
        np.exp(weights, out=weights)
        return self._weights

    def _logprobs(self, row: Logits, best: int, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        peak = float(row[best])
        log_mass = peak + math.log(self._exponentials(row, peak, 1.0).sum(dtype=np.float64))
        ids = _head(row, min(count, len(row))) if count else np.empty(0, np.intp)
        top = zip(ids.tolist(), row[ids].tolist(), strict=True)
        return float(row[token]) - log_mass, tuple((i, x - log_mass) for i, x in top if x > -math.inf)


def _weights(logits: Logits, peak: float, temperature: float) -> Float64s:
    return np.exp((logits.astype(np.float64) - peak) / temperature)


def _at(cumulative: Float64s, u: float) -> int:
    """The index at `u` of a cumulative sum: never one of weight 0, even if rounding carries `u` to the end."""
    last = int(cumulative.searchsorted(cumulative[-1]))
    return min(int(cumulative.searchsorted(u * cumulative[-1], side="right")), last)


def _head(x: Logits, count: int) -> Ids:
    """The ids of the `count` largest of `x` [vocab], descending, the lower id first among equals."""
    vocab = len(x)
    columns = vocab // _BLOCK
    if count >= vocab:
        return np.argsort(-x, kind="stable")
    if 2 * count > columns:
        bound = np.partition(x, vocab - count)[vocab - count]
    else:  # `count` blocks have a maximum of at least this, so `count` tokens do
        maxima = x[: columns * _BLOCK].reshape(_BLOCK, columns).max(axis=0)
        bound = np.partition(maxima, columns - count)[columns - count]
    ids = np.flatnonzero(x >= bound)
    return ids[np.argsort(-x[ids], kind="stable")[:count]]
