"""Normalisation over the last axis, accumulated in f32."""

from __future__ import annotations

from ..op import op, require
from ..types import Tensor


@op
def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)."""
    require(x.dtype == weight.dtype == "f32", f"rms_norm works on f32, got {x} and {weight}")
    require(weight.shape == x.shape[-1:], f"rms_norm weight {weight} does not match x {x}")
    return x


@op
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual) in one pass over memory."""
    require(x == residual, f"add_rms_norm needs equal types, got {x} and {residual}")
    require(x.dtype == weight.dtype == "f32", f"add_rms_norm works on f32, got {x} and {weight}")
    require(weight.shape == x.shape[-1:], f"add_rms_norm weight {weight} does not match x {x}")
    return x, x


@op
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias (arXiv 1607.06450)."""
    require(x.dtype == weight.dtype == bias.dtype == "f32", f"layer_norm works on f32, got {x}, {weight} and {bias}")
    require(weight.shape == bias.shape == x.shape[-1:], f"layer_norm weight {weight} and bias {bias} do not match {x}")
    return x
