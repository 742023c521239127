"""Convolution and the way from pixels to tokens."""

from __future__ import annotations

from ..op import op, require
from ..types import Dim, Tensor


@op
def conv2d(x: Tensor, w: Tensor, bias: Tensor | None = None, *, stride: int, padding: int) -> Tensor:
    """Cross-correlation: f32[b, c, h, w], f32[o, c, kh, kw], f32[o] -> f32[b, o, h', w'], zeros around the image."""
    require(len(x.shape) == len(w.shape) == 4 and x.shape[1] == w.shape[1], f"conv2d got {x} and {w}")
    require(x.dtype == w.dtype == "f32", f"conv2d works on f32, got {x} and {w}")
    require(stride > 0 and padding >= 0, f"conv2d needs stride > 0 and padding >= 0, got {stride} and {padding}")
    require(bias is None or bias == Tensor(w.shape[:1], "f32"), f"conv2d bias {bias} does not match {w}")
    spatial: list[Dim] = []
    for size, kernel in zip(x.shape[2:], w.shape[2:], strict=True):
        require(isinstance(size, int) and isinstance(kernel, int), f"conv2d needs fixed image sizes, got {x}")
        assert isinstance(size, int) and isinstance(kernel, int)
        require(size + 2 * padding >= kernel, f"conv2d: kernel {w} is larger than the padded image {x}")
        spatial.append((size + 2 * padding - kernel) // stride + 1)
    return Tensor((x.shape[0], w.shape[0], *spatial), "f32")


@op
def patches_to_rows(x: Tensor) -> Tensor:
    """[b, c, h, w] -> [b, h * w, c]: one row per image patch, in raster order."""
    require(x.is_plain and len(x.shape) == 4, f"patches_to_rows needs [b, c, h, w], got {x}")
    batch, channels, height, width = x.shape
    require(isinstance(height, int) and isinstance(width, int), f"patches_to_rows needs fixed image sizes, got {x}")
    assert isinstance(height, int) and isinstance(width, int)
    return Tensor((batch, height * width, channels), x.dtype)
