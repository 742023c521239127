"""Data of tensors that numpy has no dtype for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc.errors import BadCheckpoint

from .types import Format

Array = np.ndarray[Any, Any]

_DTYPES = {name: np.dtype(of) for name, of in (("f32", "f4"), ("f16", "f2"), ("i8", "i1"), ("u8", "u1"))}


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedArray:
    """The numbers of a quantized tensor, unpacked: one byte for each `q`, those of fewer bits too.

    q is [..., k], the other parts [..., k / numbers that share one]: `Format.parts` tells which there are, and their
    dtypes. What a format does not have is None.
    """

    q: Array
    scale: Array
    bias: Array | None
    format: Format
    super_scale: Array | None = None
    super_bias: Array | None = None

    @property
    def parts(self) -> dict[str, Array]:
        """Those that are there, by name."""
        named = {name: getattr(self, name) for name in ("q", "scale", "bias", "super_scale", "super_bias")}
        return {name: part for name, part in named.items() if part is not None}

    @staticmethod
    def of(parts: Mapping[str, Array], format: Format) -> QuantizedArray:
        """The inverse of `parts`."""
        q, scale, *rest = (parts.get(name) for name in ("q", "scale", "bias", "super_scale", "super_bias"))
        assert q is not None and scale is not None, f"{format} has numbers and scales"
        return QuantizedArray(q, scale, rest[0], format, *rest[1:])

    def check(self) -> None:
        """Raises BadCheckpoint where parts, shapes or dtypes do not fit the format."""
        f, k = self.format, self.q.shape[-1]
        problems = [] if k % f.width_unit == 0 else [f"rows have {k} numbers, expected a multiple of {f.width_unit}"]
        parts = self.parts
        for name in f.parts.keys() | parts.keys():
            if name not in parts or name not in f.parts:
                problems.append(f"{f} {'needs a' if name in f.parts else 'has no'} {name}")
                continue
            (dtype, numbers), part = f.parts[name], parts[name]
            shape = (*self.q.shape[:-1], k // numbers)
            if part.shape != shape or part.dtype != _DTYPES[dtype]:
                problems.append(f"{name} is {part.dtype}{list(part.shape)}, expected {_DTYPES[dtype]}{list(shape)}")
        if problems:
            raise BadCheckpoint(f"this is no {f} array: {'; '.join(problems)}")

    def group_scales(self) -> Array:
        """f32[..., k / group]; exact for int8 ones, too."""
        return _scaled(self.scale, self.super_scale)

    def group_biases(self) -> Array | None:
        """Likewise, or None for a symmetric format."""
        return None if self.bias is None else _scaled(self.bias, self.super_bias)

    def dequantize(self) -> Array:
        """The float32 numbers, of q's shape: scale * (q - zero) or scale * q + bias (see `Format`)."""
        f, biases = self.format, self.group_biases()
        grouped = self.q.reshape(*self.q.shape[:-1], -1, f.group).astype(np.float32)
        if f.zero:
            grouped -= f.zero
        grouped *= self.group_scales()[..., None]
        if biases is not None:
            grouped += biases[..., None]
        return grouped.reshape(self.q.shape)


def _scaled(part: Array, factors: Array | None) -> Array:
    numbers: Array = part.astype(np.float32)
    if factors is not None:
        numbers *= np.repeat(factors.astype(np.float32), numbers.shape[-1] // factors.shape[-1], axis=-1)
    return numbers
