"""The op set, a module per family; importing this package registers every op."""

from .attention import attention, full_attention, kv_append, qkv_rope_append, rope
from .leaf import constant, rope_frequencies, weight
from .linear import cast, dequantize, linear, pack, quantize, quantize_rows, unpermute_rope
from .norm import add_rms_norm, layer_norm, rms_norm
from .pointwise import add, div, gelu, mul, silu, swiglu, tanh
from .shape import columns, concat, embed, mean_rows, merge_heads, prepend_row, split_heads, take_rows, take_token
from .vision import conv2d, patches_to_rows

__all__ = [
    "add",
    "add_rms_norm",
    "attention",
    "cast",
    "columns",
    "concat",
    "constant",
    "conv2d",
    "dequantize",
    "div",
    "embed",
    "full_attention",
    "gelu",
    "kv_append",
    "layer_norm",
    "linear",
    "mean_rows",
    "merge_heads",
    "mul",
    "pack",
    "patches_to_rows",
    "prepend_row",
    "qkv_rope_append",
    "quantize",
    "quantize_rows",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "silu",
    "split_heads",
    "swiglu",
    "take_rows",
    "take_token",
    "tanh",
    "unpermute_rope",
    "weight",
]
