"""The tokenizer in a GGUF file's metadata, written as the tokenizer files of a Hugging Face checkpoint.

What makes ids equal to llama.cpp's is taken from its src/llama-vocab.cpp: the meaning of token types, the order in
which SentencePiece pieces are merged, the expressions that cut text into words before byte-level merges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlc.errors import BadCheckpoint, UnsupportedModel

_MAX_PIECE = 512  # characters of one token; all ways to cut it are tried

# expressions that cut text into words, each applied to what the one before has left
_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
)
_QWEN2 = (_LLAMA3[0].replace(r"\p{N}{1,3}", r"\p{N}"),)
_DIGITS = (r"\p{N}", *_GPT2)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
WORDS: Mapping[str, tuple[str, ...]] = {  # by the value of tokenizer.ggml.pre
    "default": (r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "deepseek-coder": _DEEPSEEK_CODER,
}
_WHOLE_WORDS = frozenset(
    {"llama-bpe", "llama3", "llama-v3"}
)  # a word that is a token is taken whole; texts begin by BOS

# tokens by which chat models end an answer, whatever the file calls its end token
_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>")


class _Kind(IntEnum):
    """tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4  # found in any text, before it is cut into words
    UNUSED = 5
    BYTE = 6


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json for the `tokenizer.*` keys of a GGUF file.

    Raises BadCheckpoint where the keys do not fit each other, UnsupportedModel for a kind that mlc does not have.
    """
    fields = _Fields(metadata)
    model = fields.text("model")
    if model not in ("llama", "gpt2"):
        raise UnsupportedModel(
            f"the GGUF file has a tokenizer of kind {model[:60]!r}; mlc reads llama (SentencePiece) and gpt2 "
            "(byte-level BPE); compile the model from its Hugging Face folder instead"
        )
    tokenizer, bos = _sentencepiece(fields) if model == "llama" else _byte_level(fields)
    special = [fields.tokens[i] for i, kind in enumerate(fields.kinds) if kind in (_Kind.CONTROL, _Kind.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special if t])
    user = [fields.tokens[i] for i, kind in enumerate(fields.kinds) if kind == _Kind.USER]
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in user if t])
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": fields.flag("add_bos_token", bos),
    }
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        if (id := fields.token_id(theirs)) is not None:
            config[f"{ours}_token"] = fields.tokens[id]
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    ids = {fields.token_id(name) for name in ("eos", "eot", "eom")}
    ids |= {i for i, token in enumerate(fields.tokens) if token in _ENDS and fields.kinds[i] == _Kind.CONTROL}
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, value in (
        ("tokenizer_config.json", config),
        ("generation_config.json", {"eos_token_id": sorted(id for id in ids if id is not None)}),
    ):
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _sentencepiece(fields: _Fields) -> tuple[Tokenizer, bool]:
    """Merges by score, over the whole text, with bytes for what no piece spells; and whether texts begin by BOS."""
    scores = fields.numbers("scores")
    pieces = {token for token, kind in zip(fields.tokens, fields.kinds, strict=True) if kind == _Kind.NORMAL}
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    merges = [pair for i in order if fields.tokens[i] in pieces for pair in _cuts(fields.tokens[i], pieces)]
    unknown = fields.token_id("unknown")
    model = models.BPE(
        fields.vocabulary(),
        merges,
        unk_token=None if unknown is None else fields.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    blanks: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.flag("add_space_prefix", True):
        blanks.insert(0, normalizers.Prepend("▁"))
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(blanks)
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer, True


def _cuts(token: str, pieces: set[str]) -> list[tuple[str, str]]:
    """The ways to put `token` together from two pieces."""
    return [(a, b) for i in range(1, len(token)) if (a := token[:i]) in pieces and (b := token[i:]) in pieces]


def _byte_level(fields: _Fields) -> tuple[Tokenizer, bool]:
    """Merges by rank inside words, over bytes; and whether texts begin by BOS."""
    kind = fields.text("pre", "default")
    if kind not in WORDS:
        raise UnsupportedModel(
            f"the GGUF file cuts text into words by {kind[:60]!r} (tokenizer.ggml.pre); mlc knows {', '.join(WORDS)}; "
            "compile the model from its Hugging Face folder instead"
        )
    merges = [_merge(text) for text in fields.texts("merges")]
    whole = kind in _WHOLE_WORDS
    try:
        model = models.BPE(fields.vocabulary(), merges, ignore_merges=whole)
    except Exception as error:  # the library raises nothing more precise
        raise BadCheckpoint(f"the GGUF file has merges that do not fit its tokens: {str(error)[:200]}") from None
    tokenizer = Tokenizer(model)
    words = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in WORDS[kind]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, whole


def _merge(text: str) -> tuple[str, str]:
    cut = text.find(" ", 1)
    if cut < 1 or cut == len(text) - 1:
        raise BadCheckpoint(f"the GGUF file has the merge {text[:60]!r}; expected two tokens with a blank between")
    return text[:cut], text[cut + 1 :]


class _Fields:
    """Typed access to the keys tokenizer.ggml.*; every list has one entry per token."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens = self.texts("tokens")
        longest = max(map(len, self.tokens), default=0)
        if not self.tokens or longest > _MAX_PIECE:
            raise BadCheckpoint(f"the GGUF file has {len(self.tokens)} tokens, the longest of {longest} characters")
        kinds = self.numbers("token_type") if "tokenizer.ggml.token_type" in metadata else [1.0] * len(self.tokens)
        self.kinds = [int(kind) for kind in kinds]

    def vocabulary(self) -> dict[str, int]:
        """The ids by token. Raises BadCheckpoint where two tokens are equal."""
        table = {token: id for id, token in enumerate(self.tokens)}
        if len(table) != len(self.tokens):
            twice = next(token for id, token in enumerate(self.tokens) if table[token] != id)
            raise BadCheckpoint(f"the GGUF file has the token {twice[:60]!r} twice")
        return table

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def texts(self, name: str) -> Sequence[str]:
        value = self._get(name, None)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self._wrong(name, "a list of strings")
        return value

    def numbers(self, name: str) -> list[float]:
        """One finite number for each token."""
        value = self._get(name, None)
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            raise self._wrong(name, "a list of numbers")
        numbers = list(map(float, value))
        if len(numbers) != len(self.tokens) or not all(map(math.isfinite, numbers)):
            raise self._wrong(name, f"{len(self.tokens)} numbers, one for each token")
        return numbers

    def token_id(self, name: str) -> int | None:
        """The id in tokenizer.ggml.NAME_token_id, or None."""
        key = f"{name}_token_id"
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise self._wrong(key, f"an id below {len(self.tokens)}")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise BadCheckpoint(f"the GGUF file lacks the metadata tokenizer.ggml.{name}, so it has no tokenizer")
        return value

    def _wrong(self, name: str, expected: str) -> BadCheckpoint:
        return BadCheckpoint(f"the GGUF file's metadata tokenizer.ggml.{name} is wrong; expected {expected}")
