"""PyTorch's own files: read to the bit without torch, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from mlc.errors import BadCheckpoint, InputError, UnsupportedModel
from mlc.frontend.checkpoints import pytorch, pytorch_pickle
from mlc.frontend.checkpoints.folder import open_checkpoint
from mlc.frontend.checkpoints.pytorch import PYTORCH
from mlc.frontend.checkpoints.reader import Checkpoint

SINGLE, INDEX = PYTORCH.single, PYTORCH.index


def whole(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, Any]:
    shape = checkpoint.tensors()[name].shape
    return checkpoint.rows(name, 0, shape[0] if shape else 1)


def check_equal(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    """Names, shapes, dtypes and bits, whole and in pieces of one row."""
    assert {n: t.shape for n, t in checkpoint.tensors().items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        bf16 = tensor.dtype == torch.bfloat16
        expected = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if bf16 else tensor.numpy()
        found = whole(checkpoint, name)
        assert found.dtype == expected.dtype and found.shape == expected.shape, name
        assert found.tobytes() == expected.tobytes(), name
        for row in range(expected.shape[0] if expected.ndim else 0):
            assert checkpoint.rows(name, row, row + 1).tobytes() == expected[row : row + 1].tobytes(), name


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    cube = torch.randn(3, 4, 5).half()
    return OrderedDict(
        f32=base,
        tied=base,
        f16=torch.randn(3, 5).half(),
        bf16=torch.randn(3, 5).bfloat16(),
        i8=torch.randint(-128, 127, (7,), dtype=torch.int8),
        u8=torch.randint(0, 255, (1, 2, 3), dtype=torch.uint8),
        i32=torch.randint(-(1 << 31), 1 << 31, (4,), dtype=torch.int32),
        i64=torch.randint(-(1 << 62), 1 << 62, (4,)),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
        rows=base[2:5],
        columns=base[:, 1:3],
        every_second=base[::2],
        transposed=base.t(),
        permuted=cube.permute(2, 0, 1),
        one_row=base[:1].t(),
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whatever_torch_writes_is_read_back(tmp_path: Path, tensors: dict[str, Any], protocol: int) -> None:
    torch.save(tensors, tmp_path / SINGLE, pickle_protocol=protocol)
    check_equal(open_checkpoint(tmp_path), tensors)
    check_equal(open_checkpoint(tmp_path / SINGLE), tensors)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path: Path, wrapper: str) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict()  # with its _metadata
    torch.save({"epoch": 3, "loss": 0.5, wrapper: state, "done": None}, tmp_path / SINGLE)
    check_equal(open_checkpoint(tmp_path), state)


def test_many_tensors_in_one_dict(tmp_path: Path) -> None:
    """More than pickle's batch of 1000 entries, memo keys of more than a byte."""
    state = {f"layer.{i}": torch.full((2,), float(i)) for i in range(2500)}
    torch.save(state, tmp_path / SINGLE)
    check_equal(open_checkpoint(tmp_path), state)


def test_rows_are_views_of_the_file_that_nobody_can_write(tmp_path: Path, tensors: dict[str, Any]) -> None:
    torch.save(tensors, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    for name in ("f32", "columns", "transposed"):
        rows = checkpoint.rows(name, 1, 3)
        assert not rows.flags.owndata and not rows.flags.writeable
    first = checkpoint.rows("f32", 0, 1)
    assert np.shares_memory(first, checkpoint.rows("tied", 0, 1))


def test_shards_are_one_checkpoint(tmp_path: Path, tensors: dict[str, Any]) -> None:
    names = list(tensors)
    files = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for file, held in files.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / file)
    index = {name: file for file, held in files.items() for name in held}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    check_equal(open_checkpoint(tmp_path), tensors)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index | {"f32": "../x.bin"}}))
    with pytest.raises(BadCheckpoint, match="plain file name"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index | {"more": names[0] and next(iter(files))}}))
    with pytest.raises(BadCheckpoint, match=r"00001-of-00002\.bin holds more; it does not"):
        open_checkpoint(tmp_path)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    import safetensors.torch

    torch.save({"w": torch.zeros(2)}, tmp_path / SINGLE)
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert whole(open_checkpoint(tmp_path), "w").tolist() == [1, 1]


