"""Real servers around a toy model, one process each, at a port that is free."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

HERE = Path(__file__).parent


@dataclass
class Server:
    """A running server, and how to talk to it."""

    process: subprocess.Popen[str]
    port: int
    banner: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return httpx.post(self.url + path, content=content, headers=names, timeout=20)

    def metric(self, name: str) -> float:
        """The sum over all labels of a metric."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def engine_pid(self) -> int:
        """The server's child that is the engine, not the resource tracker of multiprocessing."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(p) for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes())


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for `condition`; whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


StartServer = Callable[..., AbstractContextManager[Server]]


@contextmanager
def _started(log: Path, **options: Any) -> Iterator[Server]:
    options["serve"] = {"port": 0, "drain_seconds": 0.5} | options.get("serve", {})
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "toy_server.py"), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        port = re.search(r":(\d+)/v1", first)
        assert port, log.read_text()
        yield Server(process, int(port[1]), first + process.stdout.readline(), log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.stdout.close()


@pytest.fixture(scope="session")
def toy() -> Iterator[Any]:
    """The module `toy_server`, importable in processes that the test spawns, too."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("toy_server")
    sys.path.remove(str(HERE))


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Starts a server of one's own: `with start_server(delay=0.01, serve={"max_requests": 1}) as server`."""
    return lambda **options: _started(tmp_path / "server.log", **options)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests share, so they must leave it alive. It never fails a request unasked."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with _started(log, serve={"max_body_bytes": 200_000}) as started:
        yield started
    assert "Traceback" not in log.read_text(), log.read_text()
