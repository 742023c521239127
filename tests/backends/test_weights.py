"""Where weights lie: copied into memory of our own or mapped from the file, by the memory that is free."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mlc.backends import weights_file
from mlc.backends.memory import ALIGNMENT, available
from mlc.backends.weights_file import Entry, create, load_weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    made = create(path, {"a": Entry((7, 3), np.dtype(np.int8)), "b": Entry((1 << 20,), np.dtype(np.float32))})
    made.views["a"][...] = np.arange(21, dtype=np.int8).reshape(7, 3)
    made.views["b"][...] = np.arange(1 << 20, dtype=np.float32)
    return path


def is_mapped(array: np.ndarray, path: Path) -> bool:
    """What the kernel says about the memory at the array's address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(word, 16) for word in re.split("[- ]", line, maxsplit=2)[:2])
        if start <= array.ctypes.data < end:
            return line.endswith(str(path))
    raise AssertionError("the array lies nowhere")


@pytest.mark.parametrize("mapped", [True, False])
def test_weights_are_where_they_were_asked_for_and_aligned(mapped: bool, file: Path) -> None:
    weights = load_weights(file, mapped=mapped)
    np.testing.assert_array_equal(weights["a"].reshape(-1), np.arange(21))
    np.testing.assert_array_equal(weights["b"], np.arange(1 << 20))
    for array in weights.values():
        assert array.ctypes.data % ALIGNMENT == 0 and not array.flags.writeable
        assert is_mapped(array, file) == mapped


@pytest.mark.parametrize(("free", "mapped"), [(None, False), (1 << 30, False), (5 << 20, True), (0, True)])
def test_a_file_is_mapped_where_a_copy_would_not_fit(
    free: int | None, mapped: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_file, "available", lambda: free)
    assert is_mapped(load_weights(file)["b"], file) == mapped


@pytest.mark.parametrize(
    ("files", "bytes_free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}, 2 << 20),
        ({"proc/meminfo": "MemAvailable: many kB\n"}, None),
        ({"proc/meminfo": "MemAvailable: 2048 kB\n", "sys/fs/cgroup/memory.max": "1048576\n"}, 1 << 20),
        ({"proc/meminfo": "MemAvailable: 2048 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 2 << 20),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n"}, 4096),
    ],
)
def test_the_free_memory_is_that_of_the_system_and_the_cgroup(
    files: dict[str, str], bytes_free: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available(tmp_path) == bytes_free
