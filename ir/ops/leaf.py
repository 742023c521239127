"""Ops without operands: what a graph starts from besides its inputs."""

from __future__ import annotations

from ..op import op, require
from ..types import Tensor, is_dtype


@op
def weight(*, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The checkpoint tensor called `name`, in the checkpoint's own dtype or quantized format."""
    require(is_dtype(dtype), f"weight {name!r} has the unknown dtype {dtype!r}")
    require(all(0 < d < 1 << 48 for d in shape), f"weight {name!r} has the impossible shape {shape}")
    return Tensor(shape, dtype)


@op
def constant(*, name: str, shape: tuple[int, ...], dtype: str, layout: str) -> Tensor:
    """The artifact's tensor called `name`: computed from weights alone when the model was converted."""
    require(is_dtype(dtype), f"constant {name!r} has the unknown dtype {dtype!r}")
    require(layout == "" or (layout.isalnum() and layout.isascii()), f"{layout!r} is no name of a layout")
    require(all(0 < d < 1 << 48 for d in shape), f"constant {name!r} has the impossible shape {shape}")
    return Tensor(shape, dtype, layout)


@op
def rope_frequencies(
    *,
    dim: int,
    theta: float,
    scaling: str,
    factor: float,
    low: float,
    high: float,
    original_context: int,
) -> Tensor:
    """Radians per position of each rotated pair: theta^(-2i/dim), f32[dim/2] (RoFormer, arXiv 2104.09864).

    scaling 'none'; 'linear' divides by `factor` (arXiv 2306.15595); 'llama3' divides the frequencies whose wavelength
    is over original_context/low by `factor`, keeps those under original_context/high, and blends between (Llama 3.1).
    """
    require(dim > 0 and dim % 2 == 0, f"rope_frequencies needs an even dim, got {dim}")
    require(scaling in ("none", "linear", "llama3"), f"unknown rope scaling {scaling!r}")
    require(theta > 0 and factor > 0, f"rope_frequencies needs theta > 0 and factor > 0, got {theta} and {factor}")
    blends = scaling != "llama3" or (0 < low < high and original_context > 0)
    require(blends, f"llama3 scaling needs 0 < low < high and a context, got {low}, {high} and {original_context}")
    return Tensor((dim // 2,), "f32")
