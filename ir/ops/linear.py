"""Matrix products and the number formats of their operands."""

from __future__ import annotations

from ..op import op, require
from ..types import ACTIVATION, Format, Tensor, is_dtype


@op
def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ w.T + bias: f32 or a8 [..., k], any format [m, k], f32[m] -> f32[..., m]. Accumulated in f32."""
    require(len(w.shape) == 2 and x.shape[-1:] == w.shape[-1:], f"linear needs x[..., k] and w[m, k], got {x} and {w}")
    require(x.dtype == "f32" or ACTIVATION.fullmatch(x.dtype) is not None, f"linear takes f32 or a8 rows, got {x}")
    if ACTIVATION.fullmatch(x.dtype):
        require(w.format is not None and x.dtype == f"a8_g{w.format.group}", f"linear cannot pair {x} with {w}")
    require(bias is None or bias == Tensor(w.shape[:1], "f32"), f"linear bias {bias} does not match {w}")
    return Tensor((*x.shape[:-1], w.shape[0]), "f32")


@op
def quantize(w: Tensor, *, bits: int, group: int, symmetric: bool, scale: str) -> Tensor:
    """Round each group of the last axis to `bits` bits; see `ir.types.Format` for the meaning of the result.

    Symmetric: scale = max|w| / 7 or / 127, with the sign that puts the largest magnitude on -8 where that is closer.
    Asymmetric: scale = (max - min) / (2^bits - 1), bias = min.
    """
    require(bits in (4, 8) and group > 0, f"cannot quantize to {bits} bits in groups of {group}")
    require(scale in ("f16", "f32"), f"scales are f16 or f32, not {scale!r}")
    k = w.shape[-1]
    require(isinstance(k, int) and k % group == 0, f"cannot quantize {w} in groups of {group}")
    require(w.dtype in ("f32", "f16", "bf16"), f"cannot quantize {w}")
    return Tensor(w.shape, str(Format(bits, group, symmetric, scale)))


@op
def dequantize(w: Tensor) -> Tensor:
    """The f32 numbers that a quantized tensor stands for."""
    require(w.format is not None and not w.layout, f"cannot dequantize {w}")
    return Tensor(w.shape, "f32")


@op
def quantize_rows(x: Tensor, *, group: int) -> Tensor:
    """Activations as int8: each group of a row has scale = max|x| / 127 (f32), q = rint(x / scale), the sum of q."""
    k = x.shape[-1]
    require(isinstance(k, int) and k % group == 0 and x.dtype == "f32", f"cannot quantize {x} in groups of {group}")
    return Tensor(x.shape, f"a8_g{group}")


@op
def pack(w: Tensor, *, layout: str) -> Tensor:
    """The same numbers, their bytes in the order a target's kernels read them."""
    require(not w.layout, f"{w} is packed already")
    require(len(w.shape) == 2, f"only matrices are packed, got {w}")
    return Tensor(w.shape, w.dtype, layout)


@op
def cast(x: Tensor, *, dtype: str) -> Tensor:
    """The same numbers in another number type, rounded to nearest even."""
    require(is_dtype(dtype) and x.format is None, f"cannot cast {x} to {dtype}")
    return Tensor(x.shape, dtype)


@op
def unpermute_rope(w: Tensor, *, heads: int) -> Tensor:
    """Rows of q or k from adjacent-pair to half-split rotation: [heads, d/2, 2, ...] -> [heads, 2, d/2, ...].

    GGUF files of the llama architecture store q and k for adjacent pairs; attention here rotates halves.
    """
    rows = w.shape[0]
    require(isinstance(rows, int) and rows % (2 * heads) == 0, f"{w} has no {heads} heads of even size")
    return w
