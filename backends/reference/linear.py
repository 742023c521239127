"""Matrix products and the number formats of their operands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlc.ir.arrays import QuantizedArray

from .parts import NUMPY, Array, Data, as_f32, on_parts
from .quantization import quantize

__all__ = ["QuantizedRows", "cast", "dequantize", "linear", "pack", "quantize", "quantize_rows", "unpermute_rope"]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedRows:
    """The value of an `a8` tensor: q int8[..., k], and for each group of it scale f32 and the sum of q as int32."""

    q: Array
    scale: Array
    sum: Array

    def dequantize(self) -> Array:
        """The float32 numbers that stand for the rows, of q's shape."""
        result: Array = self.q * np.repeat(self.scale, self.q.shape[-1] // self.scale.shape[-1], axis=-1)
        return result


def linear(x: Array | QuantizedRows, w: Data, bias: Array | None = None) -> Array:
    if isinstance(x, QuantizedRows):
        assert isinstance(w, QuantizedArray), "only quantized weights take int8 rows"
        y = _integer_product(x, w)
    else:
        y = x @ as_f32(w).T
    return y if bias is None else y + bias


def _integer_product(x: QuantizedRows, w: QuantizedArray) -> Array:
    """Exact integer products of groups, then scaled and added up in f32, in the order of the groups."""
    group = w.format.group
    scales, biases = w.group_scales(), w.group_biases()
    y = np.zeros((*x.q.shape[:-1], len(w.q)), np.float32)
    for g in range(scales.shape[-1]):
        span = slice(g * group, (g + 1) * group)
        dot = x.q[..., span].astype(np.float64) @ (w.q[:, span].T - float(w.format.zero))  # exact: far below 2^53
        x_scale = x.scale[..., g, None]
        y += dot.astype(np.float32) * (scales[:, g] * x_scale)
        if biases is not None:
            y += biases[:, g] * (x.sum[..., g, None].astype(np.float32) * x_scale)
    return y


def dequantize(w: QuantizedArray) -> Array:
    return w.dequantize()


def quantize_rows(x: Array, *, group: int) -> QuantizedRows:
    groups = x.reshape(*x.shape[:-1], -1, group)
    peak = np.abs(groups).max(axis=-1)
    usable = peak > 1e-30  # below, 127 / peak could overflow
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=usable)
    q = np.rint(groups * inverse[..., None]).astype(np.int8)
    scale = np.where(usable, peak * np.float32(1 / 127), np.float32(0))
    return QuantizedRows(q.reshape(x.shape), scale, q.sum(axis=-1, dtype=np.int32))


def pack(w: Data, *, layout: str) -> Data:
    """Layouts say where bytes lie; the reference computes with numbers."""
    return w


def cast(x: Array, *, dtype: str) -> Array:
    with np.errstate(over="ignore"):  # what f16 cannot hold becomes infinite, as everywhere
        return x.astype(NUMPY[dtype])


def unpermute_rope(w: Data, *, heads: int) -> Data:
    return on_parts(lambda p: p.reshape(heads, -1, 2, *p.shape[1:]).swapaxes(1, 2).reshape(p.shape), w)
