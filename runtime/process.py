"""The engine in a process of its own, and the asyncio client that talks to it."""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from mlc.errors import ArtifactError

from . import worker
from .request import Request
from .settings import Statistics
from .streams import Stream, Streams
from .wire import Command, Failed, Ready, Report, frame_length, pack, unpack_report

_log = logging.getLogger("mlc.server")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How the new process makes its engine: nothing but plain data crosses over to it."""

    factory: str  # "package.module:function", importable there; returns an `Engine`
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # its keyword arguments


@dataclass(frozen=True, slots=True)
class Health:
    """How the engine does."""

    status: Literal["ok", "stuck", "dead"]
    message: str
    steps: int  # since it was opened
    silent_seconds: float  # since it was last heard of
    flaws: int  # checks of its own laws that failed


class EngineProcess:
    """Client of an engine process. All methods belong to the event loop that started it.

    engine = await EngineProcess.start(EngineSpec("mlc.runtime.load:load_engine", {"artifact": "model"}))
    async for pieces in engine.answer([Request(tokens)]):
        ...
    await engine.stop()
    """

    def __init__(self, process: multiprocessing.context.SpawnProcess, stuck_seconds: float) -> None:
        self._process = process
        self._stuck_seconds = stuck_seconds
        self._streams = Streams(self._send)
        self._heard = monotonic()
        self._death: str | None = None
        self._flaws = 0
        self.statistics = Statistics()
        self.context = 0  # tokens of one sequence, prompt and answer
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._listener: asyncio.Task[None]

    @classmethod
    async def start(
        cls, spec: EngineSpec, *, start_seconds: float = 600.0, stuck_seconds: float = 120.0
    ) -> EngineProcess:
        """Spawn the process and wait until its engine is open.

        Raises `ArtifactError` with what the engine said if it could not be, or took longer than `start_seconds`.
        A living engine that says nothing for `stuck_seconds` counts as stuck in a step.
        """
        ours, theirs = socket.socketpair()
        arguments = (theirs, spec.factory, dict(spec.options))
        process = multiprocessing.get_context("spawn").Process(
            target=worker.main, args=arguments, name="mlc-engine", daemon=True
        )
        with theirs:
            process.start()
        atexit.register(process.kill)  # else an exit that forgets `stop` would wait for the engine for ever
        engine = cls(process, stuck_seconds)
        ours.setblocking(False)
        engine._reader, engine._writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.timeout(start_seconds):
                first = await engine._receive()
        except TimeoutError:
            first = Failed(f"the engine did not open within {start_seconds:g} seconds")
        except asyncio.CancelledError:
            await engine._end_process(0.0)
            raise
        if not isinstance(first, Ready):
            await engine._end_process(1.0)
            said = first.message if isinstance(first, Failed) else f"it ended with {engine._exit()} before it was open"
            raise ArtifactError(f"the engine process could not start: {said}")
        engine.context, engine.statistics = first.context, first.statistics
        engine._heard = monotonic()
        engine._listener = asyncio.create_task(engine._listen(), name="engine-listener")
        return engine

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def under_way(self) -> int:
        """Requests."""
        return self._streams.under_way

    def open(self, requests: Sequence[Request], event: asyncio.Event) -> Stream:
        """Submit `requests` together; `event` is set whenever their stream has something new.

        Close the stream in the end, whatever happens. Raises `InvalidRequest`, and `EngineDead`.
        """
        return self._streams.open(requests, event.set)

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[list[tuple[int, Any]]]:
        """`open`, `pieces` and `close` in one: for those who need no more. Raises what they raise."""
        event = asyncio.Event()
        stream = self.open(requests, event)
        try:
            async for pieces in stream.pieces(event):
                yield pieces
        finally:
            stream.close()

    async def flush(self) -> None:
        """Wait while more is queued to the engine than it has read."""
        with suppress(ConnectionError):  # the listener finds out, and says so to everybody
            await self._writer.drain()

    def health(self) -> Health:
        silent = monotonic() - self._heard
        status: Literal["ok", "stuck", "dead"] = "ok"
        message = "the engine runs"
        if self._death is not None:
            status, message = "dead", self._death
        elif silent > self._stuck_seconds:
            status, message = "stuck", f"the engine has said nothing for {silent:.0f} seconds"
        return Health(status, message, self.statistics.steps, silent, self._flaws)

    def refuse(self, message: str) -> None:
        """End all requests with `EngineDead`, and those to come."""
        self._streams.fail(message)

    async def stop(self, seconds: float = 5.0) -> None:
        """End the process: by closing the line, and by force if it is not gone after `seconds`."""
        self.refuse("the engine stops")
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        await self._end_process(seconds)

    def _send(self, command: Command) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(command))

    async def _receive(self) -> Report | None:
        """The next report; None when the other end is gone."""
        try:
            header = await self._reader.readexactly(4)
            return unpack_report(await self._reader.readexactly(frame_length(header)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _listen(self) -> None:
        while True:
            report = await self._receive()
            self._heard = monotonic()
            match report:
                case None:
                    await self._end_process(1.0)
                    return self._die(f"the engine process ended with {self._exit()}; restart the server")
                case Failed(message):
                    await self._end_process(1.0)
                    return self._die(f"{message}; restart the server")
                case Ready():
                    raise AssertionError("the engine opened twice")
                case turn:
                    frame = turn.frame
                    self.statistics = frame.statistics or self.statistics
                    self._flaws = frame.flaws
                    self._streams.deliver(frame)

    def _die(self, message: str) -> None:
        self._death = message
        _log.error("%s", message)
        self._streams.fail(message)

    async def _end_process(self, seconds: float) -> None:
        atexit.unregister(self._process.kill)
        self._writer.close()
        if not await self._gone(seconds):
            _log.warning("the engine process did not end by itself; it is killed")
            self._process.kill()
            await self._gone(10.0)

    async def _gone(self, seconds: float) -> bool:
        """Wait until the process has ended, at most `seconds`."""
        deadline = monotonic() + seconds
        while self._process.is_alive():  # reaps it, so that no zombie stays
            if monotonic() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def _exit(self) -> str:
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
