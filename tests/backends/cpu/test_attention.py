"""Attention over the paged cache, and appending to it, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from mlc.backends.attention_plan import AttentionPlan
from mlc.backends.cpu.attend import Partial
from mlc.backends.cpu.attention import merge_partials, paged_attention, span_tokens
from mlc.backends.cpu.isa import ISAS, Isa, host_isa
from mlc.backends.cpu.kv import kv_append
from mlc.backends.cpu.rows import Rows
from mlc.backends.tvm.build import assembly

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]


attention_kernel, merge_kernel = cache(paged_attention), cache(merge_partials)  # compiled once each


def block(size: int) -> int:
    """Tokens or columns that lie together in a page."""
    return 32 if size % 32 == 0 else size


def sixteens(d: int) -> int:
    """Columns of keys and values in bytes."""
    return -(-d // 16) * 16


def as_bytes(x: Array) -> tuple[Array, Array]:
    """(q int8, scale) of each row of the last axis: x is about q * scale."""
    peak = np.abs(x.astype(np.float32)).max(axis=-1, keepdims=True)
    return np.rint(x * (np.float32(127) / peak)).astype(np.int8), peak / np.float32(127)


def means(x: Array, dtype: str) -> Array:
    """What is kept of x, as float64."""
    if dtype != "int8":
        return x.astype(np.float64)
    q, scale = as_bytes(x)
    return q.astype(np.float64) * scale


def page_size(tokens: int, d: int, dtype: str) -> int:
    """Numbers of a page and head."""
    return (sixteens(d) + 4) * tokens if dtype == "int8" else d * tokens


def write(pages: tuple[Array, Array], shape: tuple[int, int], page: int, offset: int, k: Array, v: Array) -> None:
    """Put a token's k and v [kv_heads, d] into keys and values [pages, kv_heads, page_size] of pages of tokens."""
    tokens, d = shape
    (keys, values), four = pages, 1
    if keys.dtype == np.int8:  # four elements of a key are neighbours, and those of four values; scales come last
        four, depth = 4, sixteens(d)
        (k, k_scale), (v, v_scale) = as_bytes(k), as_bytes(v)
        for memory, scale in ((keys, k_scale), (values, v_scale)):
            memory[page, :, depth * tokens :].view(np.float32)[:, offset] = scale[:, 0]
        k = np.pad(k, ((0, 0), (0, depth - d))) ^ np.int8(0 if host_isa().signed_bytes else -128)
        v = np.pad(v, ((0, 0), (0, depth - d)))
        d = depth
    some, wide, heads = block(tokens), block(d), len(k)
    for head in range(heads):
        block_of_keys = keys[page, head, : d * tokens].reshape(-1, d // four, some, four)
        block_of_keys[offset // some, :, offset % some] = k[head].reshape(-1, four)
        blocks = values[page, head, : d * tokens].reshape(-1, tokens // four, wide, four)
        blocks[:, offset // four, :, offset % four] = v[head].reshape(-1, wide)


@dataclass
class Step:
    positions: Array
    starts: Array
    tables: Array


@dataclass
class Batch:
    """Sequences of `contexts` tokens, the last `new` of them being this step's rows; unused memory is NaN.

    `alike` holds (sequence, an earlier one, tokens): so many tokens at the beginning are the same in both, and lie in
    the same pages if `shared`.
    """

    heads: int
    kv_heads: int
    d: int
    page: int
    dtype: str
    contexts: tuple[int, ...]
    new: tuple[int, ...]
    alike: tuple[tuple[int, int, int], ...] = ()
    shared: bool = True

    def __post_init__(self) -> None:
        random = np.random.default_rng(len(self.contexts) + self.d)
        counts = [-(-context // self.page) for context in self.contexts]
        pages = sum(counts) + 2
        order = iter(random.permutation(pages))
        size = pages, self.kv_heads, page_size(self.page, self.d, self.dtype) * np.dtype(self.dtype).itemsize
        self.k_pages, self.v_pages = (np.full(size, 0xFF, np.uint8).view(self.dtype) for _ in range(2))  # NaN
        self.tables = np.full((len(counts), max(counts) + 1), 1 << 30, np.int32)
        self.k: list[Array] = []
        self.v: list[Array] = []
        for sequence, (context, count) in enumerate(zip(self.contexts, counts, strict=True)):
            self.tables[sequence, :count] = [next(order) for _ in range(count)]
            k, v = (
                random.standard_normal((context, self.kv_heads, self.d)).astype(self.dtype.replace("int8", "float32"))
                for _ in range(2)
            )
            for source, tokens in ((b, tokens) for a, b, tokens in self.alike if a == sequence):
                k[:tokens], v[:tokens] = self.k[source][:tokens], self.v[source][:tokens]
                if self.shared:
                    self.tables[sequence, : tokens // self.page] = self.tables[source, : tokens // self.page]
            for token in range(context):
                page, offset = self.tables[sequence, token // self.page], token % self.page
                write((self.k_pages, self.v_pages), (self.page, self.d), page, offset, k[token], v[token])
            self.k.append(k)
            self.v.append(v)
        self.q = random.standard_normal((sum(self.new), self.heads, self.d)).astype(np.float32)

    def step(self) -> Step:
        """What the plan reads of this batch."""
        ends = np.cumsum(self.new)
        positions = [np.arange(c - n, c) for c, n in zip(self.contexts, self.new, strict=True)]
        return Step(
            np.concatenate(positions).astype(np.int32), np.array([0, *ends], np.int32), np.minimum(self.tables, 1 << 20)
        )

    def run(
        self, run_kernel: Run, tile_rows: int, isa: Isa, *, threads: int = 1, only: int | None = None, **options: Any
    ) -> Array:
        """The three kernels as a step calls them; with `tile_rows` 1 every row is a sequence of its own.

        `threads` decides how the plan cuts contexts. `only`: a single one of the tiles of several rows.
        """
        step = self.step()
        if tile_rows == 1:
            owner = np.repeat(np.arange(len(self.new)), self.new)
            step = Step(step.positions, np.arange(len(owner) + 1, dtype=np.int32), step.tables[owner])
        plan = AttentionPlan(
            page=self.page,
            span=span_tokens(self.page),
            tile_rows=tile_rows,
            kv_heads=self.kv_heads,
            max_tokens=len(step.positions),
            max_sequences=len(step.starts) - 1,
            max_context=max(self.contexts),
            threads=threads,
        )
        self.sizes = plan.fill(step)
        out = np.full((len(self.q), self.heads, self.d), np.nan, np.float32)
        partials = np.full((plan.partials, self.heads, Partial.size(self.d)), np.nan, np.float32)
        common = {name: getattr(self, name) for name in ("q", "k_pages", "v_pages")}
        common |= {"tables": step.tables, "members": plan.members}
        shape = self.heads, self.kv_heads, self.d, self.page, self.dtype
        written = {"out": (out.shape, np.float32), "partials": (partials.shape, np.float32)}
        for name, rows in (("single_tiles", 1), ("tiles", tile_rows)):
            tiles = getattr(plan, name)[: self.sizes[name]]
            if only is not None and name == "tiles":
                tiles = tiles[only : only + 1]
            if len(tiles):
                kernel = attention_kernel(*shape, rows, 0.2, isa, **options)
                inputs = {**common, "tiles": tiles, "out": out, "partials": partials}
                sizes = {"tile_count": len(tiles), "table_stride": step.tables.shape[1]}
                got = run_kernel(kernel, inputs, sizes, outputs=written, isa=isa)
                out, partials = got["out"].copy(), got["partials"].copy()
        if self.sizes["merges"]:
            kernel = merge_kernel(self.heads, self.d, self.page, isa, window=options.get("window", 0))
            inputs = {"members": plan.members, "partials": partials, "out": out}
            sizes = {"merge_count": self.sizes["merges"]}
            out = run_kernel(kernel, inputs, sizes, outputs={"out": written["out"]}, isa=isa)["out"]
        return out

    def expected(self, window: int = 0, softcap: float = 0.0) -> Array:
        out, row = [], 0
        for context, new, k, v in zip(self.contexts, self.new, self.k, self.v, strict=True):
            position = torch.arange(context - new, context)[:, None]
            behind = position - torch.arange(context)[None]
            mask = (behind >= 0) & (behind < (window or context))
            q = torch.tensor(means(self.q[row : row + new], self.dtype)).transpose(0, 1)
            k, values = (torch.tensor(means(x, self.dtype)).transpose(0, 1) for x in (k, v))
            k, values = (x.repeat_interleave(self.heads // self.kv_heads, 0) for x in (k, values))
            if softcap or self.dtype == "int8":
                scores = q @ k.mT * 0.2
                scores = torch.tanh(scores / softcap) * softcap if softcap else scores
                weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
                result = (self._rounded(weights, v) if self.dtype == "int8" else weights) @ values
            else:
                result = torch.nn.functional.scaled_dot_product_attention(q, k, values, attn_mask=mask, scale=0.2)
            out.append(result.transpose(0, 1).numpy())
            row += new
        return np.concatenate(out)

    def _rounded(self, weights: torch.Tensor, v: Array) -> torch.Tensor:
        """The weights of each span, times the scales of the values, as 0 .. 127 times one scale."""
        scale = torch.tensor(as_bytes(v)[1][..., 0].astype(np.float64)).T  # [kv_heads, context]
        scale = scale.repeat_interleave(self.heads // self.kv_heads, 0)[:, None]
        spans = torch.split(weights * scale, span_tokens(self.page), dim=-1)
        peaks = [(span.amax(-1, keepdim=True) / 127).clamp(min=1e-30) for span in spans]
        return torch.cat([torch.round(x / peak) * peak for x, peak in zip(spans, peaks, strict=True)], dim=-1) / scale


def assert_near(got: Array, expected: Array, dtype: str) -> None:
    errors = np.abs(got - expected)
    if dtype == "int8":  # a weight that lies between two bytes may become the other one
        assert np.mean(errors > 4e-6) < 2e-3 and errors.max() < 2e-2
    else:
        assert errors.max() < 4e-6


# heads, kv_heads, d, page, dtype, options
SHAPES = [
    (4, 2, 64, 32, "float16", {}),
    (2, 2, 128, 32, "float32", {}),
    (7, 1, 32, 16, "float16", {"window": 50}),
    (3, 3, 80, 32, "float16", {"softcap": 2.0}),
    (16, 1, 24, 8, "float32", {"window": 7}),
    (1, 1, 5, 128, "float32", {}),
    (2, 1, 256, 48, "float16", {"window": 64, "softcap": 5.0}),
    (4, 2, 64, 32, "int8", {}),
    (5, 1, 33, 8, "int8", {"window": 300}),
    (6, 2, 128, 64, "int8", {"softcap": 2.0}),
]
# whole prompts, decoding, later parts of prompts, and both sides of where a span ends
MIXED = ((5, 100, 33, 64, 130, 1, 700, 256, 257, 520), (5, 1, 20, 64, 3, 1, 1, 1, 2, 20))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape[:5])))
@pytest.mark.parametrize("name", ["host", "avx2", "avx512", "neon"])
def test_attention_of_a_ragged_batch_equals_torch_and_does_not_depend_on_the_tile(
    run_kernel: Run, runnable: list[Isa], shape: Any, name: str
) -> None:
    isa = _isa(name, runnable)
    heads, kv_heads, d, page, dtype, options = shape
    batch = Batch(heads, kv_heads, d, page, dtype, *MIXED)
    decode = batch.run(run_kernel, 1, isa, **options)
    assert_near(decode, batch.expected(**options), dtype)
    for tile_rows, threads in ((16, 1), (3, 1), (16, 8), (1, 8)):
        other = batch.run(run_kernel, tile_rows, isa, threads=threads, **options)
        assert decode.tobytes() == other.tobytes(), f"tiles of {tile_rows} rows, for {threads} threads"


ALIKE = ((1, 0, 512), (2, 0, 768), (3, 2, 752), (5, 4, 256))  # whole pages of 16, not always whole spans
CONTEXTS = (1000, 513, 769, 1030, 257, 700, 512)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("new", [1, 2], ids=["decode", "mixed"])
@pytest.mark.parametrize("options", [{}, {"window": 300}, {"softcap": 3.0}], ids=str)
def test_what_sequences_share_is_read_once_and_gives_the_same_bits(
    run_kernel: Run, new: int, threads: int, options: Any
) -> None:
    counts = (1, 1, 1, 1, 1, 1, new)
    apart = Batch(4, 2, 32, 16, "float16", CONTEXTS, counts, ALIKE, shared=False)
    shared = Batch(4, 2, 32, 16, "float16", CONTEXTS, counts, ALIKE)
    expected = apart.run(run_kernel, 8, host_isa(), **options)
    np.testing.assert_allclose(expected, apart.expected(**options), rtol=0, atol=4e-6)
    assert apart.sizes["merges"] == 0
    assert shared.run(run_kernel, 8, host_isa(), threads=threads, **options).tobytes() == expected.tobytes()
    assert shared.sizes["merges"] == 6 + (new == 1) and shared.sizes["tiles"] > 2


def test_a_row_alone_equals_the_same_row_in_a_batch(run_kernel: Run) -> None:
    batch = Batch(4, 2, 64, 32, "float16", (5, 100, 33), (5, 100, 33))
    together = batch.run(run_kernel, 16, host_isa())
    alone = batch.run(run_kernel, 16, host_isa(), only=3)  # rows 32 .. 48 of the second sequence
    assert alone[37:53].tobytes() == together[37:53].tobytes()
    assert np.isnan(alone[:37]).all() and np.isnan(alone[53:]).all()


@pytest.mark.parametrize("tile_rows", [1, 16])
def test_pages_before_the_window_are_never_read(run_kernel: Run, tile_rows: int) -> None:
    batch = Batch(2, 1, 32, 16, "float32", (200,), (20,))
    expected = batch.expected(window=40)
    first = (200 - 20 - 39) // 16
    batch.k_pages[batch.tables[0, :first]] = np.nan
    batch.v_pages[batch.tables[0, :first]] = np.nan
    batch.tables[0, :first] = 1 << 30  # reading there ends the process
    np.testing.assert_allclose(batch.run(run_kernel, tile_rows, host_isa(), window=40), expected, rtol=0, atol=4e-6)


def test_very_unequal_scores_give_one_token_all_the_weight(run_kernel: Run) -> None:
    batch = Batch(1, 1, 16, 32, "float32", (100,), (1,))
    batch.q *= 1000
    np.testing.assert_allclose(batch.run(run_kernel, 1, host_isa()), batch.expected(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("kv_heads", "d", "page"), [(1, 7, 8), (2, 33, 32), (3, 64, 16)])
@pytest.mark.parametrize("name", ["host", "avx2", "avx512", "neon"])
def test_kv_append_writes_its_slots_and_nothing_else(
    run_kernel: Run, runnable: list[Isa], dtype: str, kv_heads: int, d: int, page: int, name: str
) -> None:
    random, width, rows = np.random.default_rng(0), kv_heads * d, 11
    merged = random.standard_normal((rows, 3 * width)).astype(np.float32) * 100
    merged[0, width] = 1e6  # more than float16 holds
    slots = random.permutation(5 * page)[:rows].astype(np.int32)
    before = (random.standard_normal((5, kv_heads, page_size(page, d, dtype))) * 9).astype(dtype)
    isa = _isa(name, runnable)
    kernel = kv_append(kv_heads, d, page, dtype, isa, k=Rows(3 * width, width), v=Rows(3 * width, 2 * width))
    inputs = {"k": merged, "v": "k", "slots": slots, "k_pages": before, "v_pages": before}
    outputs = {name: (before.shape, dtype) for name in ("k_pages", "v_pages")}
    got = run_kernel(kernel, inputs, {"rows": rows}, outputs=outputs, isa=isa)
    k_pages, v_pages = before.copy(), before.copy()
    largest = np.finfo(np.float16).max if dtype == "float16" else np.inf
    for row, slot in enumerate(slots):
        k, v = np.clip(merged[row, width:], -largest, largest).reshape(2, kv_heads, d)
        write((k_pages, v_pages), (page, d), slot // page, slot % page, k, v)
    assert got["k_pages"].tobytes() == k_pages.tobytes()
    assert got["v_pages"].tobytes() == v_pages.tobytes()


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
