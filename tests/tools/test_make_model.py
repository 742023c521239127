"""The models that the documented numbers are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlc.compile import read_model
from mlc.tools.make_model import SHAPES, Shape, tensors, write

gguf = pytest.importorskip("gguf")

SMALL = {
    "qwen3": Shape("qwen3", 2, 64, 4, 2, 16, 96, 300, 512, 1e6, "qwen2"),
    "llama": Shape("llama", 2, 64, 4, 2, 16, 96, 300, 512, 5e5, "llama-bpe"),
}


@pytest.mark.parametrize("architecture", SMALL)
def test_a_model_is_one_that_we_read(tmp_path: Path, architecture: str) -> None:
    shape = SMALL[architecture]
    write(shape, tmp_path / "model.gguf", "small")
    model = read_model(tmp_path / "model.gguf", "small")
    assert model.raw["model_type"] == architecture
    assert (model.config.context, model.config.vocab) == (512, 300)
    fields = {f.name: f for f in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert {name: tuple(reversed(f.shape.tolist())) for name, f in fields.items()} == dict(tensors(shape))
    values = fields["blk.1.ffn_down.weight"].data
    assert values.dtype == np.float16 and values.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("name", "parameters"), [("qwen06", 596_049_920), ("llama1b", 1_235_814_400)])
def test_the_shapes_are_those_of_the_released_models(name: str, parameters: int) -> None:
    """Qwen3-0.6B and Llama-3.2-1B, embedding and head counted once."""
    assert sum(int(np.prod(size)) for _, size in tensors(SHAPES[name])) == parameters
