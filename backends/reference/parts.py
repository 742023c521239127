"""Quantized and plain arrays alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from mlc.ir.arrays import QuantizedArray

Array = np.ndarray[Any, Any]
Data = Array | QuantizedArray

NUMPY = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i32": np.dtype(np.int32),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
}


def as_f32(x: Data) -> Array:
    """The numbers of `x` as float32."""
    return x.dequantize() if isinstance(x, QuantizedArray) else x.astype(np.float32, copy=False)


def on_parts(move: Callable[..., Array], *operands: Data) -> Data:
    """`move(*operands)`, part by part for quantized ones. `move` moves whole rows: the parts differ in width."""
    first = operands[0]
    if not isinstance(first, QuantizedArray):
        return move(*operands)
    quantized = [x for x in operands if isinstance(x, QuantizedArray)]
    assert len(quantized) == len(operands), "quantized and plain operands do not mix"
    parts = [x.parts for x in quantized]
    return QuantizedArray.of({name: move(*(of[name] for of in parts)) for name in parts[0]}, first.format)
