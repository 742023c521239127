"""Perplexity by precision, printed: at float32 that of transformers, and near it at every other precision."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlc
from mlc.backends.module import open_module
from mlc.runtime.tokenizer import Tokenizer
from mlc.tools.perplexity import perplexity
from mlc.tools.train_bundled.corpus import conversations
from mlc.tools.train_bundled.tokenizer import rendered

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BUNDLED = Path(mlc.__file__).parent / "bundled"
WINDOW = 256
BOUNDS = {
    "f32": 0,
    "f16": 2e-4,
    "q8": 0.01,
    "q6": 0.02,
    "q4": 0.2,
}  # relative; 4e-5, 0.004, 0.008 and 0.12 were measured


@pytest.fixture(scope="module")
def texts(assets):
    """By name, each in the pieces that have nothing to do with each other."""
    stories = (assets / "text" / "cs336" / "tinystories_sample.txt").read_text(encoding="utf-8")
    return {
        "tinyshakespeare": [(assets / "text" / "tinyshakespeare" / "input.txt").read_text()[:3000]],
        "tinystories": [story.strip() for story in stories.split("<|endoftext|>") if story.strip()],
    }


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory):
    """The bundled model with its weights rewritten from float16."""
    folder = tmp_path_factory.mktemp("bundled") / "float32"
    shutil.copytree(BUNDLED, folder)
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float16)}
    save_file({name: t.astype(np.float32) for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def by_transformers(model, documents):
    loss, count = 0.0, 0
    for tokens in documents:
        for start in range(0, len(tokens) - 1, WINDOW):
            part = torch.tensor([tokens[start : start + WINDOW]])
            with torch.no_grad():
                logits = model(part).logits[0, :-1].double()
            loss += float(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum"))
            count += part.shape[1] - 1
    return math.exp(loss / count)


def encoded(texts, artifact, **options):
    tokenizer = Tokenizer.open(artifact)
    return {title: [tokenizer.encode(piece, **options) for piece in pieces] for title, pieces in texts.items()}


def measure(artifacts, oracle, documents, name, show):
    """Perplexity by text and precision, checked: float32 against transformers, the others against float32."""
    models = {precision: open_module(artifact) for precision, artifact in artifacts.items()}
    for title, part in documents.items():
        row = {precision: perplexity(model, part, window=WINDOW) for precision, model in models.items()}
        with show.disabled():
            print(f"\n{name}, {title}:", ", ".join(f"{precision} {value:.3f}" for precision, value in row.items()))
        assert row["f32"] == pytest.approx(by_transformers(oracle, part), rel=1e-5), title
        for precision, value in row.items():
            assert value == pytest.approx(row["f32"], rel=BOUNDS[precision]), (title, precision)


def test_the_bundled_model(texts, compiled, in_float32, capsys):
    """Far out of its domain the numbers are high; what counts is how little rounding moves them."""
    artifacts = {"f32": compiled(in_float32), "f16": compiled(BUNDLED)}
    artifacts |= {quant: compiled(BUNDLED, quant=quant) for quant in ("q8", "q6", "q4")}
    own = {"held-out conversations": [rendered(c) for c in itertools.islice(conversations(1, held_out=True), 20)]}
    documents = encoded(texts, BUNDLED) | encoded(own, BUNDLED, special=True)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(in_float32, dtype=torch.float32).eval()
    measure(artifacts, oracle, documents, "bundled model", capsys)


def test_stories260k(stories_folder, texts, compiled, capsys):
    """Trained on TinyStories by others."""
    artifacts = {"f32": compiled(stories_folder)}
    artifacts |= {quant: compiled(stories_folder, quant=quant) for quant in ("q8", "q6", "q4")}
    oracle = transformers.AutoModelForCausalLM.from_pretrained(stories_folder).eval()
    measure(artifacts, oracle, encoded(texts, artifacts["f32"]), "stories260k", capsys)
