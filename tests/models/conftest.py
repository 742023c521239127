"""Small checkpoints, random ones by transformers and a trained one by others, and the same compiled."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc.backends.module import LanguageModel, open_module
from mlc.compile import compile_model
from mlc.frontend.checkpoints import gguf_tokenizer
from mlc.frontend.checkpoints.folder import open_checkpoint
from mlc.options import Options
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.settings import EngineSettings
from mlc.tools.perplexity import Step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Array = np.ndarray[Any, Any]

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 211,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}

# What tells one architecture of the family from another; each is a test case by its name.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3_scaled": (
        "llama",
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "smollm": ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "rope_theta": 1e5}),
    "one_head": ("llama", {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 32}),
    "mistral": ("mistral", {"head_dim": 24, "sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "one_layer": ("qwen3", {"num_hidden_layers": 1, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}


@dataclass(frozen=True)
class Case:
    """One checkpoint on disk and transformers' model of it."""

    folder: Path
    oracle: Any

    def logits(self, tokens: Sequence[int]) -> Array:
        """f32[tokens, vocab] by transformers."""
        with torch.no_grad():
            result: Array = self.oracle(torch.tensor([list(tokens)])).logits[0].float().numpy()
        return result

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that follow, one forward pass each."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """checkpoint(variant): a random checkpoint of one of VARIANTS, float32."""
    made: dict[str, Case] = {}

    def make(variant: str) -> Case:
        if variant not in made:
            model_type, extra = VARIANTS[variant]
            folder = tmp_path_factory.mktemp(variant)
            config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **extra})
            torch.manual_seed(7)
            oracle = transformers.AutoModelForCausalLM.from_config(config).float().eval()
            with torch.no_grad():  # large enough that tokens differ and norms, biases are not trivial
                for name, parameter in oracle.named_parameters():
                    parameter.mul_(3.0) if "norm" not in name and parameter.dim() > 1 else None
                    parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.02))
            oracle.save_pretrained(folder)
            write_tokenizer(folder, config.vocab_size)
            made[variant] = Case(folder, oracle)
        return made[variant]

    return make


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer whose token i is the character U+0100 + i: models of random weights need no better."""
    table = {chr(0x100 + i): i for i in range(vocab)}
    model = {"type": "WordLevel", "vocab": table, "unk_token": chr(0x100)}
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "decoder": {"type": "Fuse"}, "model": model}
        )
    )
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.fixture(scope="session")
def stories_folder(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stories260K model, trained by the author of llama2.c, as a float32 safetensors folder."""
    folder = tmp_path_factory.mktemp("stories")
    config, tensors = read_llama2c(assets / "stories260k" / "checkpoint_legacy.bin")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    gguf = open_checkpoint(assets / "stories260k" / "stories260K-f32.gguf")
    gguf_tokenizer.write_tokenizer(gguf.metadata(), folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_llama2c(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """config.json and tensors, by Hugging Face names, of a file in llama2.c's first format."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[:28])
    data = np.frombuffer(raw, np.float32, offset=28)
    used = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal used
        used += int(np.prod(shape))
        return data[used - int(np.prod(shape)) : used].reshape(shape)

    def half_split(w: np.ndarray, count: int) -> np.ndarray:
        """Rows of q or k from adjacent pairs to halves."""
        rows, columns = w.shape
        return w.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    d = dim // heads
    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    parts = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_heads * d, dim),
        "self_attn.v_proj": take(layers, kv_heads * d, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors["model.norm.weight"] = take(dim)
    for name, stack in parts.items():
        for i, w in enumerate(stack):
            heads_of = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            tensors[f"model.layers.{i}.{name}.weight"] = w if heads_of is None else half_split(w, heads_of)
    config = {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    return config, {name: np.ascontiguousarray(w) for name, w in tensors.items()}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """compiled(folder, **options): the artifact of a checkpoint, compiled in this process, once."""
    made: dict[Any, Path] = {}

    def build(folder: Path, **options: Any) -> Path:
        key = (folder, tuple(sorted(options.items())))
        if key not in made:
            out = tmp_path_factory.mktemp("artifact") / "model"
            compile_model(folder, folder.name, out, Options(**options), lambda phase, share: None)
            made[key] = out
        return made[key]

    return build


class Runner:
    """A compiled model driven without an engine: one sequence after the other, pages given out in a scattered order."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def logits(self, tokens: Sequence[int], chunk: int) -> Array:
        """f32[tokens, vocab]: every row's logits, the prompt run in chunks."""
        page, count, most = self.model.page_size, len(tokens), self.model.max_sequences
        pages = np.random.default_rng(3).permutation(self.model.pages)[: -(-count // page)].astype(np.int32)
        ids = np.array(tokens, np.int32)
        rows: list[Array] = []
        for start in range(0, count, chunk):
            stop = min(count, start + chunk)
            for first in range(0, stop - start, most):
                wanted = np.arange(first, min(stop - start, first + most), dtype=np.int32)
                rows.append(self.model.run(Step.of(ids, start, stop, pages, page, wanted)).copy())
        return np.concatenate(rows)


@pytest.fixture(scope="session")
def runner() -> Callable[..., Runner]:
    """runner(artifact, **options of open_module): a compiled model to drive by hand."""

    def open_it(artifact: Path, **options: Any) -> Runner:
        return Runner(open_module(artifact, **options))

    return open_it


class _NoText:
    """The engine wants a tokenizer; these tests look at ids only."""

    eos_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        raise AssertionError("tests pass token ids")

    def stream_decoder(self, *, continues: bool = False) -> _NoText:
        return self

    def push(self, tokens: Sequence[int]) -> str:
        return "".join(chr(0x100 + token) for token in tokens)

    def flush(self) -> str:
        return ""


@pytest.fixture(scope="session")
def no_text() -> _NoText:
    return _NoText()


@pytest.fixture(scope="session")
def generate() -> Callable[..., list[list[int]]]:
    """generate(model, prompts, count, **settings): greedy tokens of every prompt, all submitted at once."""

    def run(model: LanguageModel, prompts: Sequence[Sequence[int]], count: int, **settings: Any) -> list[list[int]]:
        engine = Engine(model, _NoText(), EngineSettings(check=True, **settings))
        params = SamplingParams(temperature=0.0, max_tokens=count)
        names = [engine.submit(Request(list(p), params)) for p in prompts]
        answers: dict[str, list[int]] = {name: [] for name in names}
        while not engine.idle:
            for output in engine.step():
                assert output.error is None, output.error
                answers[output.request] += output.tokens
        return [answers[name] for name in names]

    return run
