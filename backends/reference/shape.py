"""Moving numbers without changing them."""

from __future__ import annotations

import numpy as np

from .parts import Array, Data, as_f32, on_parts

__all__ = [
    "columns",
    "concat",
    "embed",
    "mean_rows",
    "merge_heads",
    "prepend_row",
    "split_heads",
    "take_rows",
    "take_token",
]


def embed(table: Data, ids: Array) -> Array:
    return as_f32(on_parts(lambda part: part[ids], table))


def take_rows(x: Array, rows: Array) -> Array:
    return x[rows]


def concat(a: Data, *others: Data) -> Data:
    return on_parts(lambda *parts: np.concatenate(parts), a, *others)


def columns(x: Array, *, start: int, stop: int) -> Array:
    return x[..., start:stop]


def split_heads(x: Array, *, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], -1)


def prepend_row(x: Array, row: Array) -> Array:
    return np.concatenate([np.broadcast_to(row, (len(x), 1, len(row))), x], axis=1)


def take_token(x: Array, *, index: int) -> Array:
    return x[:, index]


def mean_rows(x: Array, lengths: Array | None = None) -> Array:
    if lengths is None:
        lengths = np.full(len(x), x.shape[1])
    counted = np.arange(x.shape[1]) < lengths[:, None]  # [b, t]
    total = np.sum(x, axis=1, where=counted[..., None])
    result: Array = total / lengths[:, None].astype(np.float32)
    return result
