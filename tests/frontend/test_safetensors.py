from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from mlc.errors import BadCheckpoint, UnsupportedModel
from mlc.frontend.checkpoints.folder import check, open_checkpoint
from mlc.frontend.checkpoints.safetensors import SAFETENSORS

SINGLE, INDEX = SAFETENSORS.single, SAFETENSORS.index


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_dtype_that_torch_writes_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "f32": torch.randn(3, 5),
        "f16": torch.randn(3, 5).half(),
        "bf16": torch.randn(3, 5).bfloat16(),
        "i8": torch.randint(-128, 127, (7,), dtype=torch.int8),
        "u8": torch.randint(0, 255, (1, 2, 3), dtype=torch.uint8),
        "i32": torch.randint(-(1 << 31), 1 << 31, (4,), dtype=torch.int32),
        "i64": torch.randint(-(1 << 62), 1 << 62, (4,)),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    safetensors.torch.save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata() == {"format": "pt"}
    assert {n: t.shape for n, t in checkpoint.tensors().items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    for name, tensor in tensors.items():
        expected = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if name == "bf16" else tensor.numpy()
        assert checkpoint.tensors()[name].dtype == {"scalar": "f32", "empty": "f32"}.get(name, name)
        rows = checkpoint.rows(name, 0, tensor.shape[0] if tensor.ndim else 1)
        assert rows.dtype == expected.dtype and rows.shape == expected.shape
        assert rows.tobytes() == expected.tobytes()


def test_a_range_of_rows_is_a_view_of_the_file_that_nobody_can_write(tmp_path: Path) -> None:
    whole = np.arange(40, dtype=np.float32).reshape(10, 4)
    header = json.dumps({"w": entry([10, 4], 0, 160)})
    write(tmp_path / SINGLE, header.ljust(-(-len(header) // 8) * 8).encode(), whole.tobytes())
    rows = open_checkpoint(tmp_path).rows("w", 3, 7)
    assert np.array_equal(rows, whole[3:7])
    assert not rows.flags.owndata and not rows.flags.writeable


def test_data_at_an_odd_offset_is_read(tmp_path: Path) -> None:
    header = json.dumps({"w": entry([2], 0, 8)})
    odd = header.ljust(len(header) + 1 - len(header) % 2).encode()
    write(tmp_path / SINGLE, odd, np.array([1.5, -2.5], np.float32).tobytes())
    rows = open_checkpoint(tmp_path).rows("w", 0, 2)
    assert rows.tolist() == [1.5, -2.5] and rows.flags.aligned


GOOD = {"a": entry([2, 2], 0, 16), "b": entry([2], 16, 24)}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"", 0, "no JSON object"),
        (b"[]", 0, "no JSON object"),
        (b"{", 0, "not readable"),
        (b'{"a":' * 100_000, 0, "not readable"),
        (b'{"a": {}, "a": {}}', 0, "'a' is there twice"),
        (b'{"\xff": {}}', 0, "not readable"),
        ({"a": 3}, 0, "must have dtype, shape"),
        ({"a": {**GOOD["a"], "more": 1}}, 16, "must have dtype, shape"),
        ({"a": {**GOOD["a"], "shape": [2, True]}}, 16, "wrong type"),
        ({"a": {**GOOD["a"], "shape": [-2, -2]}}, 16, "wrong type"),
        ({"a": {**GOOD["a"], "shape": 4}}, 16, "wrong type"),
        ({"a": {**GOOD["a"], "dtype": 7}}, 16, "wrong type"),
        ({"a": {**GOOD["a"], "data_offsets": [0, 16, 16]}}, 16, "wrong type"),
        ({"a": {**GOOD["a"], "data_offsets": [16, 0]}}, 16, "lies at 16..0"),
        ({"a": entry([1 << 62, 4], 0, 16)}, 16, "impossible shape"),
        ({"a": entry([4], 10**4000, 16)}, 16, "wrong type"),
        ({"a": entry([0, 1 << 62], 0, 0)}, 0, "impossible shape"),
        ({"a": entry([1] * 9, 0, 4)}, 4, "impossible shape"),
        ({"a": entry([2, 2], 0, 12)}, 16, "has 12 bytes, its shape and dtype need 16"),
        (GOOD, 20, "lies at 16..24 of 20 bytes"),
        (GOOD, 28, "holds 28 bytes of data, its tensors take 24"),
        ({"a": entry([2, 2], 0, 16), "b": entry([2], 12, 20)}, 24, "'a' and 'b' overlap"),
        ({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, 24, "holds 24 bytes of data, its tensors take 16"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
        ({"__metadata__": []}, 0, "__metadata__"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, header: Any, size: int, message: str) -> None:
    write(tmp_path / SINGLE, header, bytes(size))
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 1 << 63) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"empty|at least 8|truncated"):
        open_checkpoint(tmp_path)


def test_an_unknown_dtype_is_named_with_the_tensor(tmp_path: Path) -> None:
    write(tmp_path / SINGLE, {"x.weight": entry([4], 0, 4, "F8_E4M3")}, bytes(4))
    with pytest.raises(UnsupportedModel, match=r"'x\.weight' has dtype F8_E4M3; mlc reads F32, F16, BF16"):
        open_checkpoint(tmp_path)


def shards(folder: Path, index: dict[str, str], files: dict[str, list[str]]) -> None:
    for file, names in files.items():
        arrays = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(names)}
        safetensors.numpy.save_file(arrays, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    shards(
        tmp_path,
        {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"},
        {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]},
    )
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.tensors()) == ["a", "b", "c"]
    assert checkpoint.rows("b", 1, 2).tolist() == [[1.0, 1.0, 1.0]]


def test_one_of_several_shards_is_no_model(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": ["a"], "2.safetensors": ["b"]})
    with pytest.raises(BadCheckpoint, match=f"one of several shards; name their folder instead: {tmp_path}"):
        open_checkpoint(tmp_path / "1.safetensors")


@pytest.mark.parametrize(
    ("index", "files", "message"),
    [
        ({}, {}, "weight_map"),
        ({"a": "../1.safetensors"}, {}, "plain file name"),
        ({"a": "/etc/passwd.safetensors"}, {}, "plain file name"),
        ({"a": "x\\1.safetensors"}, {}, "plain file name"),
        ({"a": "1.bin"}, {}, "plain file name"),
        ({"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": ["a"]}, r"lacks the shard 2\.safetensors"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": ["a"]}, "holds b; it does not"),
        ({"a": "1.safetensors"}, {"1.safetensors": ["a", "b"]}, "holds b, which .* does not know"),
        (
            {"a": "1.safetensors", "b": "2.safetensors"},
            {"1.safetensors": ["a"], "2.safetensors": ["a", "b"]},
            "'a' is in an earlier shard",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    tmp_path: Path, index: dict[str, str], files: dict[str, list[str]], message: str
) -> None:
    shards(tmp_path, index, files)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(tmp_path)


def test_check_names_every_problem_at_once(tmp_path: Path) -> None:
    arrays = {f"extra.{i:02}": np.zeros((2,), np.float32) for i in range(12)}
    arrays |= {"w": np.zeros((2, 3), np.float32), "fine": np.zeros((1,), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    expected = {"w": (3, 2), "fine": (1,), "absent": (1,), "head": (9,)}
    with pytest.raises(BadCheckpoint) as caught:
        check(checkpoint, expected, optional={"head", "extra.00"})
    text = str(caught.value)
    assert "1 tensors are missing: absent\n" in text
    assert "11 tensors are unexpected: extra.01, extra.02, " in text and "extra.10 and 1 more\n" in text
    assert text.endswith("1 tensors have the wrong shape: w is [2, 3], expected [3, 2]")
    check(checkpoint, {name: array.shape for name, array in arrays.items()})


def test_a_folder_without_weights_is_told_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"found config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(UnsupportedModel, match=r"weights in model\.pt; .*pytorch_model\.bin.*save_pretrained"):
        open_checkpoint(tmp_path)
    with pytest.raises(BadCheckpoint, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(BadCheckpoint, match="no checkpoint"):
        open_checkpoint(tmp_path / "config.json")
