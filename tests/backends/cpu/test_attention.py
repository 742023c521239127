"""Attention over the paged cache, and appending to it, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from mlc.backends.cpu.attention import paged_attention
from mlc.backends.cpu.isa import ISAS, Isa, host_isa
from mlc.backends.cpu.kernel import Kernel
from mlc.backends.cpu.kv import kv_append
from mlc.backends.cpu.rows import Rows
from mlc.backends.tvm.build import assembly

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]


@dataclass
class Batch:
    """Sequences of `contexts` tokens, the last `new` of them being this step's rows; unused memory is NaN."""

    heads: int
    kv_heads: int
    d: int
    page: int
    dtype: str
    contexts: tuple[int, ...]
    new: tuple[int, ...]

    def __post_init__(self) -> None:
        random = np.random.default_rng(len(self.contexts) + self.d)
        counts = [-(-context // self.page) for context in self.contexts]
        pages = sum(counts) + 2
        order = iter(random.permutation(pages))
        self.k_pages = np.full((pages, self.kv_heads, self.d, self.page), np.nan, self.dtype)
        self.v_pages = np.full((pages, self.kv_heads, self.page, self.d), np.nan, self.dtype)
        self.tables = np.full((len(counts), max(counts) + 1), 1 << 30, np.int32)
        self.k, self.v = [], []
        for sequence, (context, count) in enumerate(zip(self.contexts, counts, strict=True)):
            self.tables[sequence, :count] = [next(order) for _ in range(count)]
            k, v = (random.standard_normal((context, self.kv_heads, self.d)).astype(self.dtype) for _ in range(2))
            for token in range(context):
                page, offset = self.tables[sequence, token // self.page], token % self.page
                self.k_pages[page, :, :, offset], self.v_pages[page, :, offset] = k[token], v[token]
            self.k.append(k)
            self.v.append(v)
        self.q = random.standard_normal((sum(self.new), self.heads, self.d)).astype(np.float32)

    def tiles(self, tile_rows: int) -> Array:
        tiles, row = [], 0
        for sequence, (context, new) in enumerate(zip(self.contexts, self.new, strict=True)):
            for i in range(0, new, tile_rows):
                tiles.append((sequence, row + i, min(tile_rows, new - i), context - new + i))
            row += new
        return np.array(tiles, np.int32)

    def kernel(self, tile_rows: int, isa: Isa, **options: Any) -> Kernel:
        shape = self.heads, self.kv_heads, self.d, self.page, self.dtype
        return paged_attention(*shape, tile_rows, 0.2, isa, **options)

    def run(self, run_kernel: Run, tile_rows: int, isa: Isa, **options: Any) -> Array:
        tiles = self.tiles(tile_rows)
        names = ("q", "k_pages", "v_pages", "tables")
        inputs = {name: getattr(self, name) for name in names} | {"tiles": tiles}
        sizes = {"tile_count": len(tiles), "table_stride": self.tables.shape[1]}
        kernel = self.kernel(tile_rows, isa, **options)
        return run_kernel(kernel, inputs, sizes, outputs={"out": (self.q.shape, np.float32)}, isa=isa)["out"]

    def expected(self, window: int = 0, softcap: float = 0.0) -> Array:
        out, row = [], 0
        for context, new, k, v in zip(self.contexts, self.new, self.k, self.v, strict=True):
            position = torch.arange(context - new, context)[:, None]
            behind = position - torch.arange(context)[None]
            mask = (behind >= 0) & (behind < (window or context))
            q = torch.tensor(self.q[row : row + new], dtype=torch.float64).transpose(0, 1)
            k, v = (torch.tensor(x.astype(np.float64)).transpose(0, 1) for x in (k, v))
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 0) for x in (k, v))
            if softcap:
                scores = torch.tanh(q @ k.mT * (0.2 / softcap)) * softcap
                weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
                result = weights @ v
            else:
                result = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.2)
            out.append(result.transpose(0, 1).numpy())
            row += new
        return np.concatenate(out)


# heads, kv_heads, d, page, dtype, options
SHAPES = [
    (4, 2, 64, 32, "float16", {}),
    (2, 2, 128, 32, "float32", {}),
    (7, 1, 32, 16, "float16", {"window": 50}),
    (3, 3, 80, 32, "float16", {"softcap": 2.0}),
    (16, 1, 24, 8, "float32", {"window": 7}),
    (1, 1, 5, 128, "float32", {}),
    (2, 1, 256, 48, "float16", {"window": 64, "softcap": 5.0}),
]
# whole prompts, decoding, later parts of prompts
MIXED = ((5, 100, 33, 64, 130, 1), (5, 1, 20, 64, 3, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape[:5])))
@pytest.mark.parametrize("name", ["host", "avx2", "avx512", "neon"])
def test_attention_of_a_ragged_batch_equals_torch_and_does_not_depend_on_the_tile(
    run_kernel: Run, runnable: list[Isa], shape: Any, name: str
) -> None:
    isa = _isa(name, runnable)
    heads, kv_heads, d, page, dtype, options = shape
    batch = Batch(heads, kv_heads, d, page, dtype, *MIXED)
    decode = batch.run(run_kernel, 1, isa, **options)
    np.testing.assert_allclose(decode, batch.expected(**options), rtol=0, atol=2e-6)
    prefill = batch.run(run_kernel, 16, isa, **options)
    assert decode.tobytes() == prefill.tobytes()


