"""The bundled model: a whole small checkpoint that answers the documented prompts, and the generator of its text."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

import mlc
from mlc.tools.train_bundled.corpus import conversations, is_held_out
from mlc.tools.train_bundled.exchange import Exchange, pick
from mlc.tools.train_bundled.tokenizer import encode, rendered

FOLDER = Path(mlc.__file__).parent / "bundled"
LIMIT = 4_000_000  # bytes
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "prompts.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    return loaded


def test_the_folder_is_complete_and_fits_into_four_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == FILES
    assert sum(sizes.values()) <= LIMIT


def test_the_weights_are_those_that_the_config_promises(config: dict[str, Any]) -> None:
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    expected = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [queries, hidden],
            "self_attn.k_proj": [keys, hidden],
            "self_attn.v_proj": [keys, hidden],
            "self_attn.o_proj": [hidden, queries],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }.items():
            expected[f"model.layers.{layer}.{name}.weight"] = shape
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == expected
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float16"} == {config["torch_dtype"]}
    assert all(math.isfinite(float(tensor.astype("float32").sum())) for tensor in tensors.values())


def test_every_matrix_divides_into_groups_of_32_and_heads_are_grouped(config: dict[str, Any]) -> None:
    assert all(config[key] % 32 == 0 for key in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    assert 0 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["model_type"] == "llama" and config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    "text", ["Hello!", "What is 7 + 5?", "two\nlines\n\n  and blanks ", "naïve 日本語 🙂", "\x00\x7f"]
)
def test_the_tokenizer_gives_every_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens_and_marks_have_the_ids_of_the_config(
    tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
    assert tokenizer.encode("1024").tokens == ["1", "0", "2", "4"]
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"]
    assert json.loads((FOLDER / "generation_config.json").read_text())["eos_token_id"] == config["eos_token_id"]


def test_the_chat_template_writes_what_the_model_was_trained_on() -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(FOLDER)
    for conversation in itertools.islice(conversations(7), 50):
        assert loaded.apply_chat_template(conversation, tokenize=False) == rendered(conversation)
    asked = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_transformers_gives_the_stored_answers_and_every_answer_ends_by_itself(prompts: list[dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    for prompt in prompts:
        inputs = loaded.apply_chat_template(
            prompt["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs, max_new_tokens=128)[0, inputs["input_ids"].shape[1] :].tolist()
        assert out[-1] == loaded.eos_token_id, prompt
        assert loaded.decode(out, skip_special_tokens=True) == prompt["answer"]


@pytest.mark.parametrize(
    ("question", "sense"),
    [
        ("Hello!", "Hello"),
        ("Who are you?", "small model that comes with mlc"),
        ("What is mlc?", "compiler"),
        ("How do I start a server?", "mlc serve"),
        ("How do I compile a model?", "mlc compile"),
        ("What is the capital of France?", "Paris"),
        ("And Italy?", "Rome"),
        ("What is 7 + 5?", "= 12."),
        ("What is the opposite of hot?", "cold"),
        ("Which day comes after Monday?", "Tuesday"),
        ("Tell me a story about a fox.", r"fox named (\w+) .*\b\1\b"),
        ("My name is Ada.", "Ada"),
        ("What is the capital of Japan?", r"^Tokyo\.$"),
        ("How many legs does a spider have?", "Arr.*8"),
        ("Thank you!", "welcome"),
    ],
)
def test_the_documented_answers_make_sense(prompts: list[dict[str, Any]], question: str, sense: str) -> None:
    [answer] = [prompt["answer"] for prompt in prompts if prompt["messages"][-1]["content"] == question]
    assert re.search(sense, answer)


def test_equal_seeds_write_equal_text_and_others_do_not() -> None:
    first, again, other = (list(itertools.islice(conversations(seed), 100)) for seed in (0, 0, 1))
    assert first == again != other


def test_nothing_that_is_held_out_is_trained_on() -> None:
    def asked(held_out: bool, count: int) -> list[str]:
        stream = itertools.islice(conversations(0, held_out=held_out), count)
        turns = ([message["content"] for message in talk if message["role"] == "user"] for talk in stream)
        return [questions[0] for questions in turns if len(questions) == 1]

    held_out, trained = asked(True, 300), asked(False, 3000)
    assert len(held_out) > 50
    assert all(is_held_out([Exchange(question, "")]) for question in held_out)
    assert not set(held_out) & set(trained)


def test_only_answers_and_their_end_are_learned(tokenizer: Tokenizer) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "assistant?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No."},
    ]
    [(ids, learn)] = encode(tokenizer, [talk])
    learned = [token for token, wanted in zip(ids, learn, strict=True) if wanted]
    assert tokenizer.decode(learned, skip_special_tokens=False) == "Yes.<|im_end|>No.<|im_end|>"


def test_a_pattern_offers_each_of_its_readings() -> None:
    rng = random.Random(0)
    assert {pick(rng, "(a|b)( c|)|d") for _ in range(200)} == {"A", "B", "A c", "B c", "D"}
