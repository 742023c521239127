"""The command, in a process of its own as a user runs it, or in this one, with a cache that the session shares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlc.cli.commands import app

Mlc = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for child processes: a fresh cache, no network, no colours, wide lines."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLC_", "HF_", "COV_"))}
    cache = tmp_path_factory.mktemp("cache")
    return {**kept, "MLC_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "120"}


@pytest.fixture(scope="session")
def mlc(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Mlc:
    """Runs `mlc` with the given arguments in an empty folder."""
    folder = tmp_path_factory.mktemp("cwd")

    def run(*arguments: str | Path, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlc", *map(str, arguments)],
            capture_output=True,
            text=True,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            cwd=folder,
            env={**environment, **env},
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def cli(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mlc:
    """The same within this process: it saves the imports, where they are not what is tested."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        result = CliRunner().invoke(app, words, input=stdin, env={**environment, **env}, prog_name="mlc")
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def tiny(mlc: Mlc, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, compiled by `mlc compile`."""
    path = tmp_path_factory.mktemp("compiled") / "tiny"
    done = mlc("compile", "-o", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == f"next: mlc run -m {path}"
    return path
