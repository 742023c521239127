"""bench against another engine: a real one where there is one, and one that a test plays."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc.tools.make_model import Shape, write
from mlc.tools.peers import serve
from mlc.tools.workers import peers

Mlc = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow

SIZES = ("--prompt-len", "16", "--gen-len", "8", "--depth", "4,32", "--iterations", "2", "--warmup", "0")

PLAYED = f"""#!{sys.executable}
import sys, time
sys.path.insert(0, {str(Path(serve.__file__).parent)!r})
from serve import serve
class Peer:
    def about(self): return {{"name": "llama.cpp", "version": "played"}}
    def open(self, model, threads, options):
        self.options = {{"flash": "off", **options}}
        return {{"vocab": 300, "parameters": 1, "threads": threads}}
    def setup(self, kind, context, streams): return {{**self.options, "threads": 2}}
    def fill(self, prompts): assert max(map(max, prompts)) < 300; self.streams = len(prompts)
    def prefill(self, span, prompt):
        with span: time.sleep(0.02)
    def decode(self, span, tokens):
        with span: time.sleep(0.001 * tokens)
serve(Peer())
"""


@pytest.fixture
def played(tmp_path: Path) -> tuple[str, ...]:
    """Options that name an interpreter which plays the other engine, whatever it is told to run."""
    python, model = tmp_path / "python", tmp_path / "model.gguf"
    python.write_text(PLAYED)
    python.chmod(0o755)
    model.write_bytes(b"x" * 1000)
    return ("--vs", "llama.cpp", "--vs-model", str(model), "--vs-python", str(python), "--vs-set", "kv=f16")


def test_two_engines_are_compared_in_every_case(cli: Mlc, tiny: Path, played: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "rates.svg"
    done = cli(
        "bench", "-m", tiny, *SIZES, "--streams", "1,3", *played, "--start", "--busy", "--plot", picture, "--json"
    )
    told = json.loads(done.stdout)
    assert [(r["test"], r["prompt"], r["streams"]) for r in told["results"]] == [
        ("prefill", 16, 1),
        *(("decode", depth, streams) for streams in (1, 3) for depth in (4, 32)),
    ]
    theirs = told["vs"]
    assert [r["tokens_per_second"] for r in theirs["results"]][1] == pytest.approx(1000, rel=0.5)
    for ours, other, ratio in zip(told["results"], theirs["results"], told["ratios"], strict=True):
        assert ratio == pytest.approx(ours["tokens_per_second"] / other["tokens_per_second"])
        assert len(ours["rates"]) == len(ours["foreign"]) == 2 and ours["limit"]["share"] > 0
    assert theirs["results"][0]["settings"] == {"flash": "off", "kv": "f16", "threads": 2}
    assert theirs["file_bytes"] == 1000 and told["file_bytes"] > 1_000_000
    for side in (told, theirs):
        assert (
            0 < side["start"]["first_token_seconds"] < 60 and side["memory"]["peak"] >= side["memory"]["resident"] > 0
        )
    assert told["limits"].keys() == {"read", "bytes", "nibbles", "floats"} and min(told["limits"].values()) > 0
    assert len(told["busy"]) == 4 and all(len(row["loaded"]) == 2 for row in told["busy"])
    points = [e for e in ET.parse(picture).getroot().iter() if e.tag.endswith("circle")]
    assert len(points) == 2 * 2 + 2 * 2, "two depths and two numbers of streams, for each engine"


def test_people_get_a_table(cli: Mlc, tiny: Path, played: tuple[str, ...]) -> None:
    shown = cli("bench", "-m", tiny, *SIZES, *played, "--start", "--no-limits").stdout
    assert "Against: llama.cpp (played; flash off, kv f16, threads 2)" in shown
    row = next(line for line in shown.splitlines() if "Decode (8 tokens @ d32)" in line)
    assert row.count("│") == 5 and "x " in row
    for cost in ("Process start to first token", "Memory at most in all tests", "Size on disk"):
        assert cost in shown
    assert "Limits:" not in shown


def test_what_cannot_be_compared_is_said_before_anything_is_timed(cli: Mlc, tiny: Path, tmp_path: Path) -> None:
    here = ("bench", "-m", tiny, "--vs", "llama.cpp")
    assert "--vs llama.cpp needs --vs-model" in cli(*here).stderr
    assert "no.gguf does not exist" in cli(*here, "--vs-model", "no.gguf").stderr
    assert "'flash' is not NAME=VALUE" in cli(*here, "--vs-model", tiny, "--vs-set", "flash").stderr
    assert f"mlc can compare with {', '.join(peers())}" in cli("bench", "-m", tiny, "--vs", "other").stderr
    assert "--streams 999 is more than" in cli("bench", "-m", tiny, "--streams", "999").stderr


def test_an_engine_that_dies_ends_the_run_with_its_words(
    cli: Mlc, tiny: Path, played: tuple[str, ...], tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        PLAYED.replace("time.sleep(0.001 * tokens)", "sys.stderr.write('out of luck'); __import__('os')._exit(7)")
    )
    done = cli("bench", "-m", tiny, *SIZES, *played, "--no-limits")
    assert done.returncode == 2
    assert "error: llama.cpp ended with exit code 7; it wrote: out of luck" in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None and "LLAMA_PYTHON" not in os.environ,
    reason="llama-cpp-python is not installed, and LLAMA_PYTHON names no Python that has it",
)
def test_llama_cpp_itself_can_be_timed(cli: Mlc, assets: Path) -> None:
    model = str(assets / "stories260k" / "stories260K-f32.gguf")
    python = os.environ.get("LLAMA_PYTHON", sys.executable)
    vs = ("--vs", "llama.cpp", "--vs-model", model, "--vs-python", python)
    told = json.loads(cli("bench", "-m", model, *SIZES, "--streams", "1,3", *vs, "--no-limits", "--json").stdout)
    theirs = told["vs"]
    assert theirs["parameters"] == told["parameters"] and theirs["vocab"] == told["vocab"]
    assert all(r["settings"]["flash"] in ("on", "off") for r in theirs["results"]), "the trial has chosen"
    assert all(rate > 0 for r in theirs["results"] for rate in r["rates"])
    wrong = cli("bench", "-m", model, *SIZES, *vs, "--vs-set", "flash=maybe")
    assert "llama.cpp: ValueError: flash is maybe; expected on or off or trial" in wrong.stderr


def test_onnxruntime_itself_can_be_timed(cli: Mlc, tiny: Path, onnx_model: tuple[str, Path]) -> None:
    python, model = onnx_model
    vs = ("--vs", "onnxruntime", "--vs-model", model, "--vs-python", python)
    sizes = (*SIZES, "--streams", "1,3", "--start", "--no-limits")
    told = json.loads(cli("bench", "-m", tiny, *sizes, *vs, "--vs-threads", "1", "--json").stdout)
    theirs = told["vs"]
    assert theirs["name"] == "ONNX Runtime" and "onnxruntime-genai " in theirs["version"]
    assert theirs["vocab"] == told["vocab"] and len(theirs["results"]) == 5 and told["restless"] == []
    for result in theirs["results"]:
        assert min(result["rates"]) > 0
        assert result["settings"] == {"chunk": "off", "spin": "on", "prepack": "on", "threads": 1} | (
            {"chunk": result["settings"]["chunk"]} if result["test"] == "prefill" else {}
        )
    assert theirs["start"]["peak"] >= theirs["start"]["resident"] > 0
    shown = cli("bench", "-m", tiny, *SIZES, *vs, "--vs-set", "spin=off", "--vs-set", "chunk=8", "--no-limits").stdout
    assert "chunk 8, spin off, prepack on" in shown
    wrong = cli("bench", "-m", tiny, *SIZES, *vs, "--vs-set", "flash=on").stderr
    assert "onnxruntime has no option flash; there are chunk, spin, prepack" in wrong
    vs = ("--vs", "onnxruntime", "--vs-model", tiny, "--vs-python", python)
    assert "is no folder with a genai_config.json; `python -m" in cli("bench", "-m", tiny, *SIZES, *vs).stderr


def test_openvino_itself_can_be_timed(cli: Mlc, tiny: Path, openvino_python: str, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write(Shape("qwen3", 2, 64, 4, 2, 16, 96, 300, 512, 1e6, "qwen2"), model, "small")
    vs = ("--vs", "openvino", "--vs-python", openvino_python, "--no-limits", "--vs-model")
    told = json.loads(cli("bench", "-m", tiny, *SIZES, "--streams", "1,3", "--start", *vs, model, "--json").stdout)
    theirs = told["vs"]
    assert theirs["name"] == "OpenVINO" and theirs["vocab"] == 300 and len(theirs["results"]) == 5
    for result in theirs["results"]:
        assert min(result["rates"]) > 0 and result["settings"].keys() == {"kv", "mmap", "threads"}
    assert theirs["start"]["peak"] >= theirs["start"]["resident"] > 0
    wrong = cli("bench", "-m", tiny, *SIZES, *vs, model, "--vs-set", "kv=q4").stderr
    assert "openvino: ValueError: kv is q4; expected u8 or f16 or f32" in wrong
    assert (
        "is neither a GGUF file nor a folder with an openvino_model.xml"
        in cli("bench", "-m", tiny, *SIZES, *vs, tiny).stderr
    )


def test_mistralrs_itself_can_be_timed(cli: Mlc, tiny: Path, mistralrs_python: str, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write(Shape("qwen3", 2, 64, 4, 2, 16, 96, 300, 512, 1e6, "qwen2"), model, "small")
    vs = ("--vs", "mistralrs", "--vs-python", mistralrs_python, "--no-limits", "--vs-set", "isq=q8_0", "--vs-model")
    told = json.loads(cli("bench", "-m", tiny, *SIZES, "--streams", "1,3", "--start", *vs, model, "--json").stdout)
    theirs = told["vs"]
    assert theirs["name"] == "mistral.rs" and theirs["vocab"] == 300 and len(theirs["results"]) == 5
    for result in theirs["results"]:
        assert min(result["rates"]) > 0 and result["settings"].keys() == {"isq", "kv", "threads"}
    assert theirs["start"]["peak"] >= theirs["start"]["resident"] > 0
    wrong = cli("bench", "-m", tiny, *SIZES, *vs, model, "--vs-set", "kv=q8_0").stderr
    assert "mistralrs: ValueError: kv is q8_0; expected f16 or f32" in wrong
    many = cli("bench", "-m", tiny, *SIZES, "--streams", "17", *vs, model).stderr
    assert "mistral.rs can be timed with at most 16 streams, not 17" in many
    nothing = cli("bench", "-m", tiny, *SIZES, *vs, tmp_path).stderr
    assert "is neither a GGUF file nor a folder with a config.json" in nothing


def test_the_help_names_every_peer(cli: Mlc) -> None:
    shown = " ".join(cli("bench", "--help").stdout.split())
    assert f"by turns with this one: {', '.join(peers())}." in shown.replace("│ │ ", "")
