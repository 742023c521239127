"""The two endpoints that generate: from a body to the engine, and from its pieces to the client."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

import msgspec
from sanic import HTTPResponse, Request
from sanic.exceptions import PayloadTooLarge

from mlc.errors import GenerationFailed, InvalidRequest, RequestError

from .. import request as engine_request
from ..streams import Piece, Stream
from . import sse
from .answers import Answers, ChatAnswers, Head, TextAnswers
from .openai import Job, Limits, parse_chat, parse_completion, renamed
from .replies import error_body
from .service import Service

_log = logging.getLogger("mlc.server")

Parse = Callable[[bytes, Limits, Mapping[str, Any]], Job]


class UnsupportedBody(RequestError):
    status = 415
    code = "unsupported_media_type"


class BodyTimeout(RequestError):
    status = 408
    code = "request_timeout"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the engine."""

    job: Job
    requests: list[engine_request.Request]
    answers: Answers


async def chat(request: Request, service: Service) -> HTTPResponse | None:
    """POST /v1/chat/completions"""
    try:
        return await _generate(request, service, parse_chat, "chatcmpl-")
    except RequestError as error:
        raise renamed(error, {"prompt": "messages"}) from None


async def completion(request: Request, service: Service) -> HTTPResponse | None:
    """POST /v1/completions"""
    try:
        return await _generate(request, service, parse_completion, "cmpl-")
    except RequestError as error:
        raise renamed(error, {"messages": "prompt"}) from None


async def _generate(request: Request, service: Service, parse: Parse, prefix: str) -> HTTPResponse | None:
    """The response, or None where it has been streamed. The engine hears of it at once if the client leaves."""
    started = monotonic()
    with service.admission():
        body = await _read_body(request, service)
        head = Head(prefix + secrets.token_hex(12), int(time()), service.card.name, service.card.fingerprint)
        prepared = await service.in_thread(lambda: _prepare(body, service, parse, head))
        event = asyncio.Event()
        stream = service.engine.open(prepared.requests, event)
        try:
            await service.engine.flush()
            while True:
                event.clear()
                if stream.accepted:
                    break
                await event.wait()
            if prepared.job.stream:
                return await _stream(request, service, prepared.answers, _timed(service, stream, event, started))
            return await _whole(service, prepared.answers, _timed(service, stream, event, started))
        except asyncio.CancelledError:
            service.metrics.disconnects.inc()
            raise
        finally:
            stream.close()


async def _read_body(request: Request, service: Service) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps web pages from posting here unasked: this type needs a preflight
        raise UnsupportedBody(f"the Content-Type is {kind[:80] or 'missing'!r}; expected application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedBody("the body is compressed; send it plain")
    limit, body = service.settings.max_body_bytes, bytearray()
    incoming: Any = request.stream
    try:
        async with asyncio.timeout(service.settings.body_seconds):
            while data := await incoming.read():
                body += data
                if len(body) > limit:
                    raise PayloadTooLarge
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {service.settings.body_seconds:g} seconds") from None
    return bytes(body)


def _prepare(body: bytes, service: Service, parse: Parse, head: Head) -> Prepared:
    """Check, render, tokenize. Runs in a thread."""
    prompts = service.prompts
    job = parse(body, service.limits, prompts.defaults)
    service.check_model(job.model)
    if job.messages is not None:
        tokenized = [prompts.chat(job.messages, job.template)]
    else:
        tokenized = [prompts.text(p) if isinstance(p, str) else list(p) for p in job.prompts]
    if not all(tokenized):
        raise InvalidRequest("a prompt has no tokens; give it at least one", param="prompt")
    continues = job.messages is None
    requests = [engine_request.Request(t, job.params, job.n, continues=continues) for t in tokenized]
    common: dict[str, Any] = {
        "n": job.n,
        "prompt_tokens": [len(tokens) for tokens in tokenized],
        "token_bytes": prompts.tokenizer.token_bytes,
        "logprobs": job.params.logprobs is not None,
        "include_usage": job.include_usage,
    }
    if job.messages is not None:
        return Prepared(job, requests, ChatAnswers(head, **common))
    echo = [p if isinstance(p, str) else prompts.tokenizer.decode(p) for p in job.prompts] if job.echo else []
    return Prepared(job, requests, TextAnswers(head, **common, echo=echo))


async def _timed(service: Service, stream: Stream, event: asyncio.Event, started: float) -> AsyncIterator[list[Piece]]:
    """The stream's pieces, while what users wait for is measured."""
    metrics, latest = service.metrics, dict[int, float]()
    async for pieces in stream.pieces(event, service.settings.ping_seconds):
        now = monotonic()
        if pieces and not latest:
            metrics.first_token.observe(now - started)
        for index, output in pieces:
            if output.tokens:
                if index in latest:
                    for _ in output.tokens:
                        metrics.between_tokens.observe((now - latest[index]) / len(output.tokens))
                latest[index] = now
        yield pieces
    metrics.whole.observe(monotonic() - started)


async def _whole(service: Service, answers: Answers, pieces: AsyncIterator[list[Piece]]) -> HTTPResponse:
    limit = service.settings.answer_seconds
    try:
        async with asyncio.timeout(limit):
            everything = [piece async for some in pieces for piece in some]
    except TimeoutError:
        raise GenerationFailed(f"the answer took over {limit:g} seconds; stream it, or lower max_tokens") from None
    return HTTPResponse(msgspec.json.encode(answers.whole(everything)), 200, content_type="application/json")


async def _stream(
    request: Request, service: Service, answers: Answers, pieces: AsyncIterator[list[Piece]]
) -> HTTPResponse | None:
    """Send events as the pieces come. Headers are out by now, so an error becomes an event, the last one."""
    response = await request.respond(content_type=sse.CONTENT_TYPE, headers=sse.HEADERS)

    async def send(data: bytes) -> None:
        async with asyncio.timeout(service.settings.write_seconds):
            await response.send(data)

    try:
        if opening := answers.opening():
            await send(b"".join(map(sse.event, opening)))
        try:
            async for some in pieces:
                data = b"".join(map(sse.event, answers.chunks(some))) if some else sse.PING
                if data:
                    await send(data)
            await send(b"".join(map(sse.event, answers.closing())) + sse.DONE)
        except RequestError as error:
            service.metrics.errors.labels(error.code or error.type).inc()
            await send(sse.event(error_body(error)))
        await response.eof()
    except TimeoutError:
        _log.warning("a client did not read its answer for %g seconds; cut off", service.settings.write_seconds)
        service.metrics.disconnects.inc()
        transport: Any = request.transport
        transport.abort()
    return None
