"""The oracle's own oracles: every op against PyTorch or transformers, on odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from mlc.backends.reference import REFERENCE, QuantizedRows
from mlc.ir import OPS, Tensor
from mlc.ir.arrays import QuantizedArray

Array = np.ndarray[Any, Any]
FROM_NUMPY = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int8": "i8", "uint8": "u8"}


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) * np.float32(scale)


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


def t(x: Any) -> torch.Tensor:
    """The numbers of x as a torch tensor, f32 where they are floats; quantized formats by their definition."""
    if isinstance(x, QuantizedArray):
        f = x.format
        zero = 8 if f.bits == 4 and f.symmetric else 0
        q = torch.tensor(x.q.astype(np.int64) - zero, dtype=torch.float64).unflatten(-1, (-1, f.group))
        w = q * torch.tensor(x.scale.astype(np.float64))[..., None]
        if x.bias is not None:
            w = w + torch.tensor(x.bias.astype(np.float64))[..., None]
        return w.flatten(-2).float()
    return torch.tensor(x if x.dtype.kind == "i" else x.astype(np.float32))


def quantized(
    *shape: int, bits: int = 4, symmetric: bool = True, scale: str = "f16", group: int = 32
) -> QuantizedArray:
    w = rand(*shape, seed=bits)
    result: QuantizedArray = REFERENCE["quantize"](w, bits=bits, group=group, symmetric=symmetric, scale=scale)
    return result


def rows8(x: Array, group: int = 32) -> QuantizedRows:
    result: QuantizedRows = REFERENCE["quantize_rows"](x, group=group)
    return result


def type_of(x: Any) -> Tensor:
    match x:
        case QuantizedArray():
            return Tensor(x.q.shape, str(x.format))
        case QuantizedRows():
            return Tensor(x.q.shape, f"a8_g{x.q.shape[-1] // x.scale.shape[-1]}")
        case _:
            return Tensor(x.shape, FROM_NUMPY[x.dtype.name])


class Case(NamedTuple):
    op: str
    operands: tuple[Any, ...]
    attrs: Mapping[str, Any]
    oracle: Callable[..., Any]  # of the operands as torch tensors and the attributes


def rotary(theta: float = 10_000.0, dim: int = 12, **scaling: Any) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": theta, **scaling},
    )
    return LlamaRotaryEmbedding(config)


def frequencies(
    *, dim: int, theta: float, scaling: str, factor: float, low: float, high: float, original_context: int
) -> Any:
    table: dict[str, Any] = {"linear": {"rope_type": "linear", "factor": factor}, "none": {}}
    table["llama3"] = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original_context,
    }
    return rotary(theta, dim, **table[scaling]).inv_freq


def rope(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    embedding = rotary(dim=x.shape[-1])
    embedding.inv_freq = inv_freq
    cos, sin = embedding(x, positions[None])
    return apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)[0][0].transpose(0, 1)


def llama_cpp_permute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """How llama.cpp's converter reorders q and k."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def full_attention(q: Any, k: Any, v: Any, lengths: Any = None, *, scale: float) -> Any:
    seen = None if lengths is None else (torch.arange(k.shape[1]) < lengths[:, None])[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(1, 2)


def embedding(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids, table)


def mean_rows(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[:length].mean(0) for row, length in zip(x, lengths, strict=True)])


ROPE = {"dim": 12, "theta": 10_000.0, "scaling": "none", "factor": 1.0, "low": 1.0, "high": 4.0, "original_context": 0}
LLAMA3 = {**ROPE, "dim": 128, "theta": 5e5, "scaling": "llama3", "factor": 8.0, "original_context": 8192}
BF16_TIES = (np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xFF7FFFFF, 0x00000001], np.uint32)).view(np.float32)
W4, W8 = quantized(7, 64), quantized(7, 64, bits=8)
W4A, W8A = quantized(7, 64, symmetric=False, scale="f32"), quantized(7, 64, bits=8, symmetric=False, group=16)
IDS = ints(6, 0, 3, 3)

