"""What peers have in common, and that real ones do the work for which they are timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders

import mlc
from mlc.tools.make_model import Shape, write
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


TEXTS = (
    "A girl found a red stone in the garden. She put it into her pocket and ran home to show it to her brother",
    "Once upon a time there was a small robot who lived by the sea. Every morning it walked to the harbour",
    "The king asked the fox where the gold was. The fox did not know, but it said that the river had taken it",
)

# Sequences after each of two `decode`, and after `prefill` of each prompt.
DRIVE = """
import contextlib, json, sys
sys.path.insert(0, sys.argv[1])
import serve
name, model, options, prompts, steps = json.loads(sys.argv[2])
peer = serve.load(name)
peer.open(model, 2, options)
def sequences(prompts):
    if name == "openvino":
        return [prompt + written for prompt, written in zip(prompts, peer.written, strict=True)]
    return [peer.generator.get_sequence(i).tolist() for i in range(len(prompts))]
told = []
peer.setup("decode", len(prompts[0]) + steps + 1, len(prompts))
peer.fill(prompts)
for _ in range(2):
    peer.decode(contextlib.nullcontext(), steps)
    told.append(sequences(prompts))
peer.setup("prefill", len(prompts[0]) + 1, 1)
for prompt in prompts:
    peer.prefill(contextlib.nullcontext(), prompt)
    told.append(sequences([prompt]))
print(json.dumps(told))
"""


def check_tokens(
    python: str, name: str, model: Path, options: dict[str, str], streams: int, *, eps: float, eos: int
) -> None:
    """The tokens of each step are those of transformers, whenever it is asked: a prompt forgotten, a step too few or
    one from the wrong place would show.
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids[:24] for text in TEXTS[:streams]]
    oracle = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32, rms_norm_eps=eps)
    asked = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": eos}
    expected = oracle.generate(torch.tensor(prompts), **asked).tolist()
    here, order = str(Path(serve.__file__).parent), json.dumps([name, str(model), options, prompts, 8])
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", DRIVE, here, order], capture_output=True, text=True, timeout=120, env=bare)
    assert done.returncode == 0, done.stderr
    first, second, *prefilled = json.loads(done.stdout)
    assert first == second == expected
    assert prefilled == [[row[:25]] for row in expected]


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 3])
def test_onnxruntime_writes_what_the_model_does(onnx_model: tuple[str, Path], streams: int) -> None:
    python, folder = onnx_model
    check_tokens(python, "onnxruntime", folder, {}, streams, eps=1e-5, eos=2)


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a GGUF file."""
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    weights = load_file(BUNDLED / "model.safetensors")
    names = {"token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm"}
    names |= {"ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj", "blk": "layers"}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
    names |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}

    def values(tensor: str, size: tuple[int, ...]) -> np.ndarray:
        array = weights[".".join(["model", *(names.get(part, part) for part in tensor.split("."))])]
        if "attn_q" in tensor or "attn_k" in tensor:  # the pairs that RoPE turns are neighbours in this format
            array = array.reshape(-1, 2, 16, size[1]).swapaxes(1, 2).reshape(size)
        assert array.shape == size
        return array.astype(np.float32)

    write(Shape("llama", 5, 192, 6, 2, 32, 384, 1536, 1024, 1e4, "llama-bpe"), path, "bundled", values)
    return path


# Of two `decode`, and of `prefill` of each prompt: ids of the texts, what was written after them, how many pieces of
# that had come when the clock was started and stopped and at the end, and tokens of a text and an answer.
DRIVE_TEXTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import serve
model, prompts, steps = json.loads(sys.argv[2])
peer = serve.load("mistralrs")
peer.open(model, 2, {"kv": "f32"})
write, request, marks, told, come = peer._write, peer._request, [], [], 0
class Counted:
    def __init__(self, *order):
        self.pieces = request(*order)
    def __iter__(self):
        return self
    def __next__(self):
        global come
        piece = next(self.pieces)
        come += 1
        return piece
class Clock:
    def __enter__(self):
        marks[:] = [come]
    def __exit__(self, *_):
        marks.append(come)
def watched(texts, *rest, **clocks):
    global come
    come = 0
    together = write(texts, *rest, **clocks)
    told.append([[peer._ids(text) for text in texts], peer.written, [*marks, sum(peer.pieces)], rest])
    return together
peer.setup("decode", len(prompts[0]) + steps + 1, len(prompts))
peer.fill(prompts)
peer._write, peer._request = watched, Counted
def last(order, *rest):
    order(Clock(), *rest)
    return told[-1]
decoded = [last(peer.decode, steps) for _ in range(2)]
peer.setup("prefill", len(prompts[0]) + 1, 1)
print(json.dumps([decoded, [last(peer.prefill, prompt) for prompt in prompts]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_mistralrs_writes_what_the_model_does(mistralrs_python: str, gguf_model: Path, kind: str, streams: int) -> None:
    """It takes texts and gives texts: each has as many tokens as were asked for, and the model's answer follows."""
    gguf, torch, transformers = map(pytest.importorskip, ("gguf", "torch", "transformers"))
    model, eps = (BUNDLED, 1e-5) if kind == "folder" else (gguf_model, 1e-6)
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    names = [tokenizer.id_to_token(token) or "" for token in range(1536)]
    if kind == "gguf":
        names = gguf.GGUFReader(gguf_model).fields["tokenizer.ggml.tokens"].contents()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32, rms_norm_eps=eps)

    def answer(ids: list[int], tokens: int) -> str:
        ids = list(ids)
        for _ in range(tokens):
            ids.append(int(oracle(torch.tensor([ids])).logits[0, -1].argmax()))
        return decoders.ByteLevel().decode([names[token] for token in ids[-tokens:] if "<|" not in names[token]])

    prompts = [[100 * s + i for i in range(24)] for s in range(streams)]
    here, order = str(Path(serve.__file__).parent), json.dumps([str(model), prompts, 8])
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [mistralrs_python, "-c", DRIVE_TEXTS, here, order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=bare)
    assert done.returncode == 0, done.stderr
    decoded, prefilled = json.loads(done.stdout)
    for number, (texts, written, (started, stopped, pieces), counted) in enumerate([*decoded, *prefilled]):
        reading = number >= 2
        assert [*map(len, texts)] == [24] * (1 if reading else streams)
        assert counted == [24, 1 if reading else 9]
        expected = [answer(ids, counted[1]) for ids in texts]
        assert [text.lstrip() for text in written] == [text.lstrip() for text in expected]
        assert (started, stopped) == (0 if reading else streams, pieces)
    begins = [ids[0] for texts, *_ in (decoded[0], *prefilled) for ids in texts]
    assert len({*begins}) == 2 * streams, "what was read before is not read faster"
    assert all(a[:-1] == b[:-1] and a != b for a, b in zip(decoded[0][0], decoded[1][0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 3])
def test_openvino_writes_what_the_model_does(openvino_python: str, gguf_model: Path, streams: int) -> None:
    check_tokens(openvino_python, "openvino", gguf_model, {"kv": "f32"}, streams, eps=1e-6, eos=1535)
