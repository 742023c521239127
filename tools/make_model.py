"""Makes a model of a real shape with random weights, as GGUF files that this engine and its peers read.

    python tools/make_model.py qwen06 FOLDER        FOLDER/qwen06-F16.gguf, -Q8_0.gguf and -Q4_0.gguf

Speed does not depend on the values. Needs numpy and gguf; llama_cpp for the quantized files, which llama.cpp makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    architecture: str  # of GGUF; qwen3 has norms of q and k
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    context: int
    theta: float
    words: str  # how text is cut into words: tokenizer.ggml.pre


SHAPES = {
    "qwen06": Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6, "qwen2"),
    "llama1b": Shape("llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5, "llama-bpe"),
}
_QUANTIZED = {"Q8_0": 7, "Q4_0": 2}  # llama_ftype
_DEVIATION = 0.02


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor; the head is the embedding."""
    hidden, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        block = {"attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
        if shape.architecture == "qwen3":
            block |= {"attn_q_norm": (shape.head_dim,), "attn_k_norm": (shape.head_dim,)}
        block |= {"attn_output": (hidden, q), "ffn_norm": (hidden,), "ffn_gate": (shape.feed_forward, hidden)}
        block |= {"ffn_up": (shape.feed_forward, hidden), "ffn_down": (hidden, shape.feed_forward)}
        yield from ((f"blk.{layer}.{name}.weight", size) for name, size in block.items())
    yield "output_norm.weight", (hidden,)


def write(shape: Shape, path: Path, name: str, values: Callable[[str, tuple[int, ...]], Array] | None = None) -> None:
    """The model as a GGUF file: matrices F16, norms F32, a vocabulary of bytes and fillers.

    `values` gives the float32 numbers of a tensor by its name and shape; random ones without it.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), shape.architecture)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(shape.theta)
    writer.add_vocab_size(shape.vocab)
    _add_vocabulary(writer, shape, gguf.TokenType)
    values = values or _random()
    for tensor, size in tensors(shape):
        matrix = len(size) > 1
        writer.add_tensor(tensor, values(tensor, size).astype(np.float16 if matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random() -> Callable[[str, tuple[int, ...]], Array]:
    random = np.random.default_rng(0)

    def values(_: str, size: tuple[int, ...]) -> Array:
        return random.standard_normal(size, np.float32) * np.float32(_DEVIATION) + np.float32(len(size) == 1)

    return values


def _add_vocabulary(writer: Any, shape: Shape, kinds: Any) -> None:
    """Every byte, one pair that the only merge makes, fillers that no text reaches, and an end token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*alphabet, "ab"]
    words += [f"zz{i}" for i in range(shape.vocab - len(words) - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.words)
    writer.add_token_list([*words, "<|end|>"])
    writer.add_token_types([kinds.NORMAL] * len(words) + [kinds.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(shape.vocab - 1)
    writer.add_bos_token_id(shape.vocab - 1)
    writer.add_add_bos_token(False)


def quantize(source: Path, target: Path, file_type: int) -> None:
    """By llama.cpp itself. Raises RuntimeError."""
    import llama_cpp as llama

    params = llama.llama_model_quantize_default_params()
    params.ftype = file_type
    status = llama.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if status:
        raise RuntimeError(f"llama.cpp could not quantize {source} into {target} (status {status})")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    source = chosen.folder / f"{chosen.shape}-F16.gguf"
    write(SHAPES[chosen.shape], source, chosen.shape)
    print(source)
    for name, file_type in _QUANTIZED.items():
        target = chosen.folder / f"{chosen.shape}-{name}.gguf"
        try:
            quantize(source, target, file_type)
        except ImportError:
            print(f"no llama_cpp, so no {target.name}; pip install llama-cpp-python", file=sys.stderr)
            return 1
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
