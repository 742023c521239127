"""From logits to tokens: what a request's parameters mean for each token. The model has the kernels that choose.

Penalties and biases touch the tokens that a request has seen, not the vocabulary: the model has kernels for that too,
which count what they choose, so that several steps need nothing of us between them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlc.errors import GenerationFailed

from .batch import Batch, Logits, Model, Rules
from .batch import Draws as Draws64
from .request import TokenLogprobs
from .sampling import SamplingParams
from .sequence import Int32s

_BLOCK = 64  # tokens
_DRAWS = 4  # uniform numbers that one value of the counter gives

Ids = NDArray[np.intp]


class Sampled(NamedTuple):
    """What was chosen for one answer: the tokens of one step or of several, and what kept it from another."""

    tokens: Sequence[int]
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one per token; None unless the request asks for them
    failure: Exception | None = None


class Draws:
    """Uniform numbers in [0, 1), found by index: the Philox stream (Salmon et al., 2011) of a seed and a choice."""

    def __init__(self, seed: int, choice: int) -> None:
        self._key = np.array([seed & (2**64 - 1), choice], np.uint64)
        self._go_to(0)

    def take(self, first: int, out: Draws64) -> None:
        """Those from index `first` on, as many as `out` has room for."""
        if first != self._next:
            self._go_to(first)
        out[:] = self._generator.random(len(out))
        self._next += len(out)

    def _go_to(self, index: int) -> None:
        counter = np.array([index // _DRAWS, 0, 0, 0], np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        self._generator.random(index % _DRAWS)
        self._next = index


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
        factor = 0.0 if params.greedy else 1.0 / params.temperature
        self.rule = (factor, params.top_k, params.top_p, params.min_p)  # as `Model.sample` takes it

    def draw(self, out: Draws64) -> None:
        """Put the uniform numbers in [0, 1) that decide the next tokens into `out`, where any are needed."""
        if not self.params.greedy:
            self._draws.take(self.answered, out)

    @property
    def alone(self) -> bool:
        """Whether the next tokens need nothing but `rule`, `draws` and `penalties`."""
        return self.params.logprobs is None and not self.bans

    @property
    def penalties(self) -> SamplerState | None:
        """Itself, if the text so far changes the logits: it has all that `mlc.runtime.batch.Penalties` wants."""
        return self if self._occurrences is not None or len(self._biases) else None

    @property
    def numbers(self) -> tuple[float, float, float]:
        return self.params.repetition_penalty, self.params.frequency_penalty, self.params.presence_penalty

    def listed(self) -> tuple[Int32s, Int32s, Logits]:
        """See `mlc.runtime.batch.Penalties`."""
        seen = self._occurrences
        prompt = self._prompt if self.params.repetition_penalty != 1.0 else self._prompt[:0]
        answer = self._prompt[:0] if seen is None else seen.ids
        ids = np.unique(np.concatenate((prompt, answer, self._bias_ids)))
        counts, biases = np.full(len(ids), -1, np.int32), np.zeros(len(ids), np.float32)
        counts[np.searchsorted(ids, prompt)] = 0
        if seen is not None:
            counts[np.searchsorted(ids, answer)] = seen.counts
        biases[np.searchsorted(ids, self._bias_ids)] = self._biases
        return ids, counts, biases

    @property
    def bans(self) -> bool:
        """Whether the answer is too short to end."""
        return self.answered < self.params.min_tokens

    @property
    def adjusts(self) -> bool:
        """Whether anything changes the logits before a token is chosen."""
        return self.penalties is not None or self.bans

    def ban(self, logits: Logits) -> None:
        """Make the tokens that would end the answer impossible in `logits` [vocab], if it is too short."""
        if self.bans:
            logits[self._stop_ids] = -np.inf

    def record(self, tokens: Sequence[int]) -> None:
        """`tokens` were chosen one after the other."""
        self.answered += len(tokens)
        if self._occurrences is not None:
            for token in tokens:
                self._occurrences.add(token)


class Sampler:
    """Chooses tokens with the kernels of `model`. It holds nothing that matters: that is in the states."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._ruled: Sequence[SamplerState] = []  # whose rules these are
        self._known_rules = np.empty((0, 4), np.float32)

    def sample(self, logits: Logits, states: Sequence[SamplerState]) -> list[Sampled]:
        """The next token of each row of `logits` [r, vocab], those that the model has just returned.

        A row that fails has its exception in place of a token, and leaves the others alone.
        """
        if len(logits) != len(states):
            raise GenerationFailed(
                f"{len(states)} sequences sample and the model returned {len(logits)} rows of logits"
            )
        if not states:
            return []
        model_own = [
            row.copy() if state.adjusts and state.params.logprobs is not None else row
            for row, state in zip(logits, states, strict=True)
        ]
        for row, state in zip(logits, states, strict=True):
            state.ban(row)
        penalties = [state.penalties for state in states]
        tokens = self._model.sample(self._rules(states), self._draws(states, 1)[0], penalties)
        return [_one(state, token, row) for state, token, row in zip(states, tokens.tolist(), model_own, strict=True)]

    def decode(self, batch: Batch, states: Sequence[SamplerState], stops: Sequence[Collection[int]]) -> list[Sampled]:
        """Run `batch.steps` steps, or fewer if an answer ends; the tokens of each row. All `states` are `alone`."""
        penalties = [state.penalties for state in states]
        rows = self._model.decode(batch, self._rules(states), self._draws(states, batch.steps), stops, penalties)
        return [_several(state, tokens) for state, tokens in zip(states, rows, strict=True)]

    def _rules(self, states: Sequence[SamplerState]) -> Rules:
        """[r, 4], as `Model.sample` takes them."""
        if self._ruled != states:
            self._ruled, self._known_rules = list(states), np.array([state.rule for state in states], np.float32)
        return self._known_rules

    def _draws(self, states: Sequence[SamplerState], steps: int) -> Draws64:
        """[steps, r], as `Model.decode` takes them."""
        draws = np.zeros((steps, len(states)))
        for row, state in enumerate(states):
            state.draw(draws[:, row])
        return draws