def test_no_torch_is_needed(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / SINGLE)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from mlc.frontend.checkpoints.folder import open_checkpoint\n"
        "print(open_checkpoint(Path(sys.argv[1])).rows('w', 0, 3).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (result.stdout.strip(), result.stderr) == ("[0.0, 1.0, 2.0]", "")


def archive(pickled: bytes, storages: dict[str, bytes] | None = None, **extra: bytes) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("m/data.pkl", pickled)
        for name, data in extra.items():
            file.writestr(f"m/{name}", data)
        for key, data in (storages or {}).items():
            file.writestr(f"m/data/{key}", data)
    return stream.getvalue()


def refuse(folder: Path, content: bytes, message: str, error: type[Exception] = BadCheckpoint) -> None:
    (folder / SINGLE).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 1000


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    evil = {"w": Call(os.system, f"touch {marker}")}
    payload = pickle.dumps(evil, protocol)
    pickle.loads(payload)
    assert marker.exists(), "the payload does nothing, so the test would prove nothing"
    marker.unlink()
    name = r"posix\.system" if protocol else "the pickle operation DICT"
    refuse(tmp_path, archive(payload), f"data.pkl uses {name}; .* runs nothing .*convert it to safetensors")
    refuse(tmp_path, payload, r"before 1\.6|no zip archive", InputError)
    if protocol > 1:
        torch.save(evil, tmp_path / SINGLE, pickle_protocol=protocol)
        with pytest.raises(BadCheckpoint, match=r"posix\.system"):
            open_checkpoint(tmp_path)
    assert not marker.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


ORDERED_DICT, REBUILD = b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"


def storage(numel: int = 6, kind: str = "Float", key: str = "0") -> bytes:
    where = text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
    return b"(" + where + number(numel) + b"tQ"


