"""Fixtures that every test may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlc


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real weights, tokenizers and texts made by others; they lie beside the checkout, where they exist at all."""
    path = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not path.is_dir():
        pytest.skip(f"no test assets at {path}")
    return path


def _python_with(variable: str, *packages: str) -> str:
    """The Python that the variable names, or this one. Skips the test where it has not all packages."""
    python = os.environ.get(variable, sys.executable)
    look = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    if subprocess.run([python, "-c", look, *packages]).returncode:
        pytest.skip(f"set {variable} to a Python that has {', '.join(packages)}")
    return python


@pytest.fixture(scope="session")
def mistralrs_python() -> str:
    """A Python that has mistral.rs."""
    return _python_with("MISTRALRS_PYTHON", "mistralrs")


@pytest.fixture(scope="session")
def openvino_python() -> str:
    """A Python that has OpenVINO GenAI."""
    return _python_with("OPENVINO_PYTHON", "openvino_genai")


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A Python that has ONNX Runtime GenAI and what its model builder needs, and the bundled model as it builds it."""
    python = _python_with("ORT_PYTHON", "onnxruntime_genai", "onnx_ir", "torch", "transformers")
    folder = tmp_path_factory.mktemp("onnx")
    bundled = Path(mlc.__file__).parent / "bundled"
    builder = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(bundled), "-c", str(folder / "cache")]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [*builder, "-o", str(folder / "model"), "-p", "fp32", "-e", "cpu"],
        env={**kept, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        timeout=300,
        check=True,
    )
    return python, folder / "model"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files under tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): `text` must equal the file tests/golden/NAME, or becomes it with --update-golden."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no golden file {path.name}; run pytest --update-golden and look at what it wrote"
        assert text == path.read_text(), f"{path.name} differs; if that is right, run pytest --update-golden"

    return check