CASES = [
    Case("linear", (rand(5, 13), rand(7, 13)), {}, F.linear),
    Case("linear", (rand(2, 3, 13), rand(7, 13).astype(np.float16), rand(7)), {}, F.linear),
    Case("linear", (rand(1, 13), rand(1, 13).astype(ml_dtypes.bfloat16)), {}, F.linear),
    *(Case("linear", (rand(5, 64), w, rand(7)), {}, F.linear) for w in (W4, W8, W4A, W8A)),
    *(Case("dequantize", (w,), {}, lambda w: w) for w in (W4, W8, W4A, W8A)),
    Case("cast", (rand(3, 5, scale=1e5),), {"dtype": "f16"}, lambda x, dtype: x.half()),
    Case("cast", (BF16_TIES,), {"dtype": "bf16"}, lambda x, dtype: x.bfloat16()),
    Case("cast", (rand(5).astype(ml_dtypes.bfloat16),), {"dtype": "f32"}, lambda x, dtype: x),
    *(Case("pack", (w,), {"layout": "r16"}, lambda w, layout: w) for w in (rand(3, 5), W4)),
    Case("unpermute_rope", (llama_cpp_permute(t(rand(24, 5)), 4).numpy(),), {"heads": 4}, lambda w, heads: rand(24, 5)),
    Case("unpermute_rope", (llama_cpp_permute(t(rand(24)), 2).numpy(),), {"heads": 2}, lambda w, heads: rand(24)),
    Case(
        "unpermute_rope",
        (quantized(24, 32),),
        {"heads": 4},
        lambda w, heads: w.reshape(4, 3, 2, 32).swapaxes(1, 2).reshape(24, 32),
    ),
    Case("rms_norm", (rand(3, 13), rand(13)), {"eps": 1e-5}, lambda x, w, eps: F.rms_norm(x, (13,), w, eps)),
    Case(
        "rms_norm", (rand(2, 4, 8, scale=1e-4), rand(8)), {"eps": 1e-6}, lambda x, w, eps: F.rms_norm(x, (8,), w, eps)
    ),
    Case(
        "add_rms_norm",
        (rand(3, 13), rand(3, 13, seed=1), rand(13)),
        {"eps": 1e-5},
        lambda x, r, w, eps: (F.rms_norm(x + r, (13,), w, eps), x + r),
    ),
    Case(
        "layer_norm",
        (rand(2, 3, 13) + 4, rand(13), rand(13, seed=1)),
        {"eps": 1e-12},
        lambda x, w, b, eps: F.layer_norm(x, (13,), w, b, eps),
    ),
    *(
        Case(op, (rand(3, 4, 5), b), {}, getattr(torch, op))
        for op in ("add", "mul", "div")
        for b in (rand(3, 4, 5, seed=1), rand(4, 5), rand(5))
    ),
    Case("silu", (rand(3, 13, scale=60),), {}, F.silu),
    Case("gelu", (rand(3, 13, scale=3),), {"approximate": "none"}, F.gelu),
    Case("gelu", (rand(30, 13),), {"approximate": "tanh"}, F.gelu),
    Case("tanh", (rand(3, 13),), {}, torch.tanh),
    Case("swiglu", (rand(2, 3, 14),), {}, lambda x: F.silu(x[..., :7]) * x[..., 7:]),
    *(Case("embed", (w, IDS), {}, embedding) for w in (rand(7, 13), W4, W8, W4A)),
    Case("embed", (rand(7, 13).astype(ml_dtypes.bfloat16), IDS.reshape(2, 2)), {}, embedding),
    Case("take_rows", (rand(7, 2, 3), IDS), {}, lambda x, rows: x[rows]),
    Case("concat", (rand(2, 3), rand(1, 3), rand(4, 3)), {}, lambda *parts: torch.cat(parts)),
    *(Case("concat", (w, w), {}, lambda *parts: torch.cat(parts)) for w in (W4, W8A)),
    Case("columns", (rand(2, 3, 7),), {"start": 2, "stop": 5}, lambda x, start, stop: x[..., 2:5]),
    Case("split_heads", (rand(2, 3, 12),), {"heads": 4}, lambda x, heads: x.unflatten(-1, (4, 3))),
    Case("merge_heads", (rand(2, 3, 4, 5),), {}, lambda x: x.flatten(-2)),
    Case("prepend_row", (rand(2, 3, 5), rand(5)), {}, lambda x, row: torch.cat([row.expand(2, 1, 5), x], 1)),
    Case("take_token", (rand(2, 3, 5),), {"index": 2}, lambda x, index: x[:, 2]),
    Case("mean_rows", (rand(2, 3, 5),), {}, lambda x: x.mean(1)),
    Case("mean_rows", (rand(3, 4, 5), ints(1, 4, 3)), {}, mean_rows),
    Case("rope", (rand(5, 3, 12), ints(0, 1, 7, 4000, 2), rotary().inv_freq.numpy()), {}, rope),
    Case("rope_frequencies", (), ROPE, frequencies),
    Case("rope_frequencies", (), {**ROPE, "scaling": "linear", "factor": 2.5, "theta": 1e6}, frequencies),
    Case("rope_frequencies", (), LLAMA3, frequencies),
    *(
        Case("full_attention", (rand(2, 5, 3, 4), *kv), {"scale": 0.3}, full_attention)
        for kv in (
            (rand(2, 5, 3, 4, seed=1), rand(2, 5, 3, 4, seed=2)),
            (rand(2, 5, 3, 4, seed=1), rand(2, 5, 3, 4, seed=2), ints(5, 1)),
        )
    ),
    Case("conv2d", (rand(2, 3, 7, 6), rand(5, 3, 3, 2)), {"stride": 1, "padding": 0}, F.conv2d),
    Case("conv2d", (rand(1, 1, 8, 9), rand(2, 1, 3, 3), rand(2)), {"stride": 2, "padding": 1}, F.conv2d),
    Case("patches_to_rows", (rand(2, 5, 3, 4),), {}, lambda x: x.flatten(2).transpose(1, 2)),
]
ELSEWHERE = {"attention", "kv_append", "qkv_rope_append", "quantize", "quantize_rows"}  # test_reference_*.py


