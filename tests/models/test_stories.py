"""A trained model by others (tinyllamas stories260K): its author's golden text, to the character.

The same weights come twice: as a GGUF file, and as llama2.c's own file, rewritten here as a safetensors folder.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlc.backends.module import open_module
from mlc.runtime.engine import Engine
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.tokenizer import Tokenizer

BOS = 1


@pytest.fixture(scope="module", params=["gguf", "safetensors"])
def artifact(request, assets, compiled, stories_folder) -> Path:
    gguf = assets / "stories260k" / "stories260K-f32.gguf"
    return compiled(gguf if request.param == "gguf" else stories_folder)


def test_the_golden_text_comes_out_to_the_character(artifact, assets):
    expected = json.loads((assets / "stories260k" / "expected_outputs.json").read_text())["greedy_200"]
    engine = Engine(open_module(artifact), Tokenizer.open(artifact))
    params = SamplingParams(temperature=0.0, max_tokens=200)
    assert "".join(output.text for output in engine.generate([BOS], params)).lstrip(" ") == expected


def test_the_golden_text_comes_over_http(artifact, assets):
    openai = pytest.importorskip("openai")
    expected = json.loads((assets / "stories260k" / "expected_outputs.json").read_text())["greedy_200"]
    command = [sys.executable, "-m", "mlc", "serve", "-m", str(artifact), "-p", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = next(m[0] for line in server.stdout if (m := re.search(r"http://[\d.]+:\d+/v1", line)))
        client = openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)
        name = client.models.list().data[0].id
        answer = client.completions.create(model=name, prompt=[BOS], max_tokens=200, temperature=0)
        assert answer.choices[0].text.lstrip(" ") == expected
        assert answer.usage.completion_tokens == 200
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stdout.close()
