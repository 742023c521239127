"""Rotation by position, the paged KV cache, and attention with and without it."""

from __future__ import annotations

import numpy as np

from .kv import PagedKv, rounded
from .norm import rms_norm
from .parts import Array

__all__ = ["attention", "full_attention", "kv_append", "qkv_rope_append", "rope"]


def rope(x: Array, positions: Array, frequencies: Array) -> Array:
    angles = (positions[:, None].astype(np.float32) * frequencies)[:, None]  # [n, 1, d/2], one for all heads
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def kv_append(kv: PagedKv, k: Array, v: Array, *, layer: int) -> PagedKv:
    return kv.append(layer, k, v)


SPAN = 256  # tokens whose weights are rounded together where the cache holds bytes


def attention(q: Array, kv: PagedKv, *, layer: int, kv_heads: int, scale: float, window: int) -> Array:
    out = np.empty_like(q)
    if kv.dtype == "q8":
        q = rounded(q)
    for sequence, length in enumerate(kv.lengths):
        first, last = kv.starts[sequence : sequence + 2]
        k, v = kv.read(layer, sequence)
        back = np.arange(length - (last - first), length)[:, None] - np.arange(length)  # from each row to each token
        seen = (back >= 0) & (back < window) if window else back >= 0
        out[first:last] = _attend(q[first:last], k, v, seen, scale, in_bytes=kv.dtype == "q8")
    return out


def full_attention(q: Array, k: Array, v: Array, lengths: Array | None = None, *, scale: float) -> Array:
    if lengths is None:
        lengths = np.full(len(q), k.shape[1])
    out = np.empty_like(q)
    for b, length in enumerate(lengths):
        out[b] = _attend(q[b], k[b, :length], v[b, :length], np.True_, scale)
    return out


def _attend(q: Array, k: Array, v: Array, seen: Array | np.bool_, scale: float, *, in_bytes: bool = False) -> Array:
    """Softmax attention of q [t, heads, d] over k and v [u, kv_heads, d], where `seen` [t, u] allows it.

    With `in_bytes` a weight, times the scale of the value's bytes, becomes a byte as well, SPAN of them with one scale.
    """
    shared = q.shape[1] // k.shape[1]  # query heads to a kv head
    k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
    scores = np.where(seen, np.einsum("thd,uhd->htu", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    if in_bytes:
        steps = np.maximum(np.abs(v).max(axis=-1).T[:, None] / np.float32(127), np.float32(1e-30))  # [heads, 1, u]
        edges = range(SPAN, len(v), SPAN)
        weights = np.concatenate([rounded(part) for part in np.split(weights * steps, edges, axis=-1)], axis=-1) / steps
    result: Array = np.einsum("htu,uhd->thd", weights, v)
    return result


def qkv_rope_append(
    kv: PagedKv,
    qkv: Array,
    positions: Array,
    frequencies: Array,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Array, PagedKv]:
    q, k, v = np.split(qkv.reshape(len(qkv), heads + 2 * kv_heads, -1), [heads, heads + kv_heads], axis=1)
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps=eps), rms_norm(k, k_norm, eps=eps)
    q, k = rope(q, positions, frequencies), rope(k, positions, frequencies)
    return q, kv.append(layer, k, v)
