"""The text of a small model after each pass: any change of a pass shows as a diff of these files."""

from __future__ import annotations

import pytest

from mlc.frontend.nn import Weights
from mlc.frontend.registry import find
from mlc.passes import Pack, Quantize, clean, fold, fuse, quantize_activations

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 128,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("stage", ["frontend", "fused", "quantized", "activations", "packed", "folded", "conversion"])
def test_the_text_after_each_pass(stage, golden):
    module, config = find(CONFIG, "config.json")
    graph = clean(module.build(config, Weights({}, "bf16")))
    texts = {"frontend": str(graph)}
    for name, apply in (
        ("fused", fuse),
        ("quantized", Quantize()),
        ("activations", quantize_activations),
        ("packed", Pack(lambda t: "r16k4" if t.dtype == "q4_g32" else "r16k4u")),
    ):
        graph = apply(graph)
        texts[name] = str(graph)
    folded = fold(graph)
    texts |= {"folded": str(folded.forward), "conversion": str(folded.conversion)}
    golden(f"qwen3-{stage}.ir", f"{texts[stage]}\n")
