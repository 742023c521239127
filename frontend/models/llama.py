"""Llama 2, 3 and 3.x, SmolLM, and the many models that share their shape."""

from __future__ import annotations

from ..config import Fields
from ..decoder import DecoderConfig, build, decoder_config

__all__ = ["build", "config"]


def config(fields: Fields) -> DecoderConfig:
    biased = fields.flag("attention_bias", False)
    return decoder_config(fields, qkv_bias=biased, o_bias=biased, mlp_bias=fields.flag("mlp_bias", False))
