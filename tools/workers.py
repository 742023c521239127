"""Processes that are timed by turns: what `peers/serve.py` serves, seen from the other end of the pipe.

A worker that dies, hangs or prints nonsense is an error that says so and shows what it wrote last; none outlives us.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlc.errors import InputError

from .peers.serve import cpu_seconds

PEERS = Path(__file__).parent / "peers"
_NO_PEER = {"__init__", "base", "serve"}
_INSTALL = {
    "llama.cpp": "llama-cpp-python",
    "mistralrs": "mistralrs",
    "onnxruntime": "onnxruntime-genai",
    "openvino": "openvino-genai",
}
_ANSWER_BYTES = 1 << 24
_END_SECONDS = 2.0
_IDLE_SHARE = 0.15  # of a core
_IDLE_WINDOW = 0.1  # seconds


def peers() -> dict[str, str]:
    """The peers there are: name -> module in `peers/`, which is the name without punctuation."""
    modules = {path.stem for path in PEERS.glob("*.py")} - _NO_PEER
    names = {name.replace(".", "").replace("-", "_"): name for name in _INSTALL}
    return {names.get(module, module): module for module in sorted(modules)}


def peer_command(name: str, python: str | None) -> list[str]:
    """The command of a peer's worker. Raises InputError for a peer that does not exist."""
    known = peers()
    if name not in known:
        raise InputError(f"--vs {name!r} is unknown; mlc can compare with {', '.join(known)}")
    return [python or sys.executable, str(PEERS / "serve.py"), known[name]]


class Worker:
    """One child process.

    with Worker("llama.cpp", peer_command("llama.cpp", None)) as worker:
        worker.ask("open", seconds=60, model="model.gguf", threads=2, options={})
    """

    def __init__(self, name: str, command: Sequence[str], *, seconds: float = 120.0) -> None:
        """Start it, and wait at most `seconds` until it says who it is. Raises InputError where it does not."""
        self.name = name
        self.restless = False
        self._command = list(command)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env=_environment(command[0]),
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"{name} cannot be started: {command[0]}: {error.strerror}") from None
        self._pending = b""
        try:
            self.about: dict[str, Any] = self._answer(seconds)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, *, seconds: float = 120.0, **order: Any) -> dict[str, Any]:
        """Give an order and wait at most `seconds` for its answer. Raises InputError where none comes."""
        line = json.dumps({"do": do, **order}).encode() + b"\n"
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead: reading finds out, and says more
            self._process.stdin.write(line)
        return self._answer(seconds) or {}

    def settle(self, seconds: float = 3.0) -> bool:
        """Wait until the worker leaves the processor alone: thread pools spin a while for more work.

        False if it has not stopped after `seconds`; it is `restless` then for good.
        """
        deadline = time.monotonic() + seconds
        while True:
            before = cpu_seconds(self.pid)
            time.sleep(_IDLE_WINDOW)
            if cpu_seconds(self.pid) - before <= _IDLE_SHARE * _IDLE_WINDOW:
                return True
            if time.monotonic() > deadline:
                self.restless = True
                return False

    def close(self) -> None:
        """End the process: by closing its stdin, and with all its children by force if that is not enough."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._errors.close()

    def _answer(self, seconds: float) -> Any:
        line = self._line(time.monotonic() + seconds, seconds)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and "ok" in answer:
            return answer["ok"]
        if isinstance(answer, dict) and answer.get("missing"):
            package = _INSTALL.get(self.name, self.name)
            raise InputError(
                f"{self.name} is not there for {self._command[0]} ({answer.get('error')}); run "
                f"`{self._command[0]} -m pip install {package}`, or name the Python that has it with --vs-python"
            )
        if isinstance(answer, dict) and "error" in answer:
            raise InputError(f"{self.name}: {answer['error']}")
        raise InputError(f"{self.name} answered what is no JSON of ours: {line[:200].decode(errors='replace')!r}")

    def _line(self, deadline: float, seconds: float) -> bytes:
        """The next line of its stdout, without the end. Raises InputError."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if len(self._pending) > _ANSWER_BYTES:
                    raise InputError(f"{self.name} answered more than {_ANSWER_BYTES >> 20} MB")
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise InputError(f"{self.name} did not answer within {seconds:.0f} s{self._last_words()}")
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise InputError(f"{self.name} ended with {self._exit()}{self._last_words()}")
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _exit(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.returncode
        if code is None:
            return "its output closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        """The end of what it wrote to stderr, for an error message."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 400))
        text = self._errors.read().decode(errors="replace").strip()
        return f"; it wrote: {text}" if text else ""


def _environment(python: str) -> Mapping[str, str]:
    """Another interpreter must not find the packages of this one."""
    own = python == sys.executable
    return {name: value for name, value in os.environ.items() if own or name not in ("PYTHONPATH", "PYTHONHOME")}


class Load:
    """A process that does nothing but hold a core, until the block ends or this process does."""

    _PROGRAM = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(1000000): pass"

    def __enter__(self) -> Load:
        self._process = subprocess.Popen([sys.executable, "-c", self._PROGRAM, str(os.getpid())])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid
