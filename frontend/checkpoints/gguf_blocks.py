"""GGUF's block formats, taken apart into the parts of the IR's quantized formats.

The layouts are those of ggml (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, block_q8_0, block_q4_0,
block_q4_K, block_q6_K). Blocks arrive as uint8[..., bytes per row]; the leading axes are kept, a row has k
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc.ir.arrays import QuantizedArray
from mlc.ir.types import Format

Array = np.ndarray[Any, Any]
Parts = dict[str, Array]  # as `mlc.ir.types.Format.parts` names them


def _q8_0(blocks: Array) -> Parts:
    cells = _cells(blocks, 34)
    return {"q": _rows(_bytes(cells, 2, 34).view(np.int8)), "scale": _rows(_halves(cells, 0))}


def _q4_0(blocks: Array) -> Parts:
    cells = _cells(blocks, 18)
    packed = cells[..., 2:18]
    return {"q": _rows(np.concatenate([packed & 15, packed >> 4], axis=-1)), "scale": _rows(_halves(cells, 0))}


def _q4_K(blocks: Array) -> Parts:
    """ggml takes minimums away that are not negative, so theirs is the sign of `super_bias`."""
    cells = _cells(blocks, 144)
    packed = cells[..., 16:144].reshape(*cells.shape[:-1], 4, 32)  # a byte holds one number of two groups of 32
    q = np.stack([packed & 15, packed >> 4], axis=-2)
    scale, minimum = _six_bit_pairs(cells[..., 4:16])
    return {
        "q": q.reshape(*blocks.shape[:-1], -1),
        "scale": _rows(scale),
        "bias": _rows(minimum),
        "super_scale": _rows(_halves(cells, 0)),
        "super_bias": -_rows(_halves(cells, 2)),
    }


def _q6_K(blocks: Array) -> Parts:
    cells = _cells(blocks, 210)
    lead = cells.shape[:-1]
    low = cells[..., 0:128].reshape(*lead, 2, 1, 64)  # each half of 128 numbers: 64 bytes, low nibbles then high ones
    low = np.concatenate([low & 15, low >> 4], axis=-2).reshape(*lead, 2, 4, 32)
    high = cells[..., 128:192].reshape(*lead, 2, 1, 32)  # 32 bytes, two bits for each quarter
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    return {
        "q": (low | high << 4).reshape(*blocks.shape[:-1], -1),
        "scale": _rows(_bytes(cells, 192, 208).view(np.int8)),
        "super_scale": _rows(_halves(cells, 208)),
    }


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block format: how many numbers and bytes a block has, and the IR's format of the same numbers."""

    numbers: int
    bytes: int
    format: Format
    parts: Callable[[Array], Parts]

    def decode(self, blocks: Array) -> QuantizedArray:
        """The array [..., k] that uint8[..., bytes per row] stand for. Its numbers are ggml's, bit for bit."""
        return QuantizedArray.of(self.parts(blocks), self.format)


BLOCKS: Mapping[str, BlockFormat] = {
    "q8_0": BlockFormat(32, 34, Format(8), _q8_0),
    "q4_0": BlockFormat(32, 18, Format(4), _q4_0),
    "q4_K": BlockFormat(256, 144, Format(4, symmetric=False, scale="i8"), _q4_K),
    "q6_K": BlockFormat(256, 210, Format(6, 16, scale="i8"), _q6_K),
}


def _cells(blocks: Array, size: int) -> Array:
    """[..., blocks, size]."""
    return blocks.reshape(*blocks.shape[:-1], -1, size)


def _bytes(cells: Array, start: int, stop: int) -> Array:
    """Some bytes of every block, contiguous, so that they can be viewed as another dtype."""
    return np.ascontiguousarray(cells[..., start:stop])


def _halves(cells: Array, at: int) -> Array:
    """The f16 at byte `at` of every block: [..., blocks, 1]."""
    return _bytes(cells, at, at + 2).view("<f2")


def _rows(parts: Array) -> Array:
    """[..., blocks, per block] -> [..., blocks * per block]."""
    return parts.reshape(*parts.shape[:-2], -1)


def _six_bit_pairs(packed: Array) -> tuple[Array, Array]:
    """The 8 scales and 8 minimums of 6 bits that q4_K keeps in 12 bytes, as int8[..., 8]."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scale = np.concatenate([a & 63, c & 15 | (a >> 6) << 4], axis=-1)
    minimum = np.concatenate([b & 63, c >> 4 | (b >> 6) << 4], axis=-1)
    return scale.view(np.int8), minimum.view(np.int8)
