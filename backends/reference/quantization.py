"""Rounding weights to few bits: fast enough for whole checkpoints, since weight conversion runs it."""

from __future__ import annotations

import numpy as np

from mlc.errors import BadCheckpoint
from mlc.ir import Format
from mlc.ir.arrays import QuantizedArray

from .parts import NUMPY, Array

__all__ = ["quantize"]

_CHUNK = 1 << 16  # numbers at a time, so that what is computed on the way stays in a core's cache
_SHIFTS = (0.0, 1.0, 0.75, 0.5, 0.25, -0.25, -0.5, -0.75, -1.0)  # 0 first: of equal errors the first one wins


def quantize(w: Array, *, bits: int, group: int, symmetric: bool, scale: str) -> QuantizedArray:
    """Each group is rounded by itself, so some rows of the result need the same rows of `w` only.

    Raises BadCheckpoint where a number is not finite, or so large that its scale is not.
    """
    format = Format(bits, group, symmetric, scale)
    groups = w.reshape(-1, group)
    q = np.empty(groups.shape, np.int8 if bits == 8 and symmetric else np.uint8)
    scales = np.empty((1 if symmetric else 2, len(groups)), NUMPY[scale])
    step = max(1, _CHUNK // group)
    with np.errstate(all="ignore"):  # numbers that are not finite show in their scales
        for start in range(0, len(groups), step):
            span = slice(start, start + step)
            columns = np.ascontiguousarray(groups[span].T, np.float32)  # a group's numbers lie in different vectors
            q[span] = _round_columns(columns, format, scales[:, span]).T
    if not np.isfinite(scales).all():
        raise BadCheckpoint(
            f"a weight of shape {list(w.shape)} holds numbers that are not finite or too large for {format}; "
            "if the checkpoint is not damaged, leave it unquantized"
        )
    parts = scales.reshape(len(scales), *w.shape[:-1], w.shape[-1] // group)
    return QuantizedArray(q.reshape(w.shape), parts[0], None if symmetric else parts[1], format)


def _round_columns(w: Array, format: Format, scales: Array) -> Array:
    """q as f32[group, columns] for w f32[group, columns]; `scales` [1 or 2, columns] receives scale and bias."""
    high, low = w.max(axis=0), w.min(axis=0)
    if not format.symmetric:
        levels = np.float32(2**format.bits - 1)
        scales[0], scales[1] = high / levels - low / levels, low
        return np.clip(_rounded(w - scales[1].astype(np.float32), scales[0]), 0, levels)
    if format.bits == 8:
        scales[0] = np.maximum(high, -low) / np.float32(127)
        return np.clip(_rounded(w, scales[0]), -127, 127)
    zero = format.zero
    scales[0] = _best_scale(w, np.where(high >= -low, high, low), zero, scales.dtype)
    return np.clip(_rounded(w, scales[0]), -zero, zero - 1) + zero


def _best_scale(w: Array, largest: Array, zero: int, dtype: np.dtype[np.generic]) -> Array:
    """For each column, the one of the scales largest / (-zero - shift) that gives the least squared error, as `dtype`.

    `zero` is that of `Format`.
    """
    best, least = (largest / np.float32(-zero)).astype(dtype), np.full(largest.shape, np.inf, np.float32)
    for shift in _SHIFTS:
        scale = (largest / np.float32(-zero - shift)).astype(dtype)
        error = np.clip(_rounded(w, scale), -zero, zero - 1) * scale.astype(np.float32) - w
        squares = np.square(error).sum(axis=0)
        best, least = np.where(squares < least, scale, best), np.minimum(squares, least)
    return best


def _rounded(w: Array, scale: Array) -> Array:
    """w / scale to the nearest integer; 0 for a scale of 0."""
    result: Array = np.rint(w / np.where(scale == 0, np.inf, scale).astype(np.float32))
    return result
