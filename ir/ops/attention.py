"""Rotation by position, the paged KV cache, and attention with and without it.

Causality, window and scale are attributes of the op; there is no default mask.
"""

from __future__ import annotations

from ..op import op, require
from ..types import State, Tensor


@op
def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate pair (i, i + d/2) of each head by positions * frequencies[i]: f32[n, heads, d], i32[n], f32[d/2]."""
    require(len(x.shape) == 3 and x.dtype == "f32", f"rope needs f32[n, heads, d], got {x}")
    require(positions == Tensor(x.shape[:1], "i32"), f"rope positions {positions} do not match x {x}")
    width = x.shape[-1]
    require(isinstance(width, int) and width % 2 == 0, f"rope turns pairs of numbers, and {x} has an odd one")
    require(isinstance(width, int) and frequencies == Tensor((width // 2,), "f32"), f"{frequencies} does not fit {x}")
    return x


@op
def kv_append(kv: State, k: Tensor, v: Tensor, *, layer: int) -> State:
    """Write this step's k, v f32[n, kv_heads, d] into the pages of their sequences."""
    require(kv.kind == "kv", f"kv_append needs state<kv, ...>, got {kv}")
    require(k == v and len(k.shape) == 3 and k.dtype == "f32", f"kv_append needs f32[n, kv_heads, d], got {k} and {v}")
    require(layer >= 0, f"kv_append cannot write layer {layer}")
    return kv


@op
def attention(q: Tensor, kv: State, *, layer: int, kv_heads: int, scale: float, window: int) -> Tensor:
    """Causal attention of q f32[n, heads, d] over the cached tokens of each row's own sequence, in ragged layout.

    A row at position p reads positions max(0, p - window + 1) .. p; window 0 means all. Head h reads kv head
    h // (heads / kv_heads).
    """
    require(kv.kind == "kv", f"attention needs state<kv, ...>, got {kv}")
    require(len(q.shape) == 3 and q.dtype == "f32", f"attention needs f32[n, heads, d], got {q}")
    heads = q.shape[1]
    require(isinstance(heads, int) and kv_heads > 0 and heads % kv_heads == 0, f"{q} does not divide into {kv_heads}")
    require(window >= 0, f"attention window must be 0 (none) or positive, got {window}")
    return q


@op
def qkv_rope_append(
    kv: State,
    qkv: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    *,
    layer: int,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, State]:
    """All that lies between the merged q/k/v product and attention, in one pass over the row.

    qkv f32[n, (heads + 2 kv_heads) d] is cut into q, k and v; q and k are RMS-normed per head where q_norm and k_norm
    f32[d] are given, then rotated; k and v are appended to the cache. Returns q f32[n, heads, d] and the new state.
    """
    width = qkv.shape[-1]
    require(qkv.dtype == "f32" and len(qkv.shape) == 2, f"qkv_rope_append needs f32[n, width], got {qkv}")
    require(kv_heads > 0 and heads > 0 and heads % kv_heads == 0, f"{heads} heads do not divide into {kv_heads}")
    parts = heads + 2 * kv_heads
    require(isinstance(width, int) and width % parts == 0, f"{qkv} does not hold {heads} + 2 * {kv_heads} heads")
    assert isinstance(width, int)
    d = width // parts
    require(d % 2 == 0 and frequencies == Tensor((d // 2,), "f32"), f"{frequencies} does not fit heads of {d}")
    require((q_norm is None) == (k_norm is None), "q_norm and k_norm come together")
    require(q_norm is None or q_norm == k_norm == Tensor((d,), "f32"), f"{q_norm}, {k_norm} do not fit heads of {d}")
    require(positions == Tensor(qkv.shape[:1], "i32"), f"positions {positions} do not match {qkv}")
    require(kv.kind == "kv", f"qkv_rope_append needs state<kv, ...>, got {kv}")
    return Tensor((qkv.shape[0], heads, d), "f32"), kv


@op
def full_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, *, scale: float) -> Tensor:
    """Bidirectional attention within each batch item: f32[b, t, heads, d] each; with lengths i32[b], over the first
    lengths[b] rows of k and v only.
    """
    require(q == k == v and len(q.shape) == 4 and q.dtype == "f32", f"full_attention got {q}, {k}, {v}")
    require(lengths is None or lengths == Tensor(q.shape[:1], "i32"), f"lengths {lengths} do not match {q}")
    return q
