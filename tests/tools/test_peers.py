"""What peers have in common, and that real ones do the work for which they are timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

import mlc
from mlc.tools.peers import serve
from mlc.tools.peers.base import SWITCH_ON, BasePeer, Option, Timer

BUNDLED = Path(mlc.__file__).parent / "bundled"


class Played(BasePeer):
    """Reads fast with `way` a, writes fast with b; `now` is its clock."""

    name = "played"
    known: ClassVar = {"way": Option("trial", ("a", "b", "trial")), "size": Option("8", number=True), "mmap": SWITCH_ON}
    tried = "way"
    candidates: ClassVar = {"prefill": ("a", "b"), "decode": ("a", "b")}

    def __init__(self) -> None:
        self.now = 0.0
        self.prepared: list[tuple[int, int, Mapping[str, str]]] = []
        self.read: list[tuple[int, int]] = []  # sequences and tokens of each

    def about(self) -> dict[str, str]:
        return {}

    def load(self, model: str) -> dict[str, Any]:
        self.vocab = 50
        return {"loaded": model}

    def prepare(self, context: int, streams: int, settings: Mapping[str, str]) -> None:
        self.now += 100.0
        self.prepared.append((context, streams, settings))

    def prefill(self, span: Timer, prompt: Sequence[int]) -> None:
        raise AssertionError("a trial does not time what is asked for")

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        assert {len(prompt) for prompt in prompts} == {len(prompts[0])} and max(map(max, prompts)) < 50
        self.read.append((len(prompts), len(prompts[0])))
        self.now += 1.0 if self.prepared[-1][2]["way"] == "a" else 9.0

    def decode(self, span: Timer, tokens: int) -> None:
        assert self.read[-1][1] + 1 + tokens <= self.prepared[-1][0], "the token after the prompt needs room too"
        self.now += 5.0 if self.prepared[-1][2]["way"] == "a" else 4.0


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr("time.perf_counter", lambda: played.now)
    return played


@pytest.mark.parametrize(("kind", "best"), [("prefill", "a"), ("decode", "b")])
def test_a_trial_chooses_what_is_faster_at_what_will_be_measured(peer: Played, kind: str, best: str) -> None:
    assert peer.open("file", 3, {"size": "16"}) == {"loaded": "file"}
    assert peer.setup(kind, 900, 2) == {"way": best, "size": "16", "mmap": "on", "threads": 3}
    assert [(context, streams) for context, streams, _ in peer.prepared] == [(900, 2)] * 3
    assert peer.prepared[-1][2]["way"] == best, "after the trials it stands ready with what they chose"
    assert peer.read == [(2, 128 if kind == "prefill" else 64)] * 2


@pytest.mark.parametrize("context", [3, 4, 20])
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_trial_fits_any_context(peer: Played, kind: str, context: int) -> None:
    peer.open("file", 1, {})
    peer.setup(kind, context, 1)
    assert all(0 < tokens < context for _, tokens in peer.read)


def test_nothing_is_tried_where_there_is_no_choice(peer: Played) -> None:
    peer.candidates = {"prefill": ("b",)}  # type: ignore[misc]
    peer.open("file", 1, {})
    assert peer.setup("prefill", 9, 1)["way"] == "b"
    peer.open("file", 1, {"way": "a"})
    assert peer.setup("decode", 9, 1)["way"] == "a"
    assert peer.read == [] and len(peer.prepared) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv": "f16"}, "played has no option kv; there are way, size, mmap"),
        ({"way": "c"}, "way is c; expected a or b or trial"),
        ({"size": "0"}, "size is 0; expected a whole number above 0"),
        ({"size": "-4"}, "size is -4"),
        ({"mmap": ""}, "mmap is ; expected on or off"),
    ],
)
def test_options_that_do_not_exist_are_refused(peer: Played, options: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        peer.open("file", 1, options)


def test_a_peer_may_be_called_like_the_library_it_drives(tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(Path(serve.__file__).read_text())
    (tmp_path / "kin.py").write_text("NAME = 'kin'")
    (tmp_path / "colorsys.py").write_text(
        "import colorsys\nfrom .kin import NAME\n"
        "class Peer:\n  def about(self): return {'red': colorsys.rgb_to_hsv(1, 0, 0), 'kin': NAME}\n"
    )
    command = [sys.executable, str(tmp_path / "serve.py"), "colorsys"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    assert json.loads(done.stdout) == {"ok": {"red": [0.0, 1.0, 1], "kin": "kin"}}


# Sequences after `fill`, after each of two `decode`, and after `prefill` of each prompt.
DRIVE = """
import contextlib, json, sys
sys.path.insert(0, sys.argv[1])
import serve
model, prompts, steps = json.loads(sys.argv[3])
peer = serve.load(sys.argv[2])
peer.open(model, 2, {})
peer.setup("decode", len(prompts[0]) + steps + 1, len(prompts))
told = []
def tell():
    told.append([peer.generator.get_sequence(i).tolist() for i in range(peer.streams)])
peer.streams = len(prompts)
peer.fill(prompts); tell()
for _ in range(2):
    peer.decode(contextlib.nullcontext(), steps); tell()
peer.setup("prefill", len(prompts[0]) + 1, 1)
peer.streams = 1
for prompt in prompts:
    peer.prefill(contextlib.nullcontext(), prompt); tell()
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 3])
def test_onnxruntime_writes_what_the_model_does(onnx_model: tuple[str, Path], streams: int) -> None:
    """The tokens of each step are those of transformers, whenever it is asked: a prompt forgotten, a step too few or
    one from the wrong place would show.
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    python, folder = onnx_model
    prompts = [[(300 + 17 * s + 5 * i) % 1500 + 3 for i in range(40)] for s in range(streams)]
    oracle = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    expected = oracle.generate(
        torch.tensor(prompts), max_new_tokens=13, min_new_tokens=13, do_sample=False, pad_token_id=0
    ).tolist()
    here = str(Path(serve.__file__).parent)
    order = json.dumps([str(folder), prompts, 12])
    done = subprocess.run(
        [python, "-c", DRIVE, here, "onnxruntime", order], capture_output=True, text=True, timeout=120, env=_bare()
    )
    assert done.returncode == 0, done.stderr
    filled, first, second, *prefilled = json.loads(done.stdout)
    assert filled == [row[:41] for row in expected]
    assert first == second == expected
    assert prefilled == [[row[:41]] for row in expected]


def _bare() -> dict[str, str]:
    """Another interpreter must not find our packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