def _one(state: SamplerState, token: int, row: Logits) -> Sampled:
    """`token` was chosen for `state`, from the logits `row` [vocab], which are needed for logprobs only."""
    result = _several(state, (token,))
    if state.params.logprobs is None or result.failure is not None:
        return result
    try:
        return Sampled(result.tokens, (_logprobs(row, token, state.params.logprobs),))
    except Exception as error:
        return Sampled((), failure=error)


def _several(state: SamplerState, tokens: Sequence[int]) -> Sampled:
    """`tokens` were chosen for `state` one after the other; a negative one, the last, says that there was none."""
    good = tokens if tokens[-1] >= 0 else tokens[:-1]
    try:
        state.record(good)
    except Exception as error:
        return Sampled((), failure=error)
    return Sampled(good, failure=None if good is tokens else _failure(state, tokens[-1]))


def _failure(state: SamplerState, code: int) -> GenerationFailed:
    if code == -2 and state.adjusts:
        return GenerationFailed("logit_bias and min_tokens leave no token possible; relax them")
    return GenerationFailed(
        f"the model's logits for token {state.answered + 1} of the answer are not finite; "
        "its weights or the quantization may be damaged: try other weights, or --quant none"
    )


def _logprobs(row: Logits, token: int, count: int) -> TokenLogprobs:
    peak = float(row.max())
    log_mass = peak + math.log(np.exp(row - np.float32(peak)).sum(dtype=np.float64))
    ids = _head(row, min(count, len(row))) if count else np.empty(0, np.intp)
    top = zip(ids.tolist(), row[ids].tolist(), strict=True)
    return TokenLogprobs(float(row[token]) - log_mass, tuple((i, x - log_mass) for i, x in top if x > -math.inf))


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
