"""config.json, read with care: every key is used, known to be harmless, or named in an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlc.errors import BadConfig, UnsupportedModel

# Keys that do not change what the model computes at inference.
HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "max_length",
        "min_length",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "pruned_heads",
        "resid_pdrop",
        "return_dict",
        "task_specific_params",
        "tie_encoder_decoder",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
        "vocab_file",
    }
)


class Fields:
    """The keys of one config, taken one by one; `finish` refuses those nobody took."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw, self.source = raw, source
        self._taken: set[str] = set()

    def _take(self, key: str, default: Any) -> Any:
        self._taken.add(key)
        value = self.raw.get(key)
        if value is None:
            if default is ...:
                raise BadConfig(f"{self.source}: the key {key!r} is missing")
            return default
        return value

    def integer(self, key: str, default: Any = ..., *, low: int = 1, high: int = 1 << 31) -> int:
        value = self._take(key, default)
        if type(value) is not int or not low <= value <= high:
            raise BadConfig(f"{self.source}: {key} must be an integer in {low}..{high}, got {value!r}")
        return value

    def number(self, key: str, default: Any = ...) -> float:
        """A finite positive number."""
        value = self._take(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise BadConfig(f"{self.source}: {key} must be a positive number, got {value!r}")
        return float(value)

    def flag(self, key: str, default: Any = ...) -> bool:
        value = self._take(key, default)
        if type(value) is not bool:
            raise BadConfig(f"{self.source}: {key} must be true or false, got {value!r}")
        return value

    def text(self, key: str, default: Any = ...) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise BadConfig(f"{self.source}: {key} must be a string, got {value!r}")
        return value

    def table(self, key: str) -> Fields | None:
        """A nested object, or None where it is absent or empty."""
        value = self._take(key, None)
        if value is not None and not isinstance(value, dict):
            raise BadConfig(f"{self.source}: {key} must be an object, got {value!r}")
        return Fields(value, f"{self.source}: {key}") if value else None

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None where it is absent."""
        value = self._take(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise BadConfig(f"{self.source}: {key} must be a list of strings, got {value!r}")
        return tuple(value)

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse any value of `key` that is not in `allowed`; the first is what an absent key means."""
        value = self._take(key, allowed[0])
        if value not in allowed:
            choice = " or ".join(repr(a) for a in allowed)
            raise UnsupportedModel(f"{self.source}: {key} is {value!r}; mlc supports {choice}")

    def ignore(self, *keys: str) -> None:
        """Keys of this config that change nothing here."""
        self._taken.update(keys)

    def finish(self) -> None:
        """Raise UnsupportedModel naming the keys that were not taken and may matter."""
        left = {k: v for k, v in self.raw.items() if k not in self._taken and k not in HARMLESS}
        left = {k: v for k, v in left.items() if v is not None and v is not False}
        if left:
            named = ", ".join(f"{k}={_short(v)}" for k, v in sorted(left.items()))
            raise UnsupportedModel(
                f"{self.source} has settings mlc does not know, and they may change the result: {named}. "
                "Remove them from the file if you are sure that they do not"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path` (a file of at most 16 MB). Raises BadConfig."""
    try:
        if path.stat().st_size > 1 << 24:
            raise BadConfig(f"{path} is {path.stat().st_size >> 20} MB; a config is a few KB")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadConfig(f"{path.parent} has no {path.name}; is it a model folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadConfig(f"{path} is not readable JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadConfig(f"{path} must hold a JSON object, got {type(raw).__name__}")
    return raw
