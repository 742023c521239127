"""Data of tensors that numpy has no dtype for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc.errors import BadCheckpoint

from .types import Format

Array = np.ndarray[Any, Any]

_SCALES = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedArray:
    """The numbers of a quantized tensor, unpacked: one byte for each `q`, 4-bit ones too.

    q [..., k] is int8 for symmetric 8 bits and uint8 for the rest; scale and bias [..., k / group] have the format's
    scale dtype; bias is None for a symmetric format.
    """

    q: Array
    scale: Array
    bias: Array | None
    format: Format

    def check(self) -> None:
        """Raises BadCheckpoint where shapes or dtypes do not fit the format."""
        f = self.format
        groups = (*self.q.shape[:-1], self.q.shape[-1] // f.group)
        q_dtype = np.int8 if f.bits == 8 and f.symmetric else np.uint8
        problems = []
        if self.q.dtype != q_dtype or self.q.shape[-1] % f.group:
            problems.append(
                f"q is {self.q.dtype}{list(self.q.shape)}, expected {np.dtype(q_dtype)} in groups of {f.group}"
            )
        for name, part in (("scale", self.scale), ("bias", self.bias)):
            if part is not None and (part.shape != groups or part.dtype != _SCALES[f.scale]):
                problems.append(f"{name} is {part.dtype}{list(part.shape)}, expected {_SCALES[f.scale]}{list(groups)}")
        if (self.bias is None) != f.symmetric:
            problems.append(f"{f} {'has no' if f.symmetric else 'needs a'} bias")
        if problems:
            raise BadCheckpoint(f"this is no {f} array: {'; '.join(problems)}")

    def dequantize(self) -> Array:
        """The float32 numbers, of q's shape: scale * (q - 8), scale * q, or scale * q + bias (see `Format`)."""
        f = self.format
        grouped = self.q.reshape(*self.q.shape[:-1], -1, f.group).astype(np.float32)
        if f.bits == 4 and f.symmetric:
            grouped -= 8
        grouped *= self.scale[..., None].astype(np.float32)
        if self.bias is not None:
            grouped += self.bias[..., None].astype(np.float32)
        return grouped.reshape(self.q.shape)
