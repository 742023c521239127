"""The value of `state<kv, ...>`: pages of keys and values, and where this step's tokens lie in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .parts import NUMPY, Array


@dataclass(frozen=True, slots=True, eq=False)
class PagedKv:
    """One version of the cache. Sequence s has rows starts[s] .. starts[s + 1] of the step, its last tokens.

    A page holds the same tokens of one sequence in every layer; a slot is page * tokens per page + offset.
    """

    layers: Mapping[int, tuple[Array, Array]]  # keys and values [page, tokens per page, kv_heads, d] in the cache dtype
    starts: Array  # i32[s + 1]
    lengths: Array  # i32[s], tokens of context, those of this step included
    tables: Array  # i32[s, pages per sequence], the pages of each sequence in the order of its text
    slots: Array  # i32[n], where each row of this step is written
    dtype: str = ""  # q8: `layers` are f32 that hold what bytes and scales mean

    def append(self, layer: int, k: Array, v: Array) -> PagedKv:
        """The version in which k and v f32[n, kv_heads, d] stand in the slots of `layer`. This one stays as it is."""
        rows = (rounded(k), rounded(v)) if self.dtype == "q8" else (k, v)
        pages = tuple(_written(old, self.slots, new) for old, new in zip(self.layers[layer], rows, strict=True))
        return replace(self, layers={**self.layers, layer: (pages[0], pages[1])})

    def read(self, layer: int, sequence: int) -> tuple[Array, Array]:
        """Keys and values of a sequence, f32[its length, kv_heads, d]."""
        length, table = self.lengths[sequence], self.tables[sequence]
        k, v = (np.concatenate(p[table[: -(-length // p.shape[1])]])[:length] for p in self.layers[layer])
        return k.astype(np.float32), v.astype(np.float32)


def empty_layers(
    *, layers: int, pages: int, page_size: int, kv_heads: int, d: int, dtype: str
) -> dict[int, tuple[Array, Array]]:
    """Zeros for `PagedKv.layers`; dtype is f32, f16, bf16 or q8."""
    zeros = np.zeros((pages, page_size, kv_heads, d), NUMPY["f32" if dtype == "q8" else dtype])
    return {layer: (zeros.copy(), zeros.copy()) for layer in range(layers)}


def rounded(x: Array) -> Array:
    """x as bytes with one scale for each row of its last axis: max|x| / 127."""
    peak = np.abs(x).max(axis=-1, keepdims=True)
    peak = np.where(peak < 1e-30, np.float32(0), peak)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak != 0)
    result: Array = np.rint(x * inverse) * (peak / np.float32(127))
    return result


def _written(pages: Array, slots: Array, rows: Array) -> Array:
    """A copy of `pages` with `rows` in `slots`. What f16 cannot hold becomes its largest number: a later row that
    masks the entry would turn an infinity into NaN."""
    if pages.dtype == np.float16:
        rows = np.clip(rows, -65504, 65504)
    new = pages.copy()
    new.reshape(-1, *pages.shape[2:])[slots] = rows
    return new
