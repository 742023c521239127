"""Normalisation over the last axis."""

from __future__ import annotations

import numpy as np

from .parts import Array

__all__ = ["add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(x: Array, weight: Array, *, eps: float) -> Array:
    result: Array = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps) * weight
    return result


def add_rms_norm(x: Array, residual: Array, weight: Array, *, eps: float) -> tuple[Array, Array]:
    total = x + residual
    return rms_norm(total, weight, eps=eps), total


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    result: Array = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + eps) * weight + bias
    return result
