from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mlc.errors import BadCheckpoint, UnsupportedModel
from mlc.frontend.checkpoints.folder import open_checkpoint
from mlc.frontend.checkpoints.gguf import Gguf
from mlc.frontend.checkpoints.gguf_blocks import BLOCKS
from mlc.frontend.checkpoints.gguf_names import GgufModel, gguf_name, hf_name

TYPES = {name: gguf.GGMLQuantizationType[name.upper().replace("_k", "_K")] for name in BLOCKS}


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_dequantize_to_the_bits_that_the_gguf_package_gives(name: str) -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (7, 3 * BLOCKS[name].bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales overflow
        ours, theirs = BLOCKS[name].decode(blocks).dequantize(), gguf.quants.dequantize(blocks, TYPES[name])
    finite = np.isfinite(theirs)
    assert finite.mean() > 0.9
    assert np.array_equal(ours[finite].view(np.uint32), theirs[finite].view(np.uint32))
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])  # those that the package can make
def test_numbers_that_the_gguf_package_quantized_come_back(name: str) -> None:
    numbers = np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(numbers, TYPES[name])
    ours = BLOCKS[name].decode(blocks).dequantize()
    assert np.array_equal(ours, gguf.quants.dequantize(blocks, TYPES[name]))
    assert np.abs(ours - numbers).max() < {"q8_0": 0.02, "q4_0": 0.3}[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_any_shape_are_an_array_of_about_their_size(name: str) -> None:
    block = BLOCKS[name]
    array = block.decode(np.random.default_rng(3).integers(0, 256, (2, 4, block.bytes), dtype=np.uint8))
    array.check()
    assert array.q.shape == (2, 4, block.numbers)
    assert block.bytes <= block.numbers * block.format.bits_per_weight / 8 <= 1.03 * block.bytes


def test_a_file_of_the_gguf_package_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    rng = np.random.default_rng(4)
    writer = gguf.GGUFWriter(path, "llama")
    for add, key, value in (
        (writer.add_uint8, "k.u8", 200), (writer.add_int8, "k.i8", -3), (writer.add_uint16, "k.u16", 65535),
        (writer.add_int16, "k.i16", -300), (writer.add_uint32, "k.u32", 1 << 31), (writer.add_int32, "k.i32", -5),
        (writer.add_uint64, "k.u64", 1 << 63), (writer.add_int64, "k.i64", -(1 << 62)),
        (writer.add_float32, "k.f32", 0.5), (writer.add_float64, "k.f64", 0.1), (writer.add_bool, "k.bool", True),
        (writer.add_string, "k.text", "löwe \N{LION FACE}"),
    ):  # fmt: skip
        add(key, value)
    writer.add_array("k.texts", ["a", "", "ß"])
    writer.add_array("k.numbers", [1, 2, 3])
    writer.add_array("k.bools", [True, False])
    plain: dict[str, np.ndarray[Any, Any]] = {
        "f32": rng.standard_normal((5, 3)).astype(np.float32),
        "f16": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "vector": rng.standard_normal(7).astype(np.float32),
    }
    for name, array in plain.items():
        writer.add_tensor(name, array)
    writer.add_tensor("bf16", np.full((2, 4), 0x3FC0, np.uint16), raw_dtype=gguf.GGMLQuantizationType.BF16)
    matrix = rng.standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("q8", gguf.quants.quantize(matrix, TYPES["q8_0"]), raw_dtype=TYPES["q8_0"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = Gguf(path)
    metadata = file.metadata()
    reader = gguf.GGUFReader(path)
    for field in reader.fields.values():
        if field.name.startswith("k."):
            ours, theirs = metadata[field.name], field.contents()
            assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == theirs
            assert type(ours) in (int, float, bool, str, list, np.ndarray)
    for tensor in reader.tensors:
        info = file.tensors()[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.dtype == tensor.tensor_type.name.lower()
    for name, array in plain.items():
        assert np.array_equal(file.rows(name, 0, len(array)), array)
        assert np.array_equal(file.rows(name, 1, 2), array[1:2])
    assert file.rows("bf16", 0, 1).astype(np.float32).tolist() == [[1.5] * 4]
    assert np.array_equal(file.blocks("q8", 2, 5), gguf.quants.quantize(matrix, TYPES["q8_0"])[2:5])
    assert not file.blocks("q8", 0, 6).flags.writeable


def test_the_trained_model_opens_under_hugging_face_names(assets: Path) -> None:
    checkpoint = open_checkpoint(assets / "stories260k" / "stories260K-f32.gguf")
    assert checkpoint.tensors()["model.layers.4.self_attn.k_proj.weight"].shape == (32, 64)
    assert len(checkpoint.tensors()) == 5 * 9 + 3
    config = checkpoint.config()
    assert config == {
        "model_type": "llama", "num_hidden_layers": 5, "hidden_size": 64, "intermediate_size": 172,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 512,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "permuted_qk": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    legacy = np.fromfile(assets / "stories260k" / "checkpoint_legacy.bin", np.float32, 512 * 64, offset=28)
    assert np.array_equal(checkpoint.rows("model.embed_tokens.weight", 0, 512).ravel(), legacy)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_names_are_those_of_the_gguf_package(architecture: str) -> None:
    kind = gguf.MODEL_ARCH[architecture.upper()]
    mapping = gguf.get_tensor_name_map(kind, 3)
    parts = ["input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj"]
    parts += ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    parts += ["self_attn.q_norm", "self_attn.k_norm"] if architecture == "qwen3" else []
    names = [f"model.layers.2.{part}.weight" for part in parts] + ["model.layers.0.self_attn.q_proj.bias"]
    for name in [*names, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]:
        theirs = mapping.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name(name) == theirs
        assert hf_name(theirs) == name
    assert hf_name("blk.0.ssm_a.weight") == "blk.0.ssm_a.weight"
    assert hf_name("rope_freqs.weight") == "rope_freqs.weight"


def small(path: Path, *, drop: str = "", change: Callable[[gguf.GGUFWriter], None] | None = None, **more: Any) -> Path:
    """A model of one layer's metadata, `drop` left out and `more` tensors added."""
    writer = gguf.GGUFWriter(path, more.pop("architecture", "llama"))
    settings: list[tuple[str, Callable[[], None]]] = [
        ("context_length", lambda: writer.add_context_length(64)),
        ("embedding_length", lambda: writer.add_embedding_length(32)),
        ("block_count", lambda: writer.add_block_count(1)),
        ("feed_forward_length", lambda: writer.add_feed_forward_length(48)),
        ("attention.head_count", lambda: writer.add_head_count(4)),
        ("attention.layer_norm_rms_epsilon", lambda: writer.add_layer_norm_rms_eps(1e-6)),
    ]
    for name, add in settings:
        if name != drop:
            add()
    if change:
        change(writer)
    tensors = {"token_embd.weight": np.zeros((10, 32), np.float32), **more}
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "key",
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_a_missing_setting_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadCheckpoint, match=f"lacks the metadata 'llama.{key}'"):
        GgufModel(small(tmp_path / "m.gguf", drop=key)).config()


def test_a_tied_model_with_scaled_positions_says_so(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_freq_base(500000.0)
        writer.add_head_count_kv(2)
        writer.add_sliding_window(7)

    more: dict[str, Any] = {"rope_freqs.weight": np.ones(4, np.float32), "blk.0.attn_q.bias": np.zeros(32, np.float32)}
    config = GgufModel(small(tmp_path / "m.gguf", change=change, **more)).config()
    assert config["tie_word_embeddings"] and config["rope_freqs"] and config["attention_bias"]
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config["rope_theta"] == 500000.0 and config["num_key_value_heads"] == 2
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 7)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_quantized_matrix_is_decoded_row_by_row(tmp_path: Path, name: str) -> None:
    blocks = np.random.default_rng(5).integers(0, 128, (6, 2 * BLOCKS[name].bytes), dtype=np.uint8)
    blocks[:, 1 :: BLOCKS[name].bytes] &= 0x3F
    blocks[:, 3 :: BLOCKS[name].bytes] &= 0x3F
    blocks[:, BLOCKS[name].bytes - 1 :: BLOCKS[name].bytes] &= 0x3F

    def matrix(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=TYPES[name])

    model = GgufModel(small(tmp_path / "m.gguf", change=matrix))
    info = model.tensors()["model.layers.0.mlp.up_proj.weight"]
    assert info.shape == (6, 2 * BLOCKS[name].numbers)
    array = model.decoded(info.name, 2, 5)
    array.check()
    assert str(array.format) == info.dtype
    assert np.array_equal(array.dequantize(), gguf.quants.dequantize(blocks[2:5], TYPES[name]))


def test_qwen_is_not_permuted(tmp_path: Path) -> None:
    def lengths(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(16)
        writer.add_value_length(16)

    config = GgufModel(small(tmp_path / "m.gguf", architecture="qwen3", change=lengths)).config()
    assert "permuted_qk" not in config and config["head_dim"] == 16 and config["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_expert_count(8), "mixture of experts"),
        (lambda w: w.add_value_length(5), "keys and values of different lengths"),
        (lambda w: w.add_uint32("split.count", 2), "gguf-split --merge"),
    ],
)
def test_what_mlc_cannot_run_is_refused(
    tmp_path: Path, change: Callable[[gguf.GGUFWriter], None], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        GgufModel(small(tmp_path / "m.gguf", change=change)).config()


def test_a_count_of_zero_is_no_divisor(tmp_path: Path) -> None:
    path = small(tmp_path / "m.gguf", drop="attention.head_count", change=lambda w: w.add_head_count(0))
    with pytest.raises(BadCheckpoint, match=r"'llama\.attention\.head_count' is '0'; expected a positive integer"):
        GgufModel(path).config()


def test_another_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="architecture 'mamba'; mlc reads GGUF files of llama, qwen2, qwen3"):
        GgufModel(small(tmp_path / "m.gguf", architecture="mamba")).config()


# a header by hand, for what the package refuses to write


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def container(pairs: list[bytes], infos: list[bytes], data: int, *, version: int = 3, counts: Any = None) -> bytes:
    tensors, entries = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(pairs + infos)
    return head + bytes(-len(head) % 32 + data)


U32 = struct.Struct("<I").pack
HUGE = 1 << 63


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GGML", "does not begin with GGUF"),
        (b"GGUF\3\0", "truncated"),
        (container([], [], 0, counts=(HUGE, 0)), "tensor infos would need"),
        (container([], [], 0, counts=(0, HUGE)), "metadata would need"),
        (container([pair(b"k", 4, U32(1))] * 2, [], 0), "'k' is there twice"),
        (container([pair(b"k", 99, b"")], [], 9), "unknown type 99"),
        (container([pair(b"k", 8, struct.pack("<Q", HUGE))], [], 9), "metadata 'k' would need"),
        (container([pair(b"k", 8, text(b"\xff"))], [], 9), "no UTF-8"),
        (container([pair(b"k", 7, b"\2")], [], 9), "no bool"),
        (container([pair(b"k", 9, U32(8) + struct.pack("<Q", 1 << 22))], [], 9), "metadata 'k' would need"),
        (container([pair(b"k", 9, U32(4) + struct.pack("<Q", 1 << 22))], [], 9), "metadata 'k' would need"),
        (container([pair(b"k", 9, U32(0) + struct.pack("<Q", HUGE))], [], 9), f"has {HUGE} elements"),
        (container([pair(b"k", 9, U32(9) + struct.pack("<Q", 1))], [], 9), "array inside an array"),
        (container([pair(b"", 4, U32(1))], [], 0), "has 0 characters"),
        (container([pair(b"general.alignment", 4, U32(0))], [], 0), "alignment is 0"),
        (container([pair(b"general.alignment", 4, U32(48))], [], 0), "alignment is 48"),
        (container([pair(b"general.alignment", 4, U32(1 << 20))], [], 0), "alignment is 1048576"),
        (container([], [info(b"a", [2, 2], 0, 0)] * 2, 64), "'a' is there twice"),
        (container([], [info(b"a", [4] * 5, 0, 0)], 64), "5 dims"),
        (container([], [info(b"a", [0, 4], 0, 0)], 64), "dim of 0"),
        (container([], [info(b"a", [HUGE, HUGE], 0, 0)], 64), "impossible shape"),
        (container([], [info(b"a", [8], 0, 3)], 64), "no multiple of the alignment"),
        (container([], [info(b"a", [8], 0, 64)], 64), "truncated"),
        (container([], [info(b"a", [8], 0, HUGE)], 64), "truncated"),
        (container([], [info(b"a", [16], 0, 0), info(b"b", [8], 0, 32)], 64), "'a' and 'b' overlap"),
        (container([], [info(b"a", [33, 2], 8, 0)], 99), "rows of a multiple of 32"),
        (container([], [info(b"a", [32], 8, 0)], 99), "rows of a multiple of 32"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        Gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (container([], [], 0, version=1), "version 1; mlc reads 2 and 3"),
        (container([], [], 0, version=3 << 24), "big endian"),
        (
            container([], [info(b"a", [32, 2], 3, 0)], 99),
            r"a \(Q4_1\); it reads BF16, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0",
        ),
        (container([], [info(b"a", [32, 2], 77, 0)], 99), r"a \(type 77\)"),
    ],
)
def test_what_mlc_does_not_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=message):
        Gguf(tmp_path / "m.gguf")


def test_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(container([], [info(b"a", [8], 0, 0)], 32, version=2))
    assert Gguf(tmp_path / "m.gguf").rows("a", 0, 8).tolist() == [0.0] * 8
