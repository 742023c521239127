"""Two models that are no decoder, compiled: the IR and the backend are not shaped like Llama."""

from __future__ import annotations

import numpy as np
import pytest

from mlc.backends.module import Artifact, Function, open_module
from mlc.errors import ArtifactError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 52}
VIT = {**SIZES, "image_size": 22, "patch_size": 5, "num_channels": 3}
BERT = {**SIZES, "vocab_size": 61, "max_position_embeddings": 24, "type_vocab_size": 2}


def make(kind: str, settings: dict[str, int], folder):
    torch.manual_seed(0)
    oracle = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings)).float().eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    oracle.save_pretrained(folder)
    return oracle


def close(ours: np.ndarray, oracle) -> None:
    np.testing.assert_allclose(ours, oracle.numpy(), rtol=1e-4, atol=1e-4)


def test_vit_compiles_and_equals_transformers(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("vit")
    oracle = make("vit", VIT, folder)
    encode = Function(Artifact(compiled(folder)), "encode")
    for batch in (1, 3, 8):
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, 22, 22)).astype(np.float32)
        with torch.no_grad():
            expected = oracle(torch.tensor(pixels))
        hidden, pooled = encode(pixels=pixels)
        close(hidden, expected.last_hidden_state)
        close(pooled, expected.pooler_output)


def test_bert_compiles_and_equals_transformers(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("bert")
    oracle = make("bert", BERT, folder)
    encode = Function(Artifact(compiled(folder)), "encode")
    random = np.random.default_rng(0)
    for lengths in ((7,), (5, 11, 1), (24, 24)):
        batch, width = len(lengths), max(lengths)
        tokens, types = (random.integers(0, high, (batch, width)).astype(np.int32) for high in (61, 2))
        mask = np.arange(width) < np.array(lengths)[:, None]
        with torch.no_grad():
            expected = oracle(*(torch.tensor(a.astype(np.int64)) for a in (tokens, mask, types)))
        hidden, mean, pooled = encode(
            tokens=tokens,
            types=types,
            positions=np.arange(width, dtype=np.int32),
            lengths=np.array(lengths, np.int32),
        )
        state = expected.last_hidden_state
        for i, length in enumerate(lengths):
            close(hidden[i, :length], state[i, :length])
            close(mean[i], state[i, :length].mean(0))
        close(pooled, expected.pooler_output)


def test_shapes_that_do_not_fit_are_named(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("vit")
    make("vit", VIT, folder)
    artifact = compiled(folder)
    encode = Function(Artifact(artifact), "encode")
    with pytest.raises(ArtifactError, match="pixels has shape"):
        encode(pixels=np.zeros((1, 3, 21, 22), np.float32))
    with pytest.raises(ArtifactError, match="b must be 1 to 8"):
        encode(pixels=np.zeros((9, 3, 22, 22), np.float32))
    with pytest.raises(ArtifactError, match="encoder"):
        open_module(artifact)
