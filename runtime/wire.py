"""What a face and an engine say to each other: plain messages, as msgpack frames where a process lies between them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from mlc.errors import InvalidRequest, RequestError, request_error

from .request import Output, Request
from .sampling import SamplingParams
from .settings import Statistics

MAX_FRAME = 1 << 28  # bytes; more than any request or step takes, so a larger length means a broken peer
_LENGTH = struct.Struct("<I")


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Queue a request. It is answered by an acceptance or a refusal in the next frame."""

    id: int  # chosen by the face, never used twice
    tokens: bytes  # int32, little-endian
    params: SamplingParams
    n: int
    salt: str
    continues: bool

    @classmethod
    def of(cls, name: int, request: Request) -> Submit:
        """Raises `InvalidRequest` for token ids that are no int32."""
        try:
            tokens = np.array(request.tokens, "<i4").tobytes()
        except (OverflowError, ValueError):
            raise InvalidRequest("the prompt is no list of token ids of 32 bits", param="prompt") from None
        return cls(name, tokens, request.params, request.n, request.salt, request.continues)

    def request(self) -> Request:
        tokens = np.frombuffer(self.tokens, "<i4")
        return Request(tokens, self.params, self.n, self.salt, self.continues, str(self.id))


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End a request, if it is still under way. Outputs of it that are on their way may still arrive."""

    id: int


class Refusal(msgspec.Struct, frozen=True):
    """A `RequestError` as text."""

    id: int
    kind: str  # name of its class
    message: str
    param: str | None

    @classmethod
    def of(cls, name: int, error: RequestError) -> Refusal:
        return cls(name, type(error).__name__, str(error), error.param)

    def error(self) -> RequestError:
        return request_error(self.kind, self.message, self.param)


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is open."""

    context: int  # tokens of one sequence, prompt and answer
    statistics: Statistics


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not be opened, or cannot go on. It is the last thing that it says."""

    message: str


@dataclass(slots=True)
class Frame:
    """What one turn of the engine has to tell; an empty one is a heartbeat."""

    accepted: list[int] = field(default_factory=list[int])
    refused: list[Refusal] = field(default_factory=list[Refusal])
    outputs: list[Output] = field(default_factory=list[Output])
    statistics: Statistics | None = None  # now and then
    flaws: int = 0  # checks of the engine's own laws that failed so far


class Turn(msgspec.Struct, frozen=True, tag=True):
    frame: Frame


Command = Submit | Cancel
Report = Ready | Failed | Turn

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def pack(message: Command | Report) -> bytes:
    """`message` with its length in front."""
    body = _encoder.encode(message)
    assert len(body) <= MAX_FRAME, "a message outgrew the frame"
    return _LENGTH.pack(len(body)) + body


def unpack_report(body: bytes) -> Report:
    return _reports.decode(body)


def frame_length(header: bytes | bytearray) -> int:
    """Bytes that follow the four bytes `header`."""
    (length,) = _LENGTH.unpack(header)
    assert isinstance(length, int) and length <= MAX_FRAME, "the peer sent no frame"
    return length


class CommandBuffer:
    """Cuts a stream of bytes into commands."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Command]:
        """The commands that `data` completes."""
        self._bytes += data
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            first = start + _LENGTH.size
            end = first + frame_length(self._bytes[start:first])
            if len(self._bytes) < end:
                break
            yield _commands.decode(self._bytes[first:end])
            start = end
        del self._bytes[:start]
