"""A trained model by others (tinyllamas stories260K): its author's golden text, to the character.

The same weights come twice: as a GGUF file, and as llama2.c's own file, rewritten here as a safetensors folder.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc.backends.module import open_module
from mlc.frontend.checkpoints.folder import open_checkpoint
from mlc.frontend.checkpoints.gguf_tokenizer import write_tokenizer
from mlc.runtime.engine import Engine
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.tokenizer import Tokenizer

BOS = 1


def read_llama2c(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """config.json and tensors, by Hugging Face names, of a file in llama2.c's first format."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[:28])
    data = np.frombuffer(raw, np.float32, offset=28)
    used = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal used
        used += int(np.prod(shape))
        return data[used - int(np.prod(shape)) : used].reshape(shape)

    def half_split(w: np.ndarray, count: int) -> np.ndarray:
        """Rows of q or k from adjacent pairs to halves."""
        rows, columns = w.shape
        return w.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    d = dim // heads
    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    parts = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_heads * d, dim),
        "self_attn.v_proj": take(layers, kv_heads * d, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors["model.norm.weight"] = take(dim)
    for name, stack in parts.items():
        for i, w in enumerate(stack):
            heads_of = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            tensors[f"model.layers.{i}.{name}.weight"] = w if heads_of is None else half_split(w, heads_of)
    config = {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    return config, {name: np.ascontiguousarray(w) for name, w in tensors.items()}


@pytest.fixture(scope="module", params=["gguf", "safetensors"])
def artifact(request, assets, compiled, tmp_path_factory) -> Path:
    gguf = assets / "stories260k" / "stories260K-f32.gguf"
    if request.param == "gguf":
        return compiled(gguf)
    folder = tmp_path_factory.mktemp("stories")
    config, tensors = read_llama2c(assets / "stories260k" / "checkpoint_legacy.bin")
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(open_checkpoint(gguf).metadata(), folder)
    (folder / "config.json").write_text(json.dumps(config))
    return compiled(folder)


def test_the_golden_text_comes_out_to_the_character(artifact, assets):
    expected = json.loads((assets / "stories260k" / "expected_outputs.json").read_text())["greedy_200"]
    engine = Engine(open_module(artifact), Tokenizer.open(artifact))
    params = SamplingParams(temperature=0.0, max_tokens=200)
    assert "".join(output.text for output in engine.generate([BOS], params)).lstrip(" ") == expected


def test_the_golden_text_comes_over_http(artifact, assets):
    openai = pytest.importorskip("openai")
    expected = json.loads((assets / "stories260k" / "expected_outputs.json").read_text())["greedy_200"]
    command = [sys.executable, "-m", "mlc", "serve", "-m", str(artifact), "-p", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = next(m[0] for line in server.stdout if (m := re.search(r"http://[\d.]+:\d+/v1", line)))
        client = openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)
        name = client.models.list().data[0].id
        answer = client.completions.create(model=name, prompt=[BOS], max_tokens=200, temperature=0)
        assert answer.choices[0].text.lstrip(" ") == expected
        assert answer.usage.completion_tokens == 200
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stdout.close()
