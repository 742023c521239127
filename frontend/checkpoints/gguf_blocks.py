"""GGUF's block formats, taken apart into integers and scales.

The layouts are those of ggml (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, block_q8_0, block_q4_0,
block_q4_K, block_q6_K). Blocks arrive as uint8[..., bytes per row]; the leading axes are kept, a row has k
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def decode_q8_0(blocks: Array) -> tuple[Array, Array]:
    """w = scale * q: q int8[..., k], scale f16[..., k/32]."""
    cells = _cells(blocks, 34)
    return _rows(_bytes(cells, 2, 34).view(np.int8)), _rows(_halves(cells, 0))


def decode_q4_0(blocks: Array) -> tuple[Array, Array]:
    """w = scale * (q - 8): q uint8[..., k] in 0..15, scale f16[..., k/32]."""
    cells = _cells(blocks, 18)
    packed = cells[..., 2:18]
    return _rows(np.concatenate([packed & 15, packed >> 4], axis=-1)), _rows(_halves(cells, 0))


def decode_q4_K(blocks: Array) -> tuple[Array, Array, Array]:
    """w = scale * q - minimum: q uint8[..., k] in 0..15, scale and minimum f32[..., k/32]."""
    cells = _cells(blocks, 144)
    packed = cells[..., 16:144].reshape(*cells.shape[:-1], 4, 32)  # a byte holds one number of two groups of 32
    q = np.stack([packed & 15, packed >> 4], axis=-2)
    scale, minimum = _six_bit_pairs(cells[..., 4:16])
    scale = _halves(cells, 0).astype(np.float32) * scale
    minimum = _halves(cells, 2).astype(np.float32) * minimum
    return q.reshape(*blocks.shape[:-1], -1), _rows(scale), _rows(minimum)


def decode_q6_K(blocks: Array) -> tuple[Array, Array]:
    """w = scale * q: q int8[..., k] in -32..31, scale f32[..., k/16]."""
    cells = _cells(blocks, 210)
    lead = cells.shape[:-1]
    low = cells[..., 0:128].reshape(*lead, 2, 1, 64)  # each half of 128 numbers: 64 bytes, low nibbles then high ones
    low = np.concatenate([low & 15, low >> 4], axis=-2).reshape(*lead, 2, 4, 32)
    high = cells[..., 128:192].reshape(*lead, 2, 1, 32)  # 32 bytes, two bits for each quarter
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    q = (low | high << 4).astype(np.int8) - np.int8(32)
    scale = _halves(cells, 208).astype(np.float32) * _bytes(cells, 192, 208).view(np.int8).astype(np.float32)
    return q.reshape(*blocks.shape[:-1], -1), _rows(scale)


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block format: how many numbers and bytes a block has, and the IR's name for what `decode` gives."""

    numbers: int
    bytes: int
    group: int  # numbers that share a scale
    dtype: str  # as `mlc.ir.types.Format` writes it
    decode: Callable[[Array], tuple[Array, ...]]


BLOCKS: Mapping[str, BlockFormat] = {
    "q8_0": BlockFormat(32, 34, 32, "q8_g32", decode_q8_0),
    "q4_0": BlockFormat(32, 18, 32, "q4_g32", decode_q4_0),
    "q4_K": BlockFormat(256, 144, 32, "q4a_g32_f32", decode_q4_K),
    "q6_K": BlockFormat(256, 210, 16, "q8_g16_f32", decode_q6_K),
}


def dequantize(blocks: Array, format: str) -> Array:
    """The f32[..., k] numbers of blocks in `format`, a key of `BLOCKS`, rounded as ggml rounds them."""
    block = BLOCKS[format]
    q, scale, *minimum = block.decode(blocks)
    grouped = q.reshape(*q.shape[:-1], -1, block.group).astype(np.float32)
    if format == "q4_0":
        grouped -= 8
    grouped *= scale[..., None].astype(np.float32)
    if minimum:
        grouped -= minimum[0][..., None]
    return grouped.reshape(q.shape)


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
    """The 8 scales and 8 minimums of 6 bits that q4_K keeps in 12 bytes, as f32[..., 8]."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scale = np.concatenate([a & 63, c & 15 | (a >> 6) << 4], axis=-1)
    minimum = np.concatenate([b & 63, c >> 4 | (b >> 6) << 4], axis=-1)
    return scale.astype(np.float32), minimum.astype(np.float32)
