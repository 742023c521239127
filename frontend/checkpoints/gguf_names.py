"""GGUF's names for tensors and settings, and Hugging Face's, for the architectures that both know.

The tables follow llama.cpp's gguf-py (constants.py, tensor_mapping.py) and its converter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlc.errors import BadCheckpoint, UnsupportedModel
from mlc.ir.arrays import QuantizedArray

from .gguf import Gguf
from .gguf_blocks import BLOCKS
from .reader import Array, TensorInfo

ARCHITECTURES = ("llama", "qwen2", "qwen3")

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BACK_OUTSIDE = {theirs: ours for ours, theirs in _OUTSIDE.items()}
_BACK_IN_BLOCK = {theirs: ours for ours, theirs in _IN_BLOCK.items()}

_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_HF_BLOCK = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")

ROPE_FREQS = "rope_freqs.weight"  # has no Hugging Face name: f32[head_dim/2], divisors of the rotary frequencies


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name that has none stays as it is, and `check` will show it."""
    if (match := _GGUF_BLOCK.fullmatch(name)) and match[2] in _IN_BLOCK:
        return f"model.layers.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"
    return _OUTSIDE.get(name, name)


def gguf_name(name: str) -> str:
    """The inverse of `hf_name`."""
    if (match := _HF_BLOCK.fullmatch(name)) and match[2] in _BACK_IN_BLOCK:
        return f"blk.{match[1]}.{_BACK_IN_BLOCK[match[2]]}.{match[3]}"
    return _BACK_OUTSIDE.get(name, name)


class GgufModel:
    """A GGUF file under Hugging Face names, its block formats as the IR's quantized formats."""

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint, UnsupportedModel."""
        self.path = path
        self.file = Gguf(path)
        self._names: dict[str, str] = {}
        self._infos: dict[str, TensorInfo] = {}
        for info in self.file.tensors().values():
            name = hf_name(info.name)
            if name in self._infos:
                raise BadCheckpoint(f"{path}: {info.name} and {self._names[name]} are both {name}")
            dtype = str(BLOCKS[info.dtype].format) if info.dtype in BLOCKS else info.dtype
            self._names[name] = info.name
            self._infos[name] = TensorInfo(name, info.shape, dtype)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Array:
        return self.file.rows(self._names[name], start, stop)

    def decoded(self, name: str, start: int, stop: int) -> QuantizedArray:
        stored = self._names[name]
        return BLOCKS[self.file.tensors()[stored].dtype].decode(self.file.blocks(stored, start, stop))

    def release(self) -> None:
        self.file.release()

    def metadata(self) -> Mapping[str, Any]:
        return self.file.metadata()

    def config(self) -> dict[str, Any]:
        return hf_config(self.file)


def hf_config(file: Gguf) -> dict[str, Any]:
    """The settings of `file` under the keys of config.json. Raises BadCheckpoint, UnsupportedModel.

    Two keys are our own: `permuted_qk`, q and k rows are ordered for adjacent-pair rotation, and `rope_freqs`, the
    tensor `ROPE_FREQS` is there.
    """
    keys = _Keys(file)
    tensors = file.tensors()
    architecture = keys.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path} has the architecture {architecture[:60]!r}; mlc reads GGUF files of "
            f"{', '.join(ARCHITECTURES)}"
        )
    keys.prefix = architecture
    if keys.integer("expert_count", 0):
        raise UnsupportedModel(f"{file.path} is a mixture of experts; mlc does not run those yet")
    if (table := tensors.get("token_embd.weight")) is None or len(table.shape) != 2:
        raise BadCheckpoint(f"{file.path} lacks the matrix token_embd.weight; is this a whole model?")
    window = keys.integer("attention.sliding_window", 0)
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel(f"{file.path} has keys and values of different lengths; mlc expects equal ones")
    config = {
        "model_type": "mistral" if architecture == "llama" and window else architecture,
        "num_hidden_layers": keys.integer("block_count"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": table.shape[0],
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if window:
        config |= {"sliding_window": window, "use_sliding_window": True}
    if (rotated := keys.integer("rope.dimension_count", head_dim)) != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    if scaling := _rope_scaling(keys):
        config["rope_scaling"] = scaling
    if architecture == "llama":
        config["permuted_qk"] = True
    if architecture != "qwen2" and "blk.0.attn_q.bias" in tensors:
        config["attention_bias"] = True
    if architecture == "llama" and "blk.0.ffn_up.bias" in tensors:
        config["mlp_bias"] = True
    if ROPE_FREQS in tensors:
        config["rope_freqs"] = True
    for key in ("bos", "eos"):
        if (token := keys.metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{key}_token_id"] = token
    return config


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "linear" if keys.has("rope.scale_linear") else "none")
    if kind == "none":
        return None
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if kind == "linear" and factor == 1.0:
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if keys.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    return scaling


class _Keys:
    """Typed access to metadata. Names get the architecture's prefix once it is known."""

    def __init__(self, file: Gguf) -> None:
        self.path, self.metadata, self.prefix = file.path, file.metadata(), ""

    def has(self, name: str) -> bool:
        return self._full(name) in self.metadata

    def integer(self, name: str, default: int | None = None) -> int:
        """At least 1, or 0 where that is the default; all of them are divisors or counts."""
        value = self._get(name, default)
        if type(value) is not int or not min(1, 1 if default is None else default) <= value < 1 << 31:
            raise self._wrong(name, "a positive integer", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise self._wrong(name, "a positive number", value)
        return float(str(np.float32(value)))  # the number that was rounded to f32: 1e-05, not 9.999999747378752e-06

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def _full(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix else name

    def _get(self, name: str, default: Any) -> Any:
        value = self.metadata.get(self._full(name), default)
        if value is None:
            raise BadCheckpoint(f"{self.path} lacks the metadata {self._full(name)!r}; convert the model again")
        return value

    def _wrong(self, name: str, expected: str, value: Any) -> BadCheckpoint:
        return BadCheckpoint(f"{self.path}: metadata {self._full(name)!r} is {str(value)[:60]!r}; expected {expected}")
