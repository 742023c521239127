"""Commands on their way to the thread that turns an engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .wire import Command


class Mailbox:
    """Any thread puts commands in; the one that turns the engine takes them out.

    A step may be under way meanwhile, and several may be one call of the model: `interrupt` is told when there is
    something to take (True), and before it is taken (False), so that nothing waits longer than the step it came in.
    """

    def __init__(self) -> None:
        self._commands = deque[Command]()
        self._news, self._taken = threading.Event(), threading.Event()
        self._taken.set()
        self._failure: Exception | None = None
        self.interrupt: Callable[[bool], None] = lambda wanted: None
        self.closed = False

    def put(self, command: Command) -> None:
        self._commands.append(command)
        self._taken.clear()
        self._announce()

    def close(self, failure: Exception | None = None) -> None:
        """No more commands come. `failure` is raised by the next `take`."""
        self.closed, self._failure = True, failure
        self._announce()

    def wait_taken(self) -> None:
        """Wait until everything that has been put in is taken out."""
        self._taken.wait()

    def take(self, seconds: float | None) -> list[Command]:
        """The commands that have come; waits for one for `seconds`, None: as long as it takes."""
        if seconds != 0.0:
            self._news.wait(seconds)
        self._news.clear()
        self.interrupt(False)  # before the commands are taken: for one that comes later it is True again
        commands = [self._commands.popleft() for _ in range(len(self._commands))]
        self._taken.set()
        if self._failure is not None:
            raise self._failure
        return commands

    def _announce(self) -> None:
        self.interrupt(True)
        self._news.set()
