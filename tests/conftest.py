"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real weights, tokenizers and texts made by others; they lie beside the checkout, where they exist at all."""
    path = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not path.is_dir():
        pytest.skip(f"no test assets at {path}")
    return path


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