def same(actual: Any, expected: Any) -> None:
    """Equal to float32 rounding."""
    want = expected.float().numpy() if isinstance(expected, torch.Tensor) else expected
    np.testing.assert_allclose(t(actual).numpy(), want, rtol=3e-6, atol=3e-6 * max(1.0, _peak(want)))


def _peak(x: Array) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max(initial=0.0))


@pytest.mark.parametrize("case", CASES, ids=[f"{c.op}-{i}" for i, c in enumerate(CASES)])
def test_an_op_means_what_torch_says(case: Case) -> None:
    results = REFERENCE[case.op](*case.operands, **case.attrs)
    oracle = case.oracle(*map(t, case.operands), **case.attrs)
    results, oracle = (x if isinstance(x, tuple) else (x,) for x in (results, oracle))
    for actual, expected in zip(results, oracle, strict=True):
        same(actual, expected)


@pytest.mark.parametrize("case", CASES, ids=[f"{c.op}-{i}" for i, c in enumerate(CASES)])
def test_a_result_has_the_type_that_its_op_infers(case: Case) -> None:
    inferred = OPS[case.op].infer([type_of(x) for x in case.operands], case.attrs)
    results = REFERENCE[case.op](*case.operands, **case.attrs)
    actual = tuple(map(type_of, results if isinstance(results, tuple) else (results,)))
    if case.op == "pack":  # only the type knows of layouts
        actual = tuple(Tensor(r.shape, r.dtype, "r16") for r in actual if isinstance(r, Tensor))
    assert actual == inferred


def test_every_op_has_a_meaning_and_a_test() -> None:
    given = {"weight", "constant"}  # their values come from outside
    assert set(OPS) - given == set(REFERENCE)
    assert {c.op for c in CASES} | ELSEWHERE == set(REFERENCE)