def test_a_row_alone_equals_the_same_row_in_a_batch(run_kernel: Run) -> None:
    isa = host_isa()
    batch = Batch(4, 2, 64, 32, "float16", *MIXED)
    together = batch.run(run_kernel, 16, isa)
    tile = np.array([[4, 90, 3, 127]], np.int32)  # three rows of the fifth sequence
    inputs = {name: getattr(batch, name) for name in ("q", "k_pages", "v_pages", "tables")} | {"tiles": tile}
    sizes = {"tile_count": 1, "table_stride": batch.tables.shape[1]}
    alone = run_kernel(batch.kernel(16, isa), inputs, sizes, outputs={"out": (batch.q.shape, np.float32)}, isa=isa)
    assert alone["out"][90:93].tobytes() == together[90:93].tobytes()
    assert np.isnan(alone["out"][:90]).all() and np.isnan(alone["out"][93:]).all()


@pytest.mark.parametrize("tile_rows", [1, 16])
def test_pages_before_the_window_are_never_read(run_kernel: Run, tile_rows: int) -> None:
    batch = Batch(2, 1, 32, 16, "float32", (200,), (20,))
    expected = batch.expected(window=40)
    first = (200 - 20 - 39) // 16
    batch.k_pages[batch.tables[0, :first]] = np.nan
    batch.v_pages[batch.tables[0, :first]] = np.nan
    batch.tables[0, :first] = 1 << 30  # reading there ends the process
    np.testing.assert_allclose(batch.run(run_kernel, tile_rows, host_isa(), window=40), expected, rtol=0, atol=2e-6)


def test_very_unequal_scores_give_one_token_all_the_weight(run_kernel: Run) -> None:
    batch = Batch(1, 1, 16, 32, "float32", (100,), (1,))
    batch.q *= 1000
    np.testing.assert_allclose(batch.run(run_kernel, 1, host_isa()), batch.expected(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("kv_heads", "d", "page"), [(1, 7, 8), (2, 33, 32), (3, 64, 16)])
@pytest.mark.parametrize("name", ["host", "avx2", "avx512", "neon"])
def test_kv_append_writes_its_slots_and_nothing_else(
    run_kernel: Run, runnable: list[Isa], dtype: str, kv_heads: int, d: int, page: int, name: str
) -> None:
    random, width, rows = np.random.default_rng(0), kv_heads * d, 11
    merged = random.standard_normal((rows, 3 * width)).astype(np.float32) * 100
    merged[0, width] = 1e6  # more than float16 holds
    slots = random.permutation(5 * page)[:rows].astype(np.int32)
    before = random.standard_normal((5, kv_heads, d, page)).astype(dtype)
    isa = _isa(name, runnable)
    kernel = kv_append(kv_heads, d, page, dtype, isa, k=Rows(3 * width, width), v=Rows(3 * width, 2 * width))
    inputs = {"k": merged, "v": "k", "slots": slots, "k_pages": before, "v_pages": before.reshape(5, kv_heads, page, d)}
    outputs = {"k_pages": (before.shape, dtype), "v_pages": ((5, kv_heads, page, d), dtype)}
    got = run_kernel(kernel, inputs, {"rows": rows}, outputs=outputs, isa=isa)
    k_pages, v_pages = before.copy(), before.reshape(5, kv_heads, page, d).copy()
    largest = np.finfo(np.float16).max if dtype == "float16" else np.inf
    for row, slot in enumerate(slots):
        k, v = np.clip(merged[row, width:], -largest, largest).reshape(2, kv_heads, d)
        k_pages[slot // page, :, :, slot % page], v_pages[slot // page, :, slot % page] = k, v
    np.testing.assert_array_equal(got["k_pages"], k_pages)
    np.testing.assert_array_equal(got["v_pages"], v_pages)


@pytest.mark.parametrize(("name", "instruction"), [("neon", "fmla"), ("avx2", "vfmadd"), ("avx512", "zmm")])
def test_attention_compiles_to_the_vectors_of_other_machines(name: str, instruction: str) -> None:
    isa = ISAS[name]
    kernels = [paged_attention(4, 2, 64, 32, "float16", rows, 0.1, isa) for rows in (1, 16)]
    assert assembly(kernels, isa).count(instruction) > 50


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_attention_compiles_without_any_extension(name: str) -> None:
    assert assembly([paged_attention(2, 1, 32, 32, "float16", 16, 0.1, ISAS[name])], ISAS[name])


def _isa(name: str, runnable: list[Isa]) -> Isa:
    if name == "host":
        return runnable[0]
    if ISAS[name] not in runnable:
        pytest.skip(f"this machine has no {name}")
    return ISAS[name]