def tensor(
    shape: list[int], strides: list[int], offset: int = 0, held: bytes = storage(), end: bytes = b"\x89}"
) -> bytes:
    """A pickle of {"w": the tensor}; its arguments end with requires_grad and hooks."""
    dims = b"".join(b"(" + b"".join(map(number, sizes)) + b"t" for sizes in (shape, strides))
    return b"\x80\x02}" + text("w") + REBUILD + b"(" + held + number(offset) + dims + end + b"tRs."


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "exhausted before seeing STOP"),
        (b".", "lacks its operands"),
        (b"N.", "holds a NoneType; expected a dict"),
        (b"\xff.", "opcode .* unknown"),
        (b"h\x07.", "recalls value 7"),
        (b"\x94.", "lacks its operands"),
        (b"t.", "lacks its mark"),
        (b"N(\x85.", "lacks its operands"),
        (b"NN(u.", "got a NoneType for a dict"),
        (b"}(Nu.", "key without a value"),
        (b"})Ns.", "got a tuple for a str"),
        (b"}(" + (text("a") + b"N") * 2 + b"u.", "'a' twice"),
        (b"}" + text("w") + b"Ns.", "tensor 'w' is no tensor but a NoneType"),
        (b"\x8a\xff" + b"\x7f" * 255 + b".", "more than 64 bits"),
        (b"(" * 100_000 + b".", "stack holds more than 16384"),
        (b"}" * 100_000 + b".", "stack holds more than 16384"),
        (b"}" + text("w") + b")" + b"\x85" * 100_000 + b"s.", "no tensor but a tuple"),  # nested deep
        (b"})" + b"\x94h\x00\x86" + b"\x94h\x01\x86" * 60 + b"Ns.", "got a tuple for a str"),  # doubled 61 times
        (b"}\x94" + text("a") + b"h\x00s.", "no tensor but a dict"),  # it holds itself
        (b"cbuiltins\neval\n.", r"uses builtins\.eval"),
        (text("os") + text("system") + b"\x93.", r"uses os\.system"),
        (b")" + text("system") + b"\x93.", "got a tuple for a str"),
        (b"(S'true'\nios\nsystem\n.", "the pickle operation STRING"),
        (b"S'\\!'\n.", "the pickle operation STRING"),  # an escape that Python warns of
        (text("x")[:-1] + b"\xff.", "can't decode byte 0xff"),
        (text("x")[:-1], "expected 1 bytes in a unicodestring4, but only 0 remain"),
        (b"c\xff\n\n.", "can't decode byte 0xff"),
        (b"c\\!\n\n.", "uses "),
        (b"(ios\nsystem\n.", "the pickle operation INST"),
        (b"(" + ORDERED_DICT + b"o.", "the pickle operation OBJ"),
        (ORDERED_DICT + b")\x81.", "the pickle operation NEWOBJ"),
        (b"\x82\x01.", "the pickle operation EXT1"),
        (b"P0\n.", "the pickle operation PERSID"),
        (b"]N0.", "the pickle operation EMPTY_LIST"),
        (b"ctorch\nFloatStorage\n)R.", r"a call of torch\.FloatStorage"),
        (ORDERED_DICT + b"N\x85R.", r"collections\.OrderedDict has arguments"),
        (b"N}b.", "got a NoneType for a dict"),
        (b"}Nb.", "got a NoneType for a dict"),
        (b"(" + text("storage") + b"tQ.", "persistent id"),
        (storage(numel=-1) + b".", "has -1 elements"),
        (storage().replace(b"ctorch\nFloatStorage\n", ORDERED_DICT) + b".", r"of type collections\.OrderedDict"),
        (tensor([2, 3], [3, 1], offset=-1), "arguments that mlc does not know"),
        (tensor([2, 3], [3]), "arguments that mlc does not know"),
        (tensor([2, 3], [-3, 1]), "arguments that mlc does not know"),
        (tensor([2, 3], [3, 1], held=b"N"), "arguments that mlc does not know"),
        (tensor([2, 3], [3, 1], end=b"\x89N"), "arguments that mlc does not know"),
        (tensor([2, 3], [3, 1], end=b"\x89}}"), "arguments that mlc does not know"),  # conjugated or negated
        (tensor([2, 3], [3, 1], end=b"\x89}" + text("h") + b"Ns"), "arguments that mlc does not know"),
        (b"ctorch._utils\n_rebuild_parameter\n(NNNtR.", "arguments that mlc does not know"),
        (tensor([2, 3], [3, 1], offset=1), "reaches to element 7 of a storage of 6"),
        (tensor([2, 3], [4, 1]), "reaches to element 7 of a storage of 6"),
        (tensor([HUGE, 2], [0, 1]), "impossible shape"),
        (tensor([1 << 47, 2], [HUGE, HUGE]), "reaches to element"),
        (tensor([0, 2], [2, 1], offset=HUGE), "reaches to element"),
        (tensor([1] * 9, [1] * 9), "impossible shape"),
        (tensor([1 << 40], [0]), "share memory"),
        (tensor([3, 3], [1, 1]), "share memory"),
        (tensor([6], [1], held=storage(numel=HUGE)), "storage of 24 bytes, said to have 4611686018427387904"),
        (tensor([5], [1], held=storage(numel=5)), "storage of 24 bytes, said to have 5 elements, so 20"),
        (tensor([6], [1], held=storage(key="../0")), "lies in '../0', which the archive lacks"),
        (tensor([6], [1], held=storage(key="x" * 5000)), "which the archive lacks"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_pickle_that_lies_is_refused(tmp_path: Path, pickled: bytes, message: str) -> None:
    refuse(tmp_path, archive(pickled, {"0": bytes(24)}), message)


def test_the_pickle_that_those_are_made_from_is_fine(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    (tmp_path / SINGLE).write_bytes(archive(tensor([2, 3], [3, 1]), {"0": data.tobytes()}))
    assert whole(open_checkpoint(tmp_path), "w").tolist() == data.reshape(2, 3).tolist()


@pytest.mark.parametrize("kind", ["Double", "Short"])
def test_a_dtype_that_mlc_does_not_read_is_named_with_the_tensor(tmp_path: Path, kind: str) -> None:
    content = archive(tensor([6], [1], held=storage(kind=kind)), {"0": bytes(24)})
    refuse(tmp_path, content, "tensor 'w' has dtype (f64|i16); mlc reads f32, f16, bf16", UnsupportedModel)


@pytest.mark.parametrize(
    ("module", "name", "limit", "message"),
    [
        (pytorch_pickle, "MAX_OPERATIONS", 10, "more than 10 operations"),
        (pytorch_pickle, "MAX_TENSORS", 1, "more than 1 tensors"),
        (pytorch_pickle, "MAX_MEMO", 3, "memo holds more than 3 values"),
        (pytorch, "MAX_PICKLE", 50, r"data\.pkl has \d+ bytes; expected at most 50"),
        (pytorch, "MAX_DIRECTORY", 100, r"it has \d+ bytes, expected at most 100"),
    ],
)
def test_what_a_file_may_cost_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, limit: int, message: str
) -> None:
    torch.save({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / SINGLE)
    open_checkpoint(tmp_path)
    monkeypatch.setattr(module, name, limit)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(tmp_path)


def central(content: bytes, entry: int, field: int, value: bytes) -> bytes:
    """`content` with other bytes at `field` of an entry in the table of contents."""
    at = -1
    for _ in range(entry + 1):
        at = content.index(b"PK\x01\x02", at + 1)
    return content[: at + field] + value + content[at + field + len(value) :]


def test_a_container_that_lies_is_refused(tmp_path: Path) -> None:
    two = tensor([6], [1])[:-1] + tensor([6], [1], held=storage(key="1"))[2:].replace(b"}", b"", 1).replace(
        text("w"), text("v")
    )
    good = archive(two, {"0": bytes(24), "1": bytes(24)})
    (tmp_path / SINGLE).write_bytes(good)
    assert sorted(open_checkpoint(tmp_path).tensors()) == ["v", "w"]
    refuse(tmp_path, central(good, 2, 42, struct.pack("<I", len(two) + 40)), "'0' and '1' overlap")
    refuse(tmp_path, central(good, 1, 42, struct.pack("<I", 3)), "not where the table of contents says")
    refuse(tmp_path, central(good, 1, 42, struct.pack("<I", 1 << 31)), "not where the table of contents says")
    refuse(tmp_path, central(good, 1, 20, struct.pack("<II", 0xFFFFFF00, 0xFFFFFF00)), "ends after the file")
    refuse(tmp_path, central(good, 1, 20, struct.pack("<II", 20, 20)), "storage of 20 bytes, said to have 6 elements")
    refuse(tmp_path, central(good, 1, 8, b"\1\0"), "compressed or encrypted")
    refuse(tmp_path, central(good, 1, 10, b"\x08\0"), "compressed or encrypted")
    refuse(tmp_path, central(good, 1, 24, struct.pack("<I", 1 << 30)), "compressed or encrypted")
    refuse(tmp_path, central(good, 2, 46, b"m/data/0"), "'?m/data/0'? is there twice")
    refuse(tmp_path, central(good, 0, 46, b"n/data.pkl"), r"without a data\.pkl|lacks")
    refuse(tmp_path, good[:-1], "table of contents is not readable")
    refuse(tmp_path, b"PK\5\6" + bytes(18), "no zip archive")
    refuse(tmp_path, b"PK\3\4" + bytes(18), "table of contents is not readable")
    refuse(tmp_path, archive(two, byteorder=b"big"), "big endian", UnsupportedModel)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", bytes(50 << 20))
    tracemalloc.start()
    refuse(tmp_path, stream.getvalue(), r"m/data\.pkl is compressed")
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_the_format_before_zip_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / SINGLE, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedModel, match=r"PyTorch wrote before 1\.6; convert it to safetensors"):
        open_checkpoint(tmp_path)
