"""Perplexity of the bundled model at each precision, printed, and against transformers at the first."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import mlc
from mlc.backends.module import open_module
from mlc.runtime.tokenizer import Tokenizer
from mlc.tools.perplexity import perplexity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bundled():
    return Path(mlc.__file__).parent / "bundled"


def test_perplexity_by_precision(bundled, assets, compiled, capsys):
    """Far out of its domain, so the numbers are high; what counts is that rounding moves them little."""
    text = (assets / "text" / "tinyshakespeare" / "input.txt").read_text()[:6000]
    tokens = Tokenizer.open(bundled).encode(text)
    found = {}
    for quant in ("none", "q8", "q4"):
        found[quant] = perplexity(open_module(compiled(bundled, quant=quant)), tokens, window=256)
    with capsys.disabled():
        print("\nperplexity of the bundled model, tinyshakespeare:", {k: round(v, 2) for k, v in found.items()})

    oracle = transformers.AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).eval()
    loss, count = 0.0, 0
    for start in range(0, len(tokens) - 1, 256):
        part = torch.tensor([tokens[start : start + 256]])
        with torch.no_grad():
            logits = oracle(part).logits[0, :-1].double()
        loss += float(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum"))
        count += part.shape[1] - 1
    assert found["none"] == pytest.approx(math.exp(loss / count), rel=2e-3)
    assert found["q8"] == pytest.approx(found["none"], rel=0.02)
    assert found["q4"] == pytest.approx(found["none"], rel=0.5)
