"""Convolution and the way from pixels to tokens."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .parts import Array

__all__ = ["conv2d", "patches_to_rows"]


def conv2d(x: Array, w: Array, bias: Array | None = None, *, stride: int, padding: int) -> Array:
    around = (padding, padding)
    padded = np.pad(x, ((0, 0), (0, 0), around, around))
    windows = sliding_window_view(padded, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]  # [b, c, h', w', kh, kw]
    y = np.tensordot(windows, w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)  # [b, h', w', o] -> [b, o, h', w']
    return y if bias is None else y + bias[:, None, None]


def patches_to_rows(x: Array) -> Array:
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height * width).transpose(0, 2, 1)
