"""GGUF files of every supported tensor type, written by the gguf package, against transformers on the same numbers."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest

from mlc.backends.reference import REFERENCE
from mlc.compile import read_model, stages
from mlc.options import Options

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "head_dim": 64,
}
TOKENS = [(i * 37 + i * i) % 96 for i in range(40)]
KIND = gguf.GGMLQuantizationType
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name.replace("model.layers.", "blk.")


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of the llama architecture."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def stored(w: np.ndarray, kind, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(the tensor as the file holds it, the numbers it means). K-quants, which gguf cannot make, get random blocks."""
    if kind in (KIND.F32, KIND.F16, KIND.BF16, KIND.Q8_0, KIND.Q4_0):
        data = gguf.quants.quantize(w, kind)
    else:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = random.integers(0, 256, (w.shape[0], w.shape[1] // block, size), dtype=np.uint8)
        scale = np.full((*raw.shape[:2], 1), 2e-5, np.float16).view(np.uint8)
        places = {KIND.Q4_K: (0, 2), KIND.Q6_K: (208,)}[kind]
        for place in places:
            raw[..., place : place + 2] = scale
        data = raw.reshape(w.shape[0], -1)
    return data, gguf.quants.dequantize(data, kind)


def write(path, architecture: str, kind) -> Any:
    """A GGUF file, and transformers' model of the numbers it holds."""
    torch.manual_seed(3)
    model_type = architecture
    sizes = dict(SIZES) if architecture == "qwen3" else {k: v for k, v in SIZES.items() if k != "head_dim"}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    oracle = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(96)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    alphabet = [*map(chr, range(33, 127)), "Ġ", "ab"]
    writer.add_token_list(alphabet)
    writer.add_token_types([gguf.TokenType.NORMAL] * 96)
    writer.add_token_merges(["a b"])
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            w = parameter.numpy().copy()
            if w.ndim == 1:
                w += random.standard_normal(w.shape).astype(np.float32) * 0.2
                writer.add_tensor(gguf_name(name), w)
                parameter.copy_(torch.tensor(w))
                continue
            edge = "embed" in name or "lm_head" in name
            used = KIND.Q8_0 if edge and kind not in (KIND.F32, KIND.F16, KIND.BF16) else kind
            data, numbers = stored(w, used, random)
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
            if heads and architecture == "llama":  # rows move whole, so blocks can be moved too
                data = permuted(data, heads)
            writer.add_tensor(gguf_name(name), data, raw_dtype=used)
            parameter.copy_(torch.tensor(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return oracle


@pytest.mark.parametrize("kind", [KIND.F32, KIND.F16, KIND.BF16, KIND.Q8_0, KIND.Q4_0, KIND.Q4_K, KIND.Q6_K])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_gguf_model_equals_transformers_on_its_numbers(architecture, kind, tmp_path_factory, compiled, runner):
    path = tmp_path_factory.mktemp("gguf") / f"{architecture}-{kind.name}.gguf"
    oracle = write(path, architecture, kind)
    ours = runner(compiled(path)).logits(TOKENS, 40)
    with torch.no_grad():
        expected = oracle(torch.tensor([TOKENS])).logits[0].numpy()
    # Products with quantized weights round their input to 8 bits; 16-bit files keep their KV cache in f16.
    tolerance = {KIND.F32: 1e-4, KIND.F16: 2e-3, KIND.BF16: 2e-3}.get(kind, 5e-2)
    assert np.abs(ours - expected).max() < tolerance * np.abs(expected).max()


def test_blocks_are_rounded_again_where_fewer_bits_are_asked_for(tmp_path, compiled, runner):
    path = tmp_path / "llama-Q6_K.gguf"
    oracle = write(path, "llama", KIND.Q6_K)
    ours = runner(compiled(path, quant="q4", embedding_quant="q4")).logits(TOKENS, 40)

    def error() -> float:
        with torch.no_grad():
            expected = oracle(torch.tensor([TOKENS])).logits[0].numpy()
        return np.abs(ours - expected).max() / np.abs(expected).max()

    as_stored = error()
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.ndim == 2:
                rounded = REFERENCE["quantize"](parameter.numpy(), bits=4, group=32, symmetric=True, scale="f16")
                parameter.copy_(torch.tensor(rounded.dequantize()))
    assert error() < 5e-2 < as_stored


@pytest.mark.parametrize(("quant", "embedding_quant"), [("q6", "auto"), ("q8", "q8"), ("none", "q8a")])
def test_blocks_stay_where_as_many_bits_or_more_are_asked_for(quant, embedding_quant, tmp_path):
    path = tmp_path / "llama-Q6_K.gguf"
    write(path, "llama", KIND.Q6_K)
    plain, asked = (
        stages(read_model(path, "model"), options, lambda t: "")["quantized"]
        for options in (Options(), Options(quant=quant, embedding_quant=embedding_quant))
    )
    assert str(asked) == str(plain)
