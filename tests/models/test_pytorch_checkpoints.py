"""The same model by transformers as safetensors and as torch.save's pickle: equal to the bit, read and compiled."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlc.backends.artifact import WEIGHTS
from mlc.compile import read_model
from mlc.frontend.checkpoints.pytorch import PYTORCH

torch = pytest.importorskip("torch")


def write_pickles(folder: Path, state: Mapping[str, Any], shards: int) -> None:
    """As transformers wrote them before version 5: one file, or some and an index."""
    if shards == 1:
        torch.save(state, folder / PYTORCH.single)
        return
    names = list(state)
    weight_map = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / PYTORCH.index).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


@pytest.fixture
def twins(tmp_path, checkpoint):
    """twins(variant, dtype, shards): the folder with safetensors, and the folder with pickles."""

    def make(variant: str, dtype: Any, shards: int) -> tuple[Path, Path]:
        case = checkpoint(variant)
        model = copy.deepcopy(case.oracle).to(dtype)
        plain, pickled = tmp_path / "plain", tmp_path / "pickled"
        model.save_pretrained(plain)
        pickled.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(case.folder / name, plain / name)
        for file in plain.glob("*.json"):
            shutil.copyfile(file, pickled / file.name)
        write_pickles(pickled, model.state_dict(), shards)
        return plain, pickled

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("variant", "shards"), [("llama", 1), ("qwen2", 1), ("qwen3", 3)])
def test_every_tensor_is_the_same(twins, variant, dtype, shards):
    plain, pickled = (read_model(folder, folder.name) for folder in twins(variant, dtype, shards))
    assert str(plain.graph) == str(pickled.graph)
    tied = {"lm_head.weight"} - plain.checkpoint.tensors().keys()
    assert pickled.checkpoint.tensors().keys() == plain.checkpoint.tensors().keys() | tied
    assert bool(tied) == (variant != "llama")
    for name, info in plain.checkpoint.tensors().items():
        expected, found = (model.checkpoint.rows(name, 0, info.shape[0]) for model in (plain, pickled))
        assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes(), name


def test_the_compiled_models_are_the_same(twins, compiled):
    """Tied, bfloat16, sharded."""
    plain, pickled = (compiled(folder, quant="q4") for folder in twins("one_layer", torch.bfloat16, 2))
    for name in (WEIGHTS, "program-forward.json", "tokenizer.json", "config.json"):
        assert (plain / name).read_bytes() == (pickled / name).read_bytes(), name
