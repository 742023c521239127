"""What the handlers share: the engine, the model's prompts, the limits, and who is being served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from mlc.errors import EngineDead, NotFound, Overloaded, RequestError

from ..metrics import Metrics
from ..process import EngineProcess
from ..prompts import Prompts
from ..settings import Statistics
from .openai import Limits
from .settings import ServeSettings

T = TypeVar("T")


class ShuttingDown(RequestError):
    """The server takes no more requests."""

    status = 503
    type = "server_error"
    code = "shutting_down"


class UnknownModel(NotFound):
    code = "model_not_found"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What clients read of the model."""

    name: str
    created: int  # seconds since 1970
    fingerprint: str  # changes with the compiled model


class Service:
    """The state of one server. It belongs to one event loop."""

    def __init__(self, engine: EngineProcess, prompts: Prompts, card: ModelCard, settings: ServeSettings) -> None:
        self.engine, self.prompts, self.card, self.settings = engine, prompts, card, settings
        self.limits = Limits(settings.max_choices, settings.max_prompts)
        self.metrics = Metrics(self._engine_state)
        self.active = 0  # requests that generate
        self.draining = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._threads = ThreadPoolExecutor(settings.prompt_threads, thread_name_prefix="mlc-prompts")

    def check_model(self, name: str | None) -> None:
        """Raise `UnknownModel` unless `name` is the model served here, or asks for whatever is."""
        if name not in (None, "default", self.card.name):
            raise UnknownModel(f"no model {name[:200]!r} here; this server has {self.card.name!r}", param="model")

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Holds one of the places for requests that generate. Raises `Overloaded`, `EngineDead`, `ShuttingDown`."""
        if self.draining:
            raise ShuttingDown("the server is shutting down; send the request to another, or again in a while")
        health = self.engine.health()
        if health.status == "dead":
            raise EngineDead(health.message)
        if self.active >= self.settings.max_requests:
            raise Overloaded(f"{self.active} requests are being served, which is the most; try again later")
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` where it delays nobody else."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for those under way, at most `seconds`. Whether all ended."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _count(self, change: int) -> None:
        self.active += change
        self.metrics.active.set(self.active)
        (self._quiet.clear if self.active else self._quiet.set)()

    def _engine_state(self) -> tuple[Statistics, bool, int]:
        health = self.engine.health()
        return self.engine.statistics, health.status == "ok", health.flaws
