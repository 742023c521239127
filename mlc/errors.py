"""Every error mlc raises on purpose. Bugs raise AssertionError; nothing else is raised by hand.

MlcError
  ├ InputError        what was given cannot be used
  │   ├ UnsupportedModel   an architecture, format or option we do not have
  │   ├ BadCheckpoint      weights or tokenizer are damaged, missing or do not fit the config
  │   ├ BadConfig          config.json or an option has a value that makes no sense
  │   └ BadGraph           the IR is wrong (ParseError, TypeMismatch, VerifyError)
  ├ CompileError      the input is fine but cannot be compiled (NoLowering, TargetUnavailable)
  ├ ArtifactError     a compiled model cannot be opened (WrongVersion, WrongTarget, Corrupt)
  └ RequestError      one request cannot be served; carries an HTTP status and an OpenAI error type
      (InvalidRequest, PromptTooLong, NotFound, Overloaded, Cancelled, GenerationFailed, EngineDead)

A message says what was wrong, what was expected and where, and proposes the next thing to try.
"""

from __future__ import annotations

from collections.abc import Sequence


class MlcError(Exception):
    """Base of all mlc errors. They cross process boundaries, whatever their constructors take."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_error, (type(self), self.args, dict(self.__dict__)))


def _rebuild_error(kind: type[MlcError], args: tuple[object, ...], state: dict[str, object]) -> MlcError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InputError(MlcError):
    """What was given cannot be used."""


class UnsupportedModel(InputError):
    """The model needs something mlc does not have; the message names what it has."""


class BadCheckpoint(InputError):
    """A checkpoint file is damaged, incomplete, or does not fit its config."""


class BadConfig(InputError):
    """A configuration value is missing or makes no sense."""


class BadGraph(InputError):
    """The graph, or its text, is not valid IR."""


class ParseError(BadGraph):
    """The text is not IR. `line` and `column` count from 1."""

    def __init__(self, message: str, *, line: int, column: int, text: str) -> None:
        self.line, self.column = line, column
        super().__init__(f"line {line}, column {column}: {message}\n  {text}\n  {' ' * (column - 1)}^")


class TypeMismatch(BadGraph):
    """An op was given operands or attributes it does not accept."""


class VerifyError(BadGraph):
    """A graph breaks the laws of the IR. `problems` lists every breach."""

    def __init__(self, graph: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"graph {graph!r} is invalid:\n" + "\n".join(f"  {p}" for p in problems))


class CompileError(MlcError):
    """The input is valid but cannot be compiled for this target."""


class NoLowering(CompileError):
    def __init__(self, op: str, target: str, have: Sequence[str]) -> None:
        super().__init__(f"no {target!r} lowering for {op} (have: {', '.join(have) or 'none'})")


class TargetUnavailable(CompileError):
    """The named target does not exist here."""


class ArtifactError(MlcError):
    """A compiled model cannot be opened."""


class WrongVersion(ArtifactError):
    """The artifact was written in another format version; compile it again."""


class WrongTarget(ArtifactError):
    """The artifact was compiled for a machine this one is not."""


class Corrupt(ArtifactError):
    """The artifact's files do not match their digests."""


class RequestError(MlcError):
    """One request cannot be served. `status` and `type` are the HTTP status and OpenAI error type answered.

    `param` names the request field at fault, where one is.
    """

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:  # crosses process boundaries in tests and tools
        return (_rebuild_request_error, (type(self), str(self), self.param))


def _rebuild_request_error(kind: type[RequestError], message: str, param: str | None) -> RequestError:
    error = kind.__new__(kind)
    RequestError.__init__(error, message, param=param)
    return error


class InvalidRequest(RequestError):
    """A field has the wrong type or an impossible value."""


class PromptTooLong(RequestError):
    code = "context_length_exceeded"

    def __init__(self, *, tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {tokens} tokens and the model's context holds {limit}, answer included; "
            "shorten it, or start the engine with a larger --max-context",
            param="messages",
        )


class NotFound(RequestError):
    status = 404
    code = "not_found"


class Overloaded(RequestError):
    """The queue is full; try again later."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class Cancelled(RequestError):
    """The request was cancelled before it finished."""

    status = 499
    code = "cancelled"


class GenerationFailed(RequestError):
    """An accepted request ended before its answer did, through no fault of its sender."""

    status = 500
    type = "server_error"
    code = "generation_failed"


class EngineDead(RequestError):
    """The engine process is gone."""

    status = 503
    type = "server_error"
    code = "engine_dead"


def request_error(kind: str, message: str, param: str | None) -> RequestError:
    """The error that `kind` names, from its text: how one crosses a process boundary."""
    kinds = {found.__name__: found for found in RequestError.__subclasses__()}
    return _rebuild_request_error(kinds.get(kind, RequestError), message, param)
