"""Qwen 2 and 2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from ..config import Fields
from ..decoder import DecoderConfig, build, decoder_config

__all__ = ["build", "config"]


def config(fields: Fields) -> DecoderConfig:
    fields.expect("use_mrope", False)
    return decoder_config(fields, qkv_bias=True)
