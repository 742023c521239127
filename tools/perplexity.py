"""Perplexity: how surprised a model is by a text, e to the mean negative log-likelihood of its tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Model(Protocol):
    """The part of a compiled language model that is used here; see `mlc.backends.module.LanguageModel`."""

    page_size: int
    max_tokens: int
    max_sequences: int
    max_context: int

    def run(self, batch: Any) -> Array: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One sequence's next tokens, as `mlc.runtime.batch.Batch` describes them."""

    tokens: Array
    positions: Array
    slots: Array
    starts: Array
    lengths: Array
    tables: Array
    rows: Array

    @staticmethod
    def of(tokens: Array, start: int, stop: int, pages: Array, page_size: int, rows: Array | None = None) -> Step:
        """tokens[start:stop] of a sequence whose keys and values lie in `pages`; logits of all its rows, or of `rows`.

        int32 throughout.
        """
        positions = np.arange(start, stop, dtype=np.int32)
        return Step(
            tokens=tokens[start:stop],
            positions=positions,
            slots=pages[positions // page_size] * page_size + positions % page_size,
            starts=np.array([0, stop - start], np.int32),
            lengths=np.array([stop], np.int32),
            tables=pages[None, :],
            rows=positions - start if rows is None else rows,
        )


def perplexity(model: Model, texts: Iterable[Sequence[int]], *, window: int) -> float:
    """Of the tokens of `texts`, each cut into windows of at most `window` tokens that know nothing of each other.

    The first token of a window is not predicted. A step has as many rows as the model gives logits for.
    """
    window = min(window, model.max_context)
    total, count = 0.0, 0
    for tokens in texts:
        for start in range(0, len(tokens) - 1, window):
            part = np.array(tokens[start : start + window], np.int32)
            total += _negative_log_likelihood(model, part)
            count += len(part) - 1
    return math.exp(total / count)


def _negative_log_likelihood(model: Model, tokens: Array) -> float:
    """The sum over tokens[1:], natural logarithm."""
    stride = min(model.max_sequences, model.max_tokens)
    pages = np.arange(-(-len(tokens) // model.page_size), dtype=np.int32)
    total = 0.0
    for start in range(0, len(tokens), stride):
        stop = min(len(tokens), start + stride)
        logits = model.run(Step.of(tokens, start, stop, pages, model.page_size)).astype(np.float64)
        targets = tokens[start + 1 : stop + 1]
        logits = logits[: len(targets)]
        peak = logits.max(axis=1, keepdims=True)
        norms = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
        total += float((norms - logits[np.arange(len(targets)), targets]).sum())
    return total
