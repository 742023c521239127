"""Answers on their way from the engine to those who asked, whoever waits for them and however."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import count

from mlc.errors import Cancelled, EngineDead, GenerationFailed, RequestError

from .request import Output, Request
from .wire import Cancel, Command, Frame, Submit

Piece = tuple[int, Output]  # the choice's number among all that the stream has, and what was added to it


class Stream:
    """The answers to requests that were submitted together, in the order of the requests, then of their choices.

    Memory is bounded by the answers' own length, so a slow reader delays nobody. `wake` is called after each change,
    from the thread that delivers. Only `Streams` calls the methods below `close`.
    """

    def __init__(self, streams: Streams, requests: dict[int, int], choices: int, wake: Callable[[], None]) -> None:
        self.choices = choices
        self._streams = streams
        self._wake = wake
        self._first = requests  # request → number of its first choice
        self._waiting = set(requests)  # neither accepted nor refused yet
        self._pieces = deque[Piece]()
        self._error: RequestError | None = None
        self._left = choices  # that have not ended

    @property
    def accepted(self) -> bool:
        """Whether the engine has taken all requests. Raises what it refused one with."""
        if self._error is not None:
            raise self._error
        return not self._waiting

    def take(self) -> list[Piece] | None:
        """What has come since the last call, which may be nothing yet; None after the last piece.

        Raises in place of None if the stream failed: `Overloaded`, `PromptTooLong`, `GenerationFailed`, ….
        """
        ended = self.ended  # read first: no piece comes after that
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        if pieces or not ended:
            return pieces
        if self._error is not None:
            raise self._error
        return None

    async def pieces(self, event: asyncio.Event, every: float | None = None) -> AsyncIterator[list[Piece]]:
        """Everything, as it comes; an empty list each time that nothing came for `every` seconds.

        `event` is what `wake` sets.
        """
        while True:
            event.clear()
            pieces = self.take()
            if pieces is None:
                return
            if pieces:
                yield pieces
                continue
            try:
                async with asyncio.timeout(every):
                    await event.wait()
            except TimeoutError:
                yield []

    def wait(self, event: threading.Event) -> Iterator[list[Piece]]:
        """Everything, as it comes, while the calling thread waits. `event` is what `wake` sets."""
        while True:
            event.clear()
            pieces = self.take()
            if pieces is None:
                return
            if pieces:
                yield pieces
            else:
                event.wait()

    def close(self) -> None:
        """Nobody reads any more: what is still under way is cancelled."""
        self._streams.release(self)

    @property
    def ended(self) -> bool:
        """Whether no more pieces will come."""
        return self._left == 0 or self._error is not None

    @property
    def complete(self) -> bool:
        """Whether every choice has come to its own end."""
        return self._left == 0

    @property
    def requests(self) -> list[int]:
        return list(self._first)

    def accept(self, request: int) -> None:
        self._waiting.discard(request)
        self._wake()

    def put(self, request: int, output: Output) -> None:
        match output.finish_reason:
            case "error":
                self.fail(GenerationFailed(output.error or "the engine failed to continue this answer"))
            case "cancelled":
                self.fail(Cancelled("the request was cancelled before its answer was complete"))
            case reason:
                self._pieces.append((self._first[request] + output.choice, output))
                self._left -= reason is not None
                self._wake()

    def fail(self, error: RequestError) -> None:
        if not self.ended:
            self._error = error
        self._wake()


class Streams:
    """All streams of one engine. `send` passes a command on to it; it neither blocks nor raises.

    Thread-safe: one thread delivers, any others open and close.
    """

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._names = count(1)
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}  # by request
        self._dead: str | None = None

    @property
    def under_way(self) -> int:
        """Requests."""
        return len(self._streams)

    def open(self, requests: Sequence[Request], wake: Callable[[], None]) -> Stream:
        """Submit `requests`. Raises `InvalidRequest`, and `EngineDead`."""
        commands, first, choices = list[Submit](), dict[int, int](), 0
        for request in requests:
            commands.append(Submit.of(next(self._names), request))
            first[commands[-1].id] = choices
            choices += request.n
        stream = Stream(self, first, choices, wake)
        with self._lock:
            if self._dead is not None:
                raise EngineDead(self._dead)
            self._streams |= dict.fromkeys(first, stream)
        for command in commands:
            self._send(command)
        return stream

    def deliver(self, frame: Frame) -> None:
        """Hand out what the engine reports. What comes for a closed stream is dropped."""
        for name in frame.accepted:
            if (stream := self._streams.get(name)) is not None:
                stream.accept(name)
        for refusal in frame.refused:
            if (stream := self._streams.get(refusal.id)) is not None:
                stream.fail(refusal.error())
                self.release(stream)
        for output in frame.outputs:
            name = int(output.request)
            if (stream := self._streams.get(name)) is not None:
                stream.put(name, output)
                if stream.ended:
                    self.release(stream)

    def release(self, stream: Stream) -> None:
        """No more pieces for `stream`: those of its requests that may be under way are cancelled."""
        with self._lock:
            known = [name for name in stream.requests if self._streams.pop(name, None) is not None]
            alive = self._dead is None
        if alive and not stream.complete:
            for name in known:
                self._send(Cancel(name))

    def fail(self, message: str) -> None:
        """The engine is gone: every stream ends with `EngineDead`, and so does whoever asks from now on."""
        with self._lock:
            self._dead = self._dead or message
            streams, self._streams = set(self._streams.values()), {}
        for stream in streams:
            stream.fail(EngineDead(message))
