"""Thousands of damaged files: whatever the bytes say, only a named error comes out, soon and in little memory."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch

from mlc.errors import InputError
from mlc.frontend.checkpoints.folder import open_checkpoint
from mlc.frontend.checkpoints.gguf_blocks import BLOCKS
from mlc.frontend.checkpoints.reader import Checkpoint

MEMORY = 4 << 20  # bytes at once; the files have less than 8 KB
SECONDS = 1.0  # of this thread, for one file
COUNT = 2500  # files of each kind

EXTREMES = [0, 1, 7, 0x7F, 0xFF, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 63) - 1,
            1 << 63, (1 << 64) - 1, (1 << 64) - 32]  # fmt: skip


def damage(rng: random.Random, good: bytes, header: int) -> bytes:
    """`good` with one to four changes, most of them in the first `header` bytes."""
    data = bytearray(good)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        end = max(1, min(len(data), header if rng.random() < 0.9 else len(data)))
        at, other, size = rng.randrange(end), rng.randrange(end), rng.randrange(1, 40)
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
            case 1:
                del data[at:]
            case 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 3:
                data[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                data[at : at + size] = data[other : other + size]
            case 5:
                data[at:at] = data[other : other + size]
            case 6:
                del data[at : at + size]
            case 7:
                data[at : at + size] = rng.randbytes(size)
    return bytes(data)


def use(checkpoint: Checkpoint) -> None:
    """Read the ends of every tensor; the last row is the one that a lie would put outside the file."""
    for name, info in checkpoint.tensors().items():
        rows = info.shape[0] if info.shape else 1
        for start, stop in {(0, min(1, rows)), (max(0, rows - 1), rows)}:
            if info.dtype.startswith("q"):
                assert checkpoint.decoded(name, start, stop).q.shape[1:] == info.shape[1:]
            else:
                assert checkpoint.rows(name, start, stop).shape[1:] == info.shape[1:]


def survive(files: Iterator[bytes], path: Path, open: Callable[[], Checkpoint]) -> tuple[int, int]:
    """Open every one of `files`, written to `path`. Returns how many opened and how many were refused."""
    opened = refused = 0
    tracemalloc.start()
    try:
        for number, content in enumerate(files):
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.thread_time()
            try:
                use(open())
                opened += 1
            except InputError as error:
                assert len(str(error)) < 4000, f"file {number} has a message of {len(str(error))} characters"
                refused += 1
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY, f"file {number} took too much memory"
            assert time.thread_time() - start < SECONDS, f"file {number} took too long"
    finally:
        tracemalloc.stop()
    return opened, refused


@pytest.fixture(scope="module")
def safetensors_file() -> bytes:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"layer.{i}.w": rng.standard_normal((4, 6)).astype(np.float32) for i in range(3)}
    arrays |= {"i": np.arange(5, dtype=np.int64), "h": np.ones((2, 2, 2), np.float16), "flag": np.array([True])}
    return safetensors.numpy.save(arrays, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["<s>", "a", "b", "ab"])
    writer.add_token_scores([0.0, -1.0, -2.0, -3.0])
    writer.add_array("k.flags", [True, False])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    for name in BLOCKS:
        blocks = np.zeros((3, BLOCKS[name].bytes), np.uint8)
        kind = gguf.GGMLQuantizationType[name.replace("q", "Q", 1)]
        writer.add_tensor(f"blk.0.{name}.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def pytorch_file() -> bytes:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = OrderedDict({f"layer.{i}.w": torch.randn(4, 6) for i in range(3)}, tied=base, view=base.t()[1:3])
    state |= {"i": torch.arange(5), "h": torch.ones(2, 2, 2).half(), "parameter": torch.nn.Parameter(torch.ones(2))}
    stream = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, stream)
    return stream.getvalue()


def test_the_undamaged_files_open(
    tmp_path: Path, safetensors_file: bytes, gguf_file: bytes, pytorch_file: bytes
) -> None:
    files = {"model.safetensors": safetensors_file, "m.gguf": gguf_file, "pytorch_model.bin": pytorch_file}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        use(open_checkpoint(tmp_path / name))


def test_damaged_safetensors(tmp_path: Path, safetensors_file: bytes) -> None:
    rng = random.Random(1)
    header = 8 + int.from_bytes(safetensors_file[:8], "little")
    path = tmp_path / "model.safetensors"
    files = (damage(rng, safetensors_file, header) for _ in range(COUNT))
    opened, refused = survive(files, path, lambda: open_checkpoint(tmp_path))
    assert opened > COUNT // 100 and refused > COUNT // 2  # the changes reach both ways out


def test_safetensors_headers_that_are_json_and_lie(tmp_path: Path, safetensors_file: bytes) -> None:
    rng = random.Random(2)
    size = int.from_bytes(safetensors_file[:8], "little")
    good, data = safetensors_file[8 : 8 + size], safetensors_file[8 + size :]
    values: list[Any] = [*EXTREMES, -1, 1.5, True, None, "x", [], {}, [[]], 10**4000, [1 << 62] * 3, [0, 8], [8, 0]]

    def files() -> Iterator[bytes]:
        for _ in range(COUNT):
            header = json.loads(good)
            entry = header[rng.choice(sorted(header))]
            key = rng.choice(sorted(entry))
            if isinstance(entry[key], list) and rng.random() < 0.7:
                entry[key][rng.randrange(len(entry[key]))] = rng.choice(values)
            else:
                entry[key] = rng.choice(values)
            text = json.dumps(header).encode()
            yield struct.pack("<Q", len(text)) + text + data[: rng.choice([len(data), len(data), len(data) // 2])]

    opened, refused = survive(files(), tmp_path / "model.safetensors", lambda: open_checkpoint(tmp_path))
    assert opened > 0 and refused > COUNT // 2


def test_damaged_indexes_of_shards(tmp_path: Path, safetensors_file: bytes) -> None:
    rng = random.Random(3)
    header = json.loads(safetensors_file[8 : 8 + int.from_bytes(safetensors_file[:8], "little")])
    (tmp_path / "1.safetensors").write_bytes(safetensors_file)
    index = json.dumps({"weight_map": {n: "1.safetensors" for n in header if n != "__metadata__"}}).encode()
    path = tmp_path / "model.safetensors.index.json"
    files = (damage(rng, index, len(index)) for _ in range(COUNT // 5))
    _, refused = survive(files, path, lambda: open_checkpoint(tmp_path))
    assert refused > COUNT // 20


def test_damaged_gguf(tmp_path: Path, gguf_file: bytes) -> None:
    rng = random.Random(4)
    header = len(gguf_file) - 4 * 32 * 4 - 3 * sum(block.bytes + 32 for block in BLOCKS.values())
    path = tmp_path / "m.gguf"

    def open() -> Checkpoint:
        checkpoint = open_checkpoint(path)
        checkpoint.config()
        return checkpoint

    opened, refused = survive((damage(rng, gguf_file, header) for _ in range(2 * COUNT)), path, open)
    assert opened > COUNT // 20 and refused > COUNT // 2


def test_every_truncation_of_a_gguf_header_is_refused(tmp_path: Path, gguf_file: bytes) -> None:
    files = (gguf_file[:size] for size in range(0, len(gguf_file) - 32, 3))
    opened, _ = survive(files, tmp_path / "m.gguf", lambda: open_checkpoint(tmp_path / "m.gguf"))
    assert opened == 0


def test_damaged_pytorch_archives(tmp_path: Path, pytorch_file: bytes) -> None:
    rng = random.Random(5)
    files = (damage(rng, pytorch_file, len(pytorch_file)) for _ in range(COUNT))
    opened, refused = survive(files, tmp_path / "pytorch_model.bin", lambda: open_checkpoint(tmp_path))
    assert opened > COUNT // 20 and refused > COUNT // 4


def with_pickle(pytorch_file: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another data.pkl, everything else as it was."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pytorch_file)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("/data.pkl") else content)
    return stream.getvalue()


def test_damaged_pickles(tmp_path: Path, pytorch_file: bytes) -> None:
    rng = random.Random(6)
    files = (with_pickle(pytorch_file, lambda good: damage(rng, good, len(good))) for _ in range(COUNT // 2))
    opened, refused = survive(files, tmp_path / "pytorch_model.bin", lambda: open_checkpoint(tmp_path))
    assert opened > COUNT // 200 and refused > COUNT // 4


def test_pickles_whose_operations_are_shuffled(tmp_path: Path, pytorch_file: bytes) -> None:
    """Each operation is whole, so that the machine gets further than where bytes are damaged."""
    rng = random.Random(7)
    with zipfile.ZipFile(io.BytesIO(pytorch_file)) as archive:
        good = archive.read("archive/data.pkl")
    starts = [at for _, _, at in pickletools.genops(good) if at is not None]
    whole = [good[a:b] for a, b in zip(starts, [*starts[1:], len(good)], strict=True)]
    bare = [op.code.encode("latin-1") for op in pickletools.opcodes if op.arg is None]

    def shuffled(content: bytes) -> bytes:
        assert content == good
        operations = list(whole)
        for _ in range(rng.choice([1, 2, 5, 20])):
            at, size = rng.randrange(len(operations)), rng.choice([0, 1, 1, 3])
            operations[at : at + size] = [rng.choice(rng.choice([whole, bare])) for _ in range(rng.randrange(3))]
        return b"".join(operations)

    files = (with_pickle(pytorch_file, shuffled) for _ in range(COUNT // 2))
    opened, refused = survive(files, tmp_path / "pytorch_model.bin", lambda: open_checkpoint(tmp_path))
    assert opened > COUNT // 200 and refused > COUNT // 4
