"""Perplexity: how surprised a model is by a text, e to the mean negative log-likelihood of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def perplexity(
    model: Model, tokens: Sequence[int], *, window: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Of `tokens`, cut into windows of at most `window` tokens that know nothing of each other.

    The first token of a window is not predicted. A step has as many rows as the model gives logits for.
    """
    window = min(window, model.max_context)
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, window):
        part = np.array(tokens[start : start + window], np.int32)
        if len(part) < 2:
            break
        total += _negative_log_likelihood(model, part)
        count += len(part) - 1
        progress(start + len(part), len(tokens))
    return math.exp(total / count)


def _negative_log_likelihood(model: Model, tokens: Array) -> float:
    """The sum over tokens[1:], natural logarithm."""
    stride = min(model.max_sequences, model.max_tokens)
    pages = -(-len(tokens) // model.page_size)
    total = 0.0
    for start in range(0, len(tokens), stride):
        stop = min(len(tokens), start + stride)
        positions = np.arange(start, stop, dtype=np.int32)
        logits = model.run(
            Step(
                tokens=tokens[start:stop],
                positions=positions,
                slots=positions,  # pages 0, 1, 2, ... in order
                starts=np.array([0, stop - start], np.int32),
                lengths=np.array([stop], np.int32),
                tables=np.arange(pages, dtype=np.int32)[None, :],
                rows=positions - start,
            )
        ).astype(np.float64)
        targets = tokens[start + 1 : stop + 1]
        logits = logits[: len(targets)]
        peak = logits.max(axis=1, keepdims=True)
        norms = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
        total += float((norms - logits[np.arange(len(targets)), targets]).sum())
    return total
