"""Choosing tokens by the definition: everything sorted, in float64. The oracle of the compiled kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def sample(logits: Array, rules: Array, draws: Array) -> Array:
    """i32[r] tokens for logits f32[r, vocab], rules f32[r, 4] (1 / temperature or 0, top_k or 0, top_p, min_p) and
    draws f64[r], uniform numbers in [0, 1).

    In place of a token: -1 where the logits hold NaN or infinity, -2 where all of them are -infinity.
    """
    return np.array([_choose(*row) for row in zip(logits, rules.tolist(), draws.tolist(), strict=True)], np.int32)


def _choose(x: Array, rule: list[float], u: float) -> int:
    if np.isnan(x).any() or np.isposinf(x).any():
        return -1
    if not np.isfinite(x.max()):
        return -2
    if rule[0] == 0:
        return int(x.argmax())
    cumulative = distribution(x, *rule).cumsum()
    last = int(cumulative.searchsorted(cumulative[-1]))
    return min(int(cumulative.searchsorted(u * cumulative[-1], side="right")), last)


def distribution(x: Array, factor: float, top_k: float, top_p: float, min_p: float) -> Array:
    """The probabilities f64[vocab] of what top_k, top_p and min_p leave of softmax(factor * x)."""
    with np.errstate(over="ignore"):
        p = np.exp((x.astype(np.float64) - x.max()) * factor)
    order = np.argsort(-x, kind="stable")
    p[order[int(top_k) or len(x) :]] = 0.0
    before = np.concatenate(([0.0], p[order].cumsum()[:-1])) / p.sum()  # the share of all that is more probable
    p[order[1:][before[1:] >= top_p]] = 0.0
    p[p < min_p] = 0.0
    return np.asarray(p / p.sum())


class Listed:
    """How often the answer of a row holds each token, and biases; see `mlc.runtime.batch.Penalties`."""

    def __init__(self, penalties: Any) -> None:
        ids, counts, biases = (array.tolist() for array in penalties.listed())
        self.numbers = [np.float32(number) for number in penalties.numbers]
        self.counts = dict(zip(ids, counts, strict=True))
        self.biases = dict(zip(ids, biases, strict=True))

    def adjust(self, x: Array) -> None:
        """Apply all of it to logits f32[vocab], token by token."""
        repetition, frequency, presence = self.numbers
        for token, count in self.counts.items():
            if count >= 0:
                x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
            if count > 0:
                x[token] -= frequency * np.float32(count) + presence
            x[token] += np.float32(self.biases.get(token, 0.0))


class ReferenceSampling(ABC):
    """The sampling half of `mlc.runtime.batch.Model`, for one whose `run` keeps what it returns in `logits`."""

    page_size: int  # tokens
    logits: Array
    interrupted = False

    @abstractmethod
    def run(self, batch: Any) -> Array:
        """Logits of the rows that sample."""

    def sample(self, rules: Array, draws: Array, penalties: Sequence[Any]) -> Array:
        return self._choose(rules, draws, [one and Listed(one) for one in penalties])

    def _choose(self, rules: Array, draws: Array, lists: Sequence[Listed | None]) -> Array:
        """Count the tokens too."""
        logits = self.logits.copy() if any(lists) else self.logits
        for x, one in zip(logits, lists, strict=True):
            if one is not None:
                one.adjust(x)
        tokens = sample(logits, rules, draws)
        for token, one in zip(tokens.tolist(), lists, strict=True):
            if one is not None:
                one.counts[token] = max(one.counts.get(token, 0), 0) + 1
        return tokens

    def decode(
        self, batch: Any, rules: Array, draws: Array, stops: Sequence[Collection[int]], penalties: Sequence[Any]
    ) -> list[list[int]]:
        """One step after the other, each with a batch of its own."""
        steps: list[list[int]] = []
        lists = [one and Listed(one) for one in penalties]
        for row in draws:
            self.run(batch)
            tokens = self._choose(rules, row, lists)
            steps.append(tokens.tolist())
            if any(token < 0 or token in stop for token, stop in zip(steps[-1], stops, strict=True)):
                break
            if self.interrupted:
                break
            if len(steps) < len(draws):
                batch = self._next(batch, tokens)
        return [list(row) for row in zip(*steps, strict=True)]

    def interrupt(self, wanted: bool) -> None:
        self.interrupted = wanted

    def _next(self, batch: Any, tokens: Array) -> Any:
        positions = batch.positions + 1
        pages = batch.tables[np.arange(len(tokens)), positions // self.page_size]
        slots = pages * self.page_size + positions % self.page_size
        return replace(
            batch, tokens=tokens, positions=positions, slots=slots, lengths=positions + 1, steps=batch.steps - 1
        )
