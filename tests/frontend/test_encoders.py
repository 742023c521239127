"""Two models that are no decoder, against transformers on small random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModel

from mlc.backends.reference import evaluate
from mlc.errors import BadConfig, InputError, UnsupportedModel
from mlc.frontend.nn import Weights
from mlc.frontend.registry import find
from mlc.ir import Graph, parse_graph, verify

Array = np.ndarray[Any, Any]

SIZES = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 52}
VIT = {
    **SIZES,
    "image_size": 14,
    "patch_size": 4,
    "num_channels": 3,
}  # two pixels of a side are left over
BERT = {**SIZES, "vocab_size": 61, "max_position_embeddings": 16, "type_vocab_size": 3}


def checkpoint(kind: str, settings: Mapping[str, Any], folder: Path) -> tuple[Any, Graph, dict[str, Array]]:
    """transformers' model, our graph of the same saved checkpoint, and its weights by name."""
    torch.manual_seed(0)
    oracle = AutoModel.from_config(AutoConfig.for_model(kind, **settings)).float().eval()
    with torch.no_grad():  # biases start at zero and norms at one; make all of them matter
        for parameter in oracle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    oracle.save_pretrained(folder)
    weights: dict[str, Array] = load_file(folder / "model.safetensors")
    module, config = find(json.loads((folder / "config.json").read_text()), "config.json")
    graph: Graph = module.build(config, Weights(dict.fromkeys(weights, "f32")))
    assert verify(parse_graph(str(graph))) == graph
    assert {name: node.output.tensor.shape for name, node in graph.weights().items()} == {
        name: weight.shape for name, weight in weights.items()
    }, "the graph must use every tensor of the checkpoint, and no other"
    return oracle, graph, weights


def close(actual: Array, expected: torch.Tensor) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "extra", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_pytorch_tanh"}, {"num_channels": 1, "patch_size": 7}]
)
def test_vit_is_that_of_transformers(extra: dict[str, Any], tmp_path: Path) -> None:
    oracle, graph, weights = checkpoint("vit", {**VIT, **extra}, tmp_path)
    shape = (2, extra.get("num_channels", 3), 14, 14)
    pixels = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    hidden, pooled = evaluate(graph, {"pixels": pixels}, weights.__getitem__)
    with torch.no_grad():
        expected = oracle(torch.tensor(pixels))
    close(hidden, expected.last_hidden_state)
    close(pooled, expected.pooler_output)


@pytest.mark.parametrize("extra", [{}, {"hidden_act": "gelu_new", "num_attention_heads": 1}, {"layer_norm_eps": 0.1}])
@pytest.mark.parametrize("lengths", [(7,), (5, 11, 1), (16, 16)])
def test_bert_is_that_of_transformers(extra: dict[str, Any], lengths: tuple[int, ...], tmp_path: Path) -> None:
    oracle, graph, weights = checkpoint("bert", {**BERT, **extra}, tmp_path)
    random = np.random.default_rng(1)
    shape = (len(lengths), max(lengths))
    tokens, types = (random.integers(0, high, shape).astype(np.int32) for high in (61, 3))
    feeds = {"positions": np.arange(shape[1], dtype=np.int32), "lengths": np.array(lengths, np.int32)}
    hidden, mean, pooled = evaluate(graph, {"tokens": tokens, "types": types, **feeds}, weights.__getitem__)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        expected = oracle(torch.tensor(tokens), attention_mask=mask.long(), token_type_ids=torch.tensor(types))
    for i, length in enumerate(lengths):
        close(hidden[i, :length], expected.last_hidden_state[i, :length])
        close(mean[i], expected.last_hidden_state[i, :length].mean(0))
    close(pooled, expected.pooler_output)


@pytest.mark.parametrize(("kind", "settings"), [("vit", VIT), ("bert", BERT)])
def test_a_checkpoint_without_a_pooler_has_one_output_less(kind: str, settings: dict[str, Any]) -> None:
    module, config = find({"model_type": kind, **settings}, "config.json")
    with_pooler = module.build(config, Weights({"pooler.dense.weight": "f16"}))
    without = module.build(config, Weights({}))
    assert len(with_pooler.outputs) == len(without.outputs) + 1
    assert "pooler.dense.weight" in with_pooler.weights() and "pooler.dense.weight" not in without.weights()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({**BERT, "model_type": "bert", "is_decoder": True}, UnsupportedModel, "is_decoder is True"),
        ({**BERT, "model_type": "bert", "hidden_act": "relu"}, UnsupportedModel, "hidden_act is 'relu'"),
        (
            {**BERT, "model_type": "bert", "position_embedding_type": "relative_key"},
            UnsupportedModel,
            "position_embedding_type is 'relative_key'",
        ),
        ({**BERT, "model_type": "bert", "num_attention_heads": 5}, BadConfig, "36 does not divide into 5"),
        ({**VIT, "model_type": "vit", "patch_size": 15}, BadConfig, "patch_size 15 is larger than image_size 14"),
        ({**VIT, "model_type": "vit", "pooler_output_size": 7}, UnsupportedModel, "pooler_output_size is 7"),
        ({**VIT, "model_type": "vit", "mask_ratio": 0.5}, UnsupportedModel, "mask_ratio=0.5"),
    ],
)
def test_settings_that_would_change_the_result_are_named(
    settings: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        find(settings, "config.json")
