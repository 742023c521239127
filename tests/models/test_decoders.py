"""Every decoder against transformers: logits, and greedy tokens however the work is cut up."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc.backends.reference import REFERENCE
from mlc.compile import read_model

VARIANTS = [
    "llama",
    "llama_tied",
    "llama_biased",
    "llama3_scaled",
    "smollm",
    "one_head",
    "mistral",
    "mistral_window",
    "qwen2",
    "qwen3",
]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0, 2, 8, 8, 4]
LONG = [(i * 37 + i * i) % 211 for i in range(150)]


def relative(ours: np.ndarray, oracle: np.ndarray) -> float:
    return float(np.abs(ours - oracle).max() / np.abs(oracle).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant, checkpoint, compiled, runner):
    case = checkpoint(variant)
    model = runner(compiled(case.folder))
    oracle = case.logits(LONG)
    for chunk in (150, 33, 7):
        assert relative(model.logits(LONG, chunk), oracle) < 1e-4, f"in chunks of {chunk}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_do_not_depend_on_how_the_prompt_is_cut(variant, checkpoint, compiled, runner):
    model = runner(compiled(checkpoint(variant).folder))
    whole = model.logits(LONG, 150)
    for chunk in (64, 17, 1):
        assert model.logits(LONG, chunk).tobytes() == whole.tobytes(), f"in chunks of {chunk}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_transformers(variant, checkpoint, compiled, runner, generate):
    case = checkpoint(variant)
    model = runner(compiled(case.folder)).model
    expected = case.greedy(PROMPT, 64)
    assert generate(model, [PROMPT], 64) == [expected]
    assert generate(model, [PROMPT], 64, max_step_tokens=5, max_sequences=2) == [expected], "chunked prefill"


@pytest.mark.parametrize("variant", ["llama", "mistral_window", "qwen2", "qwen3"])
def test_mixed_lengths_and_shared_prefixes_give_the_same_tokens(variant, checkpoint, compiled, runner, generate):
    case = checkpoint(variant)
    model = runner(compiled(case.folder)).model
    prompts = [PROMPT[:5], PROMPT, [*LONG[:64], 7], [*LONG[:64], 8, 9], LONG[:40]]
    expected = [case.greedy(p, 24) for p in prompts]
    assert generate(model, prompts, 24) == expected
    assert generate(model, prompts, 24, max_step_tokens=16, max_sequences=3) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_bit(threads, checkpoint, compiled, runner):
    artifact = compiled(checkpoint("qwen3").folder)
    assert runner(artifact, threads=threads).logits(LONG, 40).tobytes() == runner(artifact).logits(LONG, 40).tobytes()


def test_mapped_weights_give_the_same_bits_as_copied_ones(checkpoint, compiled, runner):
    artifact = compiled(checkpoint("llama").folder, quant="q4")
    mapped, copied = (runner(artifact, mapped=choice).logits(LONG, 40) for choice in (True, False))
    assert mapped.tobytes() == copied.tobytes()


def test_the_flat_list_gives_the_same_bits_as_the_step_program(checkpoint, compiled, runner):
    one, other = (runner(compiled(checkpoint("llama").folder)) for _ in range(2))
    executor = other.model.executor
    executor.step = lambda symbols, first, end: executor.step_flat(symbols, lambda i: None)
    assert other.logits(LONG, 50).tobytes() == one.logits(LONG, 50).tobytes()


def test_every_tensor_is_checked_before_anything_is_read(checkpoint):
    model = read_model(checkpoint("qwen2").folder, "qwen2")
    assert set(model.graph.weights()) <= set(model.checkpoint.tensors())
    assert set(n.op.name for n in model.graph.nodes) - {"weight"} <= set(REFERENCE)


@pytest.mark.parametrize("kept", ["lm_head.weight", "both"])
def test_a_tied_matrix_may_lie_under_either_name(kept, checkpoint, compiled, runner, tmp_path_factory):
    case = checkpoint("llama_tied")
    folder = tmp_path_factory.mktemp("tied")
    tensors = load_file(case.folder / "model.safetensors")
    table = tensors.pop("model.embed_tokens.weight")
    tensors |= {"lm_head.weight": table} | ({"model.embed_tokens.weight": table} if kept == "both" else {})
    save_file(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(case.folder / name, folder / name)
    assert relative(runner(compiled(folder)).logits(LONG, 150), case.logits(LONG)) < 1e-4
