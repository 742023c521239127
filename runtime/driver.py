"""Between a face and the engine: applies commands, steps, and reports. Whoever owns the compute thread turns it."""

from __future__ import annotations

import logging
from time import monotonic

from mlc.errors import RequestError

from .engine import Engine
from .wire import Cancel, Command, Frame, Ready, Refusal, Submit

STATISTICS_EVERY = 0.1  # seconds between two reports of the engine's counters while it is busy

_log = logging.getLogger("mlc.engine")


class Driver:
    """Turns an engine. One thread applies and turns; `interrupt` may come from any."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._frame = Frame()
        self._flaws = 0
        self.interrupt = engine.interrupt  # a turn that makes several steps ends with the one it is in
        self._reported = -STATISTICS_EVERY
        self.unchecked = False  # it worked since the last check

    def ready(self) -> Ready:
        return Ready(self._engine.limits.context, self._engine.statistics())

    @property
    def idle(self) -> bool:
        """Whether `turn` would have nothing to do and nothing to tell."""
        return self._engine.idle and not (self._frame.accepted or self._frame.refused)

    def apply(self, command: Command) -> None:
        """Carry out `command`. A refusal is told by the next turn; nothing is raised for what a request holds."""
        match command:
            case Submit():
                try:
                    self._engine.submit(command.request())
                    self._frame.accepted.append(command.id)
                except RequestError as error:
                    self._frame.refused.append(Refusal.of(command.id, error))
            case Cancel():
                self._engine.cancel(str(command.id))

    def turn(self) -> Frame:
        """Step once if there is work; what has happened since the last turn."""
        frame, self._frame = self._frame, Frame()
        if not self._engine.idle:
            frame.outputs = self._engine.step()
            self.unchecked = True
        now = monotonic()
        if self._engine.idle or now - self._reported >= STATISTICS_EVERY:
            frame.statistics, self._reported = self._engine.statistics(), now
        frame.flaws = self._flaws
        return frame

    def rest(self) -> None:
        """Nothing has come for a while: prove the engine's laws, once after each time that it worked."""
        if not self.unchecked or not self._engine.idle:
            return
        self.unchecked = False
        try:
            self._engine.check()
        except AssertionError:
            self._flaws += 1
            _log.exception("the engine's state breaks its laws; it goes on, but restart it when you can")
