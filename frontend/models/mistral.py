"""Mistral 7B and its successors: Llama with a sliding window in the first version."""

from __future__ import annotations

from ..config import Fields
from ..decoder import DecoderConfig, build, decoder_config

__all__ = ["build", "config"]


def config(fields: Fields) -> DecoderConfig:
    return decoder_config(fields)
