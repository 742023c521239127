"""Ops without operands. `weight` and `constant` are not here: whoever evaluates a graph gives their values."""

from __future__ import annotations

import numpy as np

from .parts import Array

__all__ = ["rope_frequencies"]


def rope_frequencies(
    *, dim: int, theta: float, scaling: str, factor: float, low: float, high: float, original_context: int
) -> Array:
    frequencies = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling == "linear":
        frequencies /= factor
    elif scaling == "llama3":
        turns = original_context * frequencies / (2 * np.pi)  # wavelengths that fit in the context of pretraining
        kept = np.clip((turns - low) / (high - low), 0, 1)  # 0 is divided by the factor, 1 stays
        frequencies *= kept + (1 - kept) / factor
    return frequencies.astype(np.float32)
