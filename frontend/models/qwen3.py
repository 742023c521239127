"""Qwen 3 (dense): Llama with an RMS norm on every q and k head."""

from __future__ import annotations

from ..config import Fields
from ..decoder import DecoderConfig, build, decoder_config

__all__ = ["build", "config"]


def config(fields: Fields) -> DecoderConfig:
    biased = fields.flag("attention_bias", False)
    return decoder_config(fields, qkv_bias=biased, o_bias=biased, qk_norm=True)
