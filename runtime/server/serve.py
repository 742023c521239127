"""The life of a server: open the engine, listen, drain, stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from sanic import Sanic

from mlc.errors import BadConfig

from ..load import engine_spec, load_prompts, model_card
from ..process import EngineProcess, EngineSpec
from ..prompts import Prompts
from .app import create_app
from .service import ModelCard, Service
from .settings import ServeSettings

BACKLOG = 1024  # connections that wait to be accepted
_GRACE = 2.0  # seconds for clients to be told that their answers end here

Announce = Callable[[str], None]
T = TypeVar("T")


def serve(artifact: Path, settings: ServeSettings | None = None, announce: Announce = print) -> None:
    """Serve the compiled model in the folder `artifact` until SIGINT or SIGTERM; a second one cuts the draining short.

    Raises `ArtifactError` and its kinds, and `BadConfig`.
    """
    settings = settings or ServeSettings()
    name, created, fingerprint = model_card(artifact)
    card = ModelCard(settings.model_name or name, created, fingerprint)
    spec = engine_spec(
        artifact,
        threads=settings.threads,
        max_context=settings.max_context,
        kv_tokens=settings.kv_tokens,
        settings=settings.engine,
    )
    run(serve_engine(spec, load_prompts(artifact), card, settings, announce))


def run(main: Any) -> None:
    """Run the coroutine `main` on uvloop, or on asyncio's own loop where that does not exist."""
    try:
        uvloop: Any = import_module("uvloop")
    except ImportError:
        uvloop = asyncio
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def serve_engine(
    spec: EngineSpec, prompts: Prompts, card: ModelCard, settings: ServeSettings, announce: Announce = print
) -> None:
    """`serve` with an engine of any making."""
    stop, force = _stop_signals()
    with _listen(settings) as listener:
        engine = await _unless(stop, _start(spec, settings))
        if engine is None:
            return
        try:
            service = Service(engine, prompts, card, settings)
            async with running(service, listener):
                announce(_banner(service, listener))
                await stop.wait()
                if service.active:
                    announce(f"{service.active} requests may end before the server stops; Ctrl-C cuts them off.")
                await _unless(force, service.drain(settings.drain_seconds))
        finally:
            await engine.stop(0.0 if force.is_set() else 5.0)


async def _start(spec: EngineSpec, settings: ServeSettings) -> EngineProcess:
    return await EngineProcess.start(spec, start_seconds=settings.start_seconds, stuck_seconds=settings.stuck_seconds)


@asynccontextmanager
async def running(service: Service, listener: socket.socket) -> AsyncIterator[Sanic[Any, Any]]:
    """Serve on `listener`, a bound socket. On leaving, those who still wait for an answer get an error."""
    app = create_app(service)
    server: Any = await app.create_server(  # an AsyncioServer, which has no types
        sock=listener, backlog=BACKLOG, return_asyncio_server=True, asyncio_server_kwargs={"start_serving": False}
    )
    await server.startup()
    await server.before_start()
    await server.start_serving()
    await server.after_start()
    try:
        yield app
    finally:
        await _close(service, server)
        Sanic.unregister_app(app)


async def _close(service: Service, server: Any) -> None:
    service.draining = True
    await server.before_stop()
    closed = server.close()
    service.engine.refuse("the server stops")
    await service.drain(_GRACE)
    for connection in list(server.connections):
        if not connection.close_if_idle():
            connection.abort()
    await asyncio.wait([closed], timeout=_GRACE)
    await server.after_stop()
    service.close()


def _listen(settings: ServeSettings) -> socket.socket:
    """A socket that holds the address, but lets nobody in yet: a client that comes too early is refused at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        if sys.platform != "win32":  # there it would let another program take the address
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        return listener
    except OSError as error:
        listener.close()
        raise BadConfig(
            f"cannot listen at {settings.host} port {settings.port}: {error}; choose others with --host and --port"
        ) from None


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the first signal to stop and of the second."""
    stop, force = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (force if stop.is_set() else stop).set()

    if sys.platform != "win32":  # there Ctrl-C cancels the main task, and `finally` cleans up
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, on_signal)
    return stop, force


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if `event` comes first, and `work` is cancelled."""
    task, signalled = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait((task, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


def _banner(service: Service, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    key = ' -H "Authorization: Bearer $API_KEY"' if service.settings.api_key else ""
    path, body = "completions", '{"prompt": "Once upon a time", "max_tokens": 64}'
    if service.prompts.template is not None:
        path, body = "chat/completions", '{"messages": [{"role": "user", "content": "Hello!"}]}'
    lines = [
        f"Serving {service.card.name} at {url} ({service.engine.context} tokens of context). Ctrl-C stops it. Try:",
        f"  curl {url}/{path} -H 'Content-Type: application/json'{key} -d '{body}'",
    ]
    if not key and host not in ("127.0.0.1", "::1"):
        lines.append("Whoever reaches this machine can use it: no API key is asked for. Set one with --api-key.")
    return "\n".join(lines)
