"""Matrix products and the number formats of their operands."""

from __future__ import annotations

from ..op import op, require
from ..types import ACTIVATION, FLOATS, Format, Tensor


@op
def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ w.T + bias: f32 or a8 [..., k], any format [m, k], f32[m] -> f32[..., m]. Accumulated in f32.

    For a8 rows the products within a group are exact integers; scaled, they are added up in the order of the groups.
    """
    require(len(w.shape) == 2 and x.shape[-1:] == w.shape[-1:], f"linear needs x[..., k] and w[m, k], got {x} and {w}")
    require(x.dtype == "f32" or ACTIVATION.fullmatch(x.dtype) is not None, f"linear takes f32 or a8 rows, got {x}")
    require(w.is_weight and not x.layout, f"linear cannot multiply {x} with {w}")
    if ACTIVATION.fullmatch(x.dtype):
        require(w.format is not None and x.dtype == f"a8_g{w.format.group}", f"linear cannot pair {x} with {w}")
    require(bias is None or bias == Tensor(w.shape[:1], "f32"), f"linear bias {bias} does not match {w}")
    return Tensor((*x.shape[:-1], w.shape[0]), "f32")


@op
def quantize(w: Tensor, *, bits: int, group: int, symmetric: bool, scale: str) -> Tensor:
    """Round each group of the last axis to `bits` bits; see `ir.types.Format` for the meaning of the result.

    8 bits: scale = max|w| / 127. 4 and 6 bits: the scale that gives the least squared error of those that put the
    number of largest magnitude at -zero - 1, -zero - 0.75 .. -zero + 1, clipped to -zero (ggml's Q4_0 always takes -8).
    Asymmetric: scale = (max - min) / (2^bits - 1), bias = min. Numbers are rounded with the stored scale and bias.
    """
    require(bits in (4, 6, 8) and group > 0, f"cannot quantize to {bits} bits in groups of {group}")
    require(scale in ("f16", "f32"), f"scales are f16 or f32, not {scale!r}")
    k = w.shape[-1]
    require(isinstance(k, int) and k % group == 0, f"cannot quantize {w} in groups of {group}")
    require(w.dtype in FLOATS and not w.layout, f"cannot quantize {w}")
    return Tensor(w.shape, str(Format(bits, group, symmetric, scale)))


@op
def dequantize(w: Tensor) -> Tensor:
    """The f32 numbers that a quantized tensor stands for."""
    require(w.format is not None and not w.layout, f"cannot dequantize {w}")
    return Tensor(w.shape, "f32")


@op
def quantize_rows(x: Tensor, *, group: int) -> Tensor:
    """Activations as int8: each group of a row has scale = max|x| / 127 in f32, q = rint(x * (127 / max|x|)) and the
    sum of q as i32. A group whose magnitudes are all below 1e-30 becomes zeros.
    """
    k = x.shape[-1]
    require(group > 0 and x.dtype == "f32" and not x.layout, f"cannot quantize {x} in groups of {group}")
    require(isinstance(k, int) and k % group == 0, f"cannot quantize {x} in groups of {group}")
    return Tensor(x.shape, f"a8_g{group}")


@op
def pack(w: Tensor, *, layout: str) -> Tensor:
    """The same numbers, their bytes in the order a target's kernels read them."""
    require(not w.layout, f"{w} is packed already")
    require(len(w.shape) == 2 and w.is_weight, f"only matrices of weights are packed, got {w}")
    require(layout.isalnum() and layout.isascii(), f"{layout!r} is no name of a layout")
    return Tensor(w.shape, w.dtype, layout)


@op
def cast(x: Tensor, *, dtype: str) -> Tensor:
    """The same numbers in another float type, rounded to nearest even."""
    require(x.dtype in FLOATS and dtype in FLOATS and not x.layout, f"cannot cast {x} to {dtype!r}")
    return Tensor(x.shape, dtype)


@op
def unpermute_rope(w: Tensor, *, heads: int) -> Tensor:
    """Rows of q or k from adjacent-pair to half-split rotation: [heads, d/2, 2, ...] -> [heads, 2, d/2, ...].

    GGUF files of the llama architecture store q and k for adjacent pairs; attention here rotates halves.
    """
    rows = w.shape[0]
    require(w.is_weight and not w.layout and heads > 0, f"cannot unpermute {w} with {heads} heads")
    require(isinstance(rows, int) and rows % (2 * heads) == 0, f"{w} has no {heads} heads of even size")
    return w
