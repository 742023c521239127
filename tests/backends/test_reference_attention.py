"""The paged KV cache of the oracle, and attention over it, against PyTorch on whole sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.backends.reference import REFERENCE, PagedKv, empty_layers

Array = np.ndarray[Any, Any]


def rand(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


class Cache:
    """Sequences that grow step by step; their pages are taken in a random order."""

    def __init__(self, sequences: int, *, page_size: int, kv_heads: int, d: int, dtype: str, seed: int = 0) -> None:
        pages = 12
        order = np.random.default_rng(seed).permutation(sequences * pages)
        self.page_size = page_size
        self.tables = order.reshape(sequences, pages).astype(np.int32)
        self.lengths = np.zeros(sequences, np.int32)
        self.layers: Any = empty_layers(
            layers=2, pages=sequences * pages, page_size=page_size, kv_heads=kv_heads, d=d, dtype=dtype
        )

    def step(self, tokens: list[int]) -> tuple[PagedKv, Array]:
        """The state in which sequence s runs tokens[s] more, and the positions of the rows."""
        old, self.lengths = self.lengths, self.lengths + np.array(tokens, np.int32)
        positions = [np.arange(a, b) for a, b in zip(old, self.lengths, strict=True)]
        slots = [
            table[at // self.page_size] * self.page_size + at % self.page_size
            for table, at in zip(self.tables, positions, strict=True)
        ]
        starts = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
        kv = PagedKv(self.layers, starts, self.lengths, self.tables, np.concatenate(slots).astype(np.int32))
        return kv, np.concatenate(positions).astype(np.int32)


class Sequence(NamedTuple):
    q: Array  # [t, heads, d]
    k: Array  # [t, kv_heads, d]
    v: Array


def expected(s: Sequence, scale: float, window: int) -> Array:
    """Causal attention over the whole sequence at once."""
    q, k, v = (torch.tensor(x).transpose(0, 1) for x in s)
    back = torch.arange(len(s.q))[:, None] - torch.arange(len(s.q))
    seen = (back >= 0) & ((back < window) if window else torch.tensor(True))
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], seen[None], scale=scale, enable_gqa=True)
    result: Array = out[0].transpose(0, 1).numpy()
    return result


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.lists(st.integers(1, 7), min_size=3, max_size=3), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1)]),
    page_size=st.sampled_from([1, 3, 16]),
    window=st.sampled_from([0, 1, 4]),
)
def test_attention_over_pages_is_causal_attention(
    steps: list[list[int]], heads: tuple[int, int], page_size: int, window: int
) -> None:
    d, layer = 4, 1
    total = [sum(column) for column in zip(*steps, strict=True)]
    texts = [
        Sequence(rand(n, heads[0], d, seed=s), rand(n, heads[1], d, seed=s + 10), rand(n, heads[1], d, seed=s + 20))
        for s, n in enumerate(total)
    ]
    cache = Cache(3, page_size=max(page_size, -(-max(total) // 12)), kv_heads=heads[1], d=d, dtype="f32")
    answers: list[list[Array]] = [[], [], []]
    for tokens in steps:
        before = cache.lengths
        kv, _ = cache.step(tokens)
        q, k, v = (
            np.concatenate([texts[s][i][before[s] : before[s] + n] for s, n in enumerate(tokens)]) for i in range(3)
        )
        after = REFERENCE["kv_append"](kv, k, v, layer=layer)
        out = REFERENCE["attention"](q, after, layer=layer, kv_heads=heads[1], scale=0.5, window=window)
        for s, part in enumerate(np.split(out, np.cumsum(tokens)[:-1])):
            answers[s].append(part)
        cache.layers = after.layers
    for text, parts in zip(texts, answers, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), expected(text, 0.5, window), rtol=1e-5, atol=1e-6)


def test_appending_leaves_the_older_version_and_other_layers_alone() -> None:
    cache = Cache(1, page_size=4, kv_heads=2, d=3, dtype="f32")
    kv, _ = cache.step([5])
    after = REFERENCE["kv_append"](kv, rand(5, 2, 3), rand(5, 2, 3, seed=1), layer=0)
    assert not any(page.any() for pages in kv.layers.values() for page in pages)
    assert all(page.any() for page in after.layers[0]) and not any(page.any() for page in after.layers[1])
    k, v = after.read(0, 0)
    np.testing.assert_array_equal(k, rand(5, 2, 3))
    np.testing.assert_array_equal(v, rand(5, 2, 3, seed=1))


@pytest.mark.parametrize(("dtype", "unit"), [("f16", 2.0**-11), ("bf16", 2.0**-8)])
def test_the_cache_rounds_to_its_own_dtype(dtype: str, unit: float) -> None:
    kv, _ = Cache(1, page_size=4, kv_heads=1, d=8, dtype=dtype).step([3])
    k, v = REFERENCE["kv_append"](kv, rand(3, 1, 8), rand(3, 1, 8), layer=0).read(0, 0)
    assert k.dtype == v.dtype == np.float32
    np.testing.assert_allclose(k, rand(3, 1, 8), rtol=unit)
    assert (k != rand(3, 1, 8)).any()


def test_a_number_beyond_half_precision_spoils_no_earlier_row() -> None:
    kv, _ = Cache(1, page_size=4, kv_heads=1, d=4, dtype="f16").step([3])
    k = rand(3, 1, 4)
    k[2] = 1e6
    after = REFERENCE["kv_append"](kv, k, k, layer=0)
    out = REFERENCE["attention"](rand(3, 1, 4), after, layer=0, kv_heads=1, scale=1.0, window=0)
    assert np.isfinite(out).all() and np.abs(out[:2]).max() < 10


@pytest.mark.parametrize("normed", [False, True])
def test_the_fused_op_is_its_parts_one_after_the_other(normed: bool) -> None:
    heads, kv_heads, d, eps = 4, 2, 6, 1e-6
    kv, positions = Cache(2, page_size=4, kv_heads=kv_heads, d=d, dtype="f32").step([3, 2])
    qkv, frequencies = rand(5, (heads + 2 * kv_heads) * d), np.abs(rand(d // 2))
    norms = (rand(d, seed=1), rand(d, seed=2)) if normed else ()
    q, after = REFERENCE["qkv_rope_append"](
        kv, qkv, positions, frequencies, *norms, layer=1, heads=heads, kv_heads=kv_heads, eps=eps
    )
    parts = [torch.tensor(x).unflatten(-1, (-1, d)) for x in np.split(qkv, [heads * d, (heads + kv_heads) * d], axis=1)]
    if normed:
        for i, norm in enumerate(norms):
            parts[i] = F.rms_norm(parts[i], (d,), torch.tensor(norm), eps)
    rotated = [REFERENCE["rope"](x.numpy(), positions, frequencies) for x in parts[:2]]
    np.testing.assert_allclose(q, rotated[0], rtol=1e-5, atol=1e-6)
    for s, rows in enumerate((slice(0, 3), slice(3, 5))):
        k, v = after.read(1, s)
        np.testing.assert_allclose(k, rotated[1][rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(v, parts[2][rows].numpy())
    assert not any(page.any() for page in after.layers[0])
