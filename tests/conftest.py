"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real weights, tokenizers and texts made by others; they lie beside the checkout, where they exist at all."""
    path = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not path.is_dir():
        pytest.skip(f"no test assets at {path}")
    return path
