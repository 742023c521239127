"""The child side of the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlc.tools.peers import serve

PEER = """
import os
class Peer:
    def about(self): return {"name": "toy"}
    def open(self, model): os.write(1, b"library noise\\n"); print("more noise"); return {"model": model}
    def prefill(self, span, prompt):
        with span: self.seen = prompt
    def decode(self, span, tokens): raise MemoryError("too many")
"""


def test_orders_are_answered_whatever_a_library_prints(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(PEER)
    (tmp_path / "serve.py").write_text(Path(serve.__file__).read_text())
    orders = [{"do": "open", "model": "m"}, {"do": "prefill", "prompt": [1]}, {"do": "decode", "tokens": 1}]
    orders += [{"do": "nonsense"}, {"do": "memory"}]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "serve.py"), "toy"],
        input="\n".join(map(json.dumps, orders)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    hello, opened, span, failed, unknown, memory = map(json.loads, done.stdout.splitlines())
    assert (hello, opened) == ({"ok": {"name": "toy"}}, {"ok": {"model": "m"}})
    assert span["ok"].keys() == {"seconds", "cpu", "foreign"}
    assert failed == {"error": "MemoryError: too many"}
    assert "nonsense" in unknown["error"]
    assert 1 << 20 < memory["ok"]["resident"] <= memory["ok"]["peak"]
    assert "library noise" in done.stderr and "more noise" in done.stderr


def test_a_peer_that_is_not_installed_says_so(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("import no_such_engine")
    (tmp_path / "serve.py").write_text(Path(serve.__file__).read_text())
    done = subprocess.run(
        [sys.executable, str(tmp_path / "serve.py"), "toy"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == {"error": "No module named 'no_such_engine'", "missing": True}


def test_what_others_took_is_neither_ours_nor_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 2 s of two cores, this process works 1.5 s, an expected one 1 s and others 0.8 s: a fifth of the machine."""
    clocks = {
        "wall": iter([10.0, 12.0]),
        "own": iter([1.0, 2.5]),
        "all": iter([100.0, 103.3]),
        "load": iter([5.0, 6.0]),
    }
    monkeypatch.setattr("time.perf_counter", lambda: next(clocks["wall"]))
    monkeypatch.setattr("time.process_time", lambda: next(clocks["own"]))
    monkeypatch.setattr(serve, "busy_seconds", lambda: next(clocks["all"]))
    monkeypatch.setattr(serve, "cpu_seconds", lambda pid: next(clocks["load"]))
    monkeypatch.setattr(serve, "cores", lambda: 2)
    with serve.Span(expected=[1]) as span:
        pass
    assert span.as_dict() == pytest.approx({"seconds": 2.0, "cpu": 1.5, "foreign": 0.2})


def test_time_is_read_from_the_system() -> None:
    before = serve.busy_seconds(), serve.cpu_seconds(os.getpid())
    while serve.cpu_seconds(os.getpid()) < before[1] + 0.05:
        pass
    assert serve.busy_seconds() >= before[0] + 0.03, "the machine worked while this process did"
    assert serve.cpu_seconds(1 << 30) == 0.0, "there is no such process"
