from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlc.tools import doctor
from mlc.tools.machine import machine


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands in for the Python that the self-test starts; the test writes it."""
    path = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_tvm_that_works_passes(python: Path) -> None:
    program(python, "exit 0")
    assert doctor.tvm_works() == doctor.Check("tvm self-test", "passed")


def test_a_tvm_that_crashes_fails_with_the_versions_to_install(python: Path) -> None:
    program(python, "kill -SEGV $$")
    check = doctor.tvm_works()
    assert (check.status, check.found) == ("fail", "crashed with signal 11")
    assert "apache-tvm-ffi" in check.advice and "<0.1.15" in check.advice


def test_a_tvm_that_cannot_be_imported_fails_with_its_last_words(python: Path) -> None:
    program(python, "echo Traceback >&2; echo 'ImportError: no tvm' >&2; exit 1")
    assert doctor.tvm_works().found == "failed: ImportError: no tvm"


def test_a_tvm_that_hangs_fails(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(python, "exec sleep 60")
    monkeypatch.setattr(doctor, "_SELF_TEST_SECONDS", 0.2)
    assert "did not end" in doctor.tvm_works().found


def test_a_missing_package_fails_and_a_missing_torch_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    status = {c.name: c.status for c in doctor.software()}
    assert status == {
        "python": "ok",
        "apache-tvm": "fail",
        "apache-tvm-ffi": "fail",
        "numpy": "fail",
        "tokenizers": "fail",
        "sanic": "fail",
        "torch": "note",
    }


def test_no_c_compiler_is_a_note_that_names_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    check = doctor.compiler()
    assert check.status == "note" and "when they are opened" in check.advice


def test_the_machine_is_described_and_what_slows_it_is_said() -> None:
    here = machine(2)
    assert here.memory > 0 and here.cpu and here.usable == 2
    calm = replace(here, huge_pages="always")
    assert all(c.status == "ok" for c in doctor.hardware(calm))
    busy = {c.name: c for c in doctor.hardware(replace(here, huge_pages="never"))}
    assert busy["huge pages"].status == "note"
    assert "madvise" in busy["huge pages"].advice


def test_threads_are_explained_by_quota_and_load() -> None:
    calm = doctor.threads(2, math.inf, 0.1, 2)
    assert [(c.name, c.found, c.status) for c in calm] == [
        ("quota", "none", "ok"),
        ("foreign load", "0.1 cores", "ok"),
        ("threads", "2 now, 1 to 2 by load", "ok"),
    ]
    quota, load, _ = doctor.threads(2, 2.5, 1.0, 1)
    assert (quota.found, load.status) == ("2.5 cores", "note") and load.advice
    assert doctor.threads(2, math.inf, None, 2)[1].found.startswith("unknown")


def test_the_cache_is_measured(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "weights").write_bytes(bytes(3_000_000))
    assert "1 models, 3 MB" in doctor.cache(tmp_path).found
    assert "0 models" in doctor.cache(tmp_path / "none" / "yet").found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert doctor.cache(tmp_path / "mlc").status == "fail"


def test_offline_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "models--a--b").mkdir()
    assert doctor.hugging_face(tmp_path, offline=False) == doctor.Check("hugging face", f"{tmp_path}: 1 models")
    assert doctor.hugging_face(tmp_path, offline=True).status == "note"


def test_a_probe_that_raises_is_a_failed_check_and_only_failures_are_unhealthy() -> None:
    def broken() -> str:
        raise OSError("no such thing")

    failed = doctor.attempt("x", broken)
    assert failed == doctor.Check("x", "OSError: no such thing", "fail")
    assert not doctor.healthy([failed])
    assert doctor.healthy([doctor.attempt("y", lambda: "fine"), doctor.Check("z", "", "note")])
