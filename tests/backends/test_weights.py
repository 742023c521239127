"""Where weights lie: mapped from the file where the system has it in huge pages, else copied into some, by the memory
that is free.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlc.backends import weights_file
from mlc.backends.artifact import WEIGHTS, digest
from mlc.backends.memory import ALIGNMENT, _huge_bytes, available, map_huge
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
    monkeypatch.setattr(weights_file, "map_huge", lambda path: None)
    assert is_mapped(load_weights(file)["b"], file) == mapped


def test_a_file_in_huge_pages_is_mapped_instead_of_copied(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_file, "map_huge", lambda path: np.memmap(path, np.uint8, mode="r"))
    weights = load_weights(file)
    assert is_mapped(weights["b"], file) and weights["b"].ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(weights["b"], np.arange(1 << 20))


SIZE = 96 << 20  # bytes


def forget(path: Path) -> None:
    """Take a file out of the system's cache."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def huge_bytes(path: Path) -> int:
    """How much of a file the system maps in huge pages, all of it having been touched."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        sum(memory[:: mmap.PAGESIZE])
        entry = Path("/proc/self/smaps").read_text().split(f" {path}\n")[1].split("VmFlags")[0]
        return 1024 * int(re.findall(r"FilePmdMapped: +(\d+) kB", entry)[0])


@pytest.fixture
def new_file(tmp_path: Path) -> Callable[[], Path]:
    """Makes a file of weights; skips where the file system has no huge pages, by what it does with another file."""
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(SIZE))
    forget(plain)
    if not hasattr(mmap, "MADV_HUGEPAGE") or huge_bytes(plain) < SIZE // 2:
        pytest.skip("this file system has no huge pages")

    def make() -> Path:
        made = create(tmp_path / WEIGHTS, {"w": Entry((SIZE,), np.dtype(np.uint8))})
        for start in range(0, SIZE, 100_000):
            made.views["w"][start : start + 100_000] = start % 251
        made.release()
        return tmp_path / WEIGHTS

    return make


def test_what_was_just_written_lies_in_huge_pages(new_file: Callable[[], Path]) -> None:
    path = new_file()
    assert huge_bytes(path) > 0.9 * SIZE
    weights = load_weights(path)
    assert is_mapped(weights["w"], path)
    pieces = (np.arange(0, SIZE, 100_000) % 251).astype(np.uint8)
    assert np.array_equal(weights["w"], np.repeat(pieces, 100_000)[:SIZE])


def test_a_file_in_no_cache_is_read_into_huge_pages_after_its_digest_too(new_file: Callable[[], Path]) -> None:
    path = new_file()
    forget(path)
    digest(path)  # reads a part of it
    assert map_huge(path) is not None and huge_bytes(path) > 0.8 * SIZE


def test_a_file_in_small_pages_is_copied(new_file: Callable[[], Path]) -> None:
    path = new_file()
    forget(path)
    with path.open("rb", buffering=0) as stream:  # a page here and there, so that no huge one can take its place
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for start in range(0, SIZE, 1 << 20):
            os.pread(stream.fileno(), 4096, start)
    assert map_huge(path) is None
    assert not is_mapped(load_weights(path)["w"], path)


def test_huge_pages_are_those_of_the_map_that_was_asked_for(tmp_path: Path) -> None:
    memory = np.zeros(1 << 20, np.uint8)
    start = memory.ctypes.data
    entries = [
        (start - (1 << 20), start, 2048),
        (start, start + memory.size, 4096),
        (start + memory.size, 1 << 60, 8192),
    ]
    lines = [
        f"{low:x}-{high:x} r--s 00000000 fe:00 123 /a file\nSize: 1 kB\nFilePmdMapped: {kb} kB\nVmFlags: rd sh\n"
        for low, high, kb in entries
    ]
    (tmp_path / "smaps").write_text("".join(lines))
    assert _huge_bytes(memory, tmp_path / "smaps") == 4 << 20
    (tmp_path / "smaps").write_text(lines[0] + lines[2])
    assert _huge_bytes(memory, tmp_path / "smaps") == 0
    assert _huge_bytes(memory, tmp_path / "none") == 0


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
