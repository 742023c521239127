"""An engine on a thread of its own, for programs that use it in their process."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from .driver import Driver
from .engine import Engine
from .mailbox import Mailbox
from .request import Request
from .settings import Statistics
from .streams import Stream, Streams
from .wire import Ready

REST = 1.0  # seconds without work after which the engine proves its laws

_log = logging.getLogger("mlc.engine")


class EngineLoop:
    """Steps an engine while there is work. Thread-safe.

    The engine is made on the thread that steps it: native thread pools belong to the thread that first used them.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        """Returns once the engine is open. Raises what `make_engine` raises."""
        self._shared = _Shared()
        self._streams = Streams(self._shared.mailbox.put)
        ready: Future[Ready] = Future()
        self._thread = threading.Thread(
            target=_run, args=(make_engine, self._shared, self._streams, ready), name="mlc-engine", daemon=True
        )
        self._thread.start()
        opened = ready.result()
        self._shared.statistics = opened.statistics
        self.context = opened.context  # tokens of one sequence, prompt and answer
        # A daemon thread inside native code must not outlive the interpreter; the shared part refers to no loop.
        self._finish = weakref.finalize(self, _finish, self._shared, self._thread)

    @property
    def statistics(self) -> Statistics:
        """As of the last step, or of a moment before."""
        return self._shared.statistics

    def open(self, requests: Sequence[Request], wake: Callable[[], None]) -> Stream:
        """Submit `requests` together; `wake` is called, on the engine's thread, when their stream has something new.

        Close the stream in the end. Raises `InvalidRequest`, and `EngineDead` after `close`.
        """
        return self._streams.open(requests, wake)

    def close(self) -> None:
        """End the thread; whoever waits for an answer gets `EngineDead`. May be called twice."""
        self._finish()


class _Shared:
    """What the engine's thread has in common with others."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.statistics = Statistics()


def _run(make_engine: Callable[[], Engine], shared: _Shared, streams: Streams, ready: Future[Ready]) -> None:
    try:
        driver = Driver(make_engine())
        shared.mailbox.interrupt = driver.interrupt
    except BaseException as error:
        ready.set_exception(error)
        return
    ready.set_result(driver.ready())
    try:
        while not shared.mailbox.closed:
            commands = shared.mailbox.take(_patience(driver))
            for command in commands:
                driver.apply(command)
            if driver.idle and not commands:
                driver.rest()
                continue
            frame = driver.turn()
            shared.statistics = frame.statistics or shared.statistics
            streams.deliver(frame)
        streams.fail("the engine is closed")
    except Exception as error:
        _log.exception("the engine cannot go on")
        streams.fail(f"the engine cannot go on ({type(error).__name__}); its log says more")


def _patience(driver: Driver) -> float | None:
    """Seconds to wait for commands."""
    if not driver.idle:
        return 0.0
    return REST if driver.unchecked else None


def _finish(shared: _Shared, thread: threading.Thread) -> None:
    shared.mailbox.close()
    if thread is not threading.current_thread():
        thread.join()
