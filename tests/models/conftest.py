"""Small random checkpoints made by transformers, and the same compiled: oracle and accused of every model test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc.backends.module import LanguageModel, open_module
from mlc.compile import compile_model
from mlc.options import Options
from mlc.runtime.batch import BatchBuilder
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.settings import EngineSettings

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
        per_sequence = -(-model.max_context // model.page_size)
        self.builder = BatchBuilder(
            page_size=model.page_size,
            max_tokens=model.max_tokens,
            max_sequences=model.max_sequences,
            pages_per_sequence=per_sequence,
        )

    def logits(self, tokens: Sequence[int], chunk: int) -> Array:
        """f32[tokens, vocab]: every row's logits, the prompt run in chunks."""
        from mlc.backends.module import Batch

        page, count = self.model.page_size, len(tokens)
        order = np.random.default_rng(3).permutation(self.model.pages)[: -(-count // page)].astype(np.int32)
        rows: list[Array] = []
        for start in range(0, count, chunk):
            stop = min(count, start + chunk)
            positions = np.arange(start, stop, dtype=np.int32)
            wanted = np.arange(stop - start, dtype=np.int32)
            for first in range(0, len(wanted), self.model.max_sequences):
                batch: Batch = _Step(
                    tokens=np.array(tokens[start:stop], np.int32),
                    positions=positions,
                    slots=order[positions // page] * page + positions % page,
                    starts=np.array([0, stop - start], np.int32),
                    lengths=np.array([stop], np.int32),
                    tables=order[None, :],
                    rows=wanted[first : first + self.model.max_sequences],
                )
                rows.append(self.model.run(batch).copy())
        return np.concatenate(rows)


@dataclass(frozen=True)
class _Step:
    tokens: Array
    positions: Array
    slots: Array
    starts: Array
    lengths: Array
    tables: Array
    rows: Array


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

    def push(self, token: int) -> str:
        return chr(0x100 + token)

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
