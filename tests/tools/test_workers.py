"""Processes that misbehave, and what is left of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc.errors import InputError
from mlc.tools.peers import serve
from mlc.tools.peers.serve import cpu_seconds
from mlc.tools.workers import Load, Worker, peer_command, peers

HELLO = "import json, os, sys, time\nprint(json.dumps({'ok': {'name': 'x'}}), flush=True)\n"
ANSWER = "sys.stdin.readline()\nprint(json.dumps({'ok': {'a': 1}}), flush=True)\n"

Start = Callable[..., Worker]


@pytest.fixture
def start() -> Start:
    """Starts a worker that runs a program."""

    def make(program: str, *arguments: str, seconds: float = 30.0) -> Worker:
        return Worker("x", [sys.executable, "-c", program, *arguments], seconds=seconds)

    return make


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process has ended, or does so soon. A zombie has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def ended(pid: int) -> bool:
    """Whether the process ends by itself. If not, it is ended here, so that a failing test leaves nothing behind."""
    if gone(pid):
        return True
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_worker_says_who_it_is_and_answers_orders(start: Start) -> None:
    program = HELLO + "for line in sys.stdin: print(json.dumps({'ok': json.loads(line)}), flush=True)"
    with start(program) as worker:
        assert worker.about == {"name": "x"}
        assert worker.ask("run", tokens=[1, 2]) == {"do": "run", "tokens": [1, 2]}
        pid = worker.pid
    assert gone(pid)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import sys; sys.exit('out of luck')", "x ended with exit code 1; it wrote: out of luck"),
        ("import os; os.kill(os.getpid(), 11)", "x ended with signal 11"),
        ("print('Welcome!')", "answered what is no JSON of ours: 'Welcome!'"),
        ("print('[1]')", "answered what is no JSON of ours"),
        ("import time; time.sleep(99)", "x did not answer within 1 s"),
        ('print(\'{"error": "no such model"}\')', "^x: no such model$"),
        ('print(\'{"error": "No module named y", "missing": true}\')', r"`.*python.* -m pip install x`.*--vs-python"),
    ],
)
def test_a_start_that_fails_is_explained(start: Start, program: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        start(program, seconds=1.0 if "sleep" in program else 30.0)


@pytest.mark.parametrize(
    ("then", "says"),
    [
        ("sys.stdin.readline(); os._exit(3)", "x ended with exit code 3"),
        ("sys.stdin.readline(); print('{', flush=True); sys.stdin.readline()", "no JSON of ours: '{'"),
        ("time.sleep(99)", "x did not answer within 1 s"),
        ("sys.stdin.readline(); print('x' * (1 << 25), flush=True)", "answered more than 16 MB"),
        ("sys.stdin.readline(); os.close(1); time.sleep(99)", "x ended with its output closed"),
    ],
)
def test_a_worker_that_fails_later_is_explained_and_ends(start: Start, then: str, says: str) -> None:
    with start(HELLO + ANSWER + then) as worker:
        assert worker.ask("first") == {"a": 1}
        with pytest.raises(InputError, match=says):
            worker.ask("second", seconds=1.0 if "sleep(99)" in then and "readline" not in then else 30.0)
        pid = worker.pid
    assert gone(pid)


def test_the_children_of_a_worker_end_with_it(start: Start) -> None:
    fork = "child = os.fork()\nif not child: time.sleep(99)\n"
    report = "print(json.dumps({'ok': {'child': child}}), flush=True)\ntime.sleep(99)"
    with start("import json, os, sys, time\n" + fork + report) as worker:
        child = worker.about["child"]
        assert not gone(child, 0.1)
    assert gone(child) and gone(worker.pid)


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
child.stdin.write(b'{"do": "open"}\\n')
child.stdin.flush()
time.sleep(0.2)
print(child.pid, flush=True)
os._exit(0)
"""


def test_an_order_under_way_does_not_outlive_the_parent(tmp_path: Path) -> None:
    """In the middle of a native call nobody sees that stdin has ended."""
    (tmp_path / "sleeper.py").write_text(
        "import time\nclass Peer:\n  def about(self): return {}\n  def open(self): time.sleep(99)\n"
    )
    (tmp_path / "serve.py").write_text(Path(serve.__file__).read_text())
    command = [sys.executable, "-c", PARENT, str(tmp_path / "serve.py"), "sleeper"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended(int(done.stdout))


def test_a_worker_that_spins_is_noticed(start: Start) -> None:
    with start(HELLO + "sys.stdin.readline()") as quiet, start(HELLO + "while True: pass") as busy:
        assert not busy.settle(0.3) and busy.restless
        assert quiet.settle() and not quiet.restless


def test_another_python_does_not_see_the_packages_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/here")
    tell = "import json, os; print(json.dumps({'ok': {'path': os.environ.get('PYTHONPATH')}}))"
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    for python, path in ((sys.executable, "/here"), (str(other), None)):
        with Worker("x", [python, "-c", tell]) as worker:
            assert worker.about == {"path": path}


def test_a_peer_is_a_file_and_others_do_not_exist() -> None:
    plain = ("mistralrs", "onnxruntime", "openvino")
    assert peers() == {"llama.cpp": "llamacpp"} | {name: name for name in plain}
    with pytest.raises(
        InputError, match=r"'vllm' is unknown; mlc can compare with llama\.cpp, mistralrs, onnxruntime, o"
    ):
        peer_command("vllm", None)


def test_a_python_that_does_not_exist_is_one_message() -> None:
    with pytest.raises(InputError, match=r"llama\.cpp cannot be started: /no/python: No such file"):
        Worker("llama.cpp", peer_command("llama.cpp", "/no/python"))


@pytest.mark.parametrize("name", sorted(peers()))
def test_an_engine_that_is_not_installed_is_named_with_its_package(tmp_path: Path, name: str) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    packages = {"llama.cpp": "llama-cpp-python", "onnxruntime": "onnxruntime-genai", "openvino": "openvino-genai"}
    package = packages.get(name, name)
    with pytest.raises(InputError, match=rf"{re.escape(name)} is not there for .*python -m pip install {package}`, or"):
        Worker(name, peer_command(name, str(bare)))


def test_a_load_takes_a_core_and_ends() -> None:
    with Load() as load:
        deadline = time.monotonic() + 30
        while cpu_seconds(load.pid) < 0.2:
            assert time.monotonic() < deadline, "it does not spin"
            time.sleep(0.05)
        pid = load.pid
    assert gone(pid, 0.1)


def test_a_load_ends_with_whoever_started_it() -> None:
    program = "import os\nfrom mlc.tools.workers import Load\nprint(Load().__enter__().pid, flush=True)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ)
    assert ended(int(done.stdout))
