"""Every program in examples/ runs, and says what a reader expects of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAYS = {
    "asynchronous.py": "The capital of Spain is Madrid.",
    "batch.py": "The capital of Japan is Tokyo.",
    "chat.py": "Paris",
    "completion.py": "%",
    "inspect_ir.py": "add_rms_norm(%x, %residual",
    "streaming.py": "Once",
    "tokens.py": "' fox'",
}


def test_every_example_is_tested() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == {*SAYS, "openai_client.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_and_says_something_sensible(name: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout and done.stderr == ""


@pytest.mark.slow
def test_the_python_of_the_readme_runs(environment: dict[str, str]) -> None:
    blocks = (EXAMPLES.parent / "README.md").read_text().split("```python\n")[1:]
    code = next(block.partition("```")[0] for block in blocks if "from mlc import Engine" in block)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("The capital of France is Paris.\nOnce "), done.stderr
