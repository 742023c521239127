"""The HTTP face: routes, access, and every error in OpenAI's form."""

from __future__ import annotations

import hashlib
import hmac
import logging
from itertools import count
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import msgspec
from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import MethodNotAllowed, NotFound, PayloadTooLarge, SanicException
from sanic.response import BaseHTTPResponse

from mlc.errors import NotFound as NoSuchThing
from mlc.errors import RequestError

from .. import metrics
from . import generation, replies
from .service import Service

_access = logging.getLogger("mlc.access")
_log = logging.getLogger("mlc.server")
_names = count(1)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class BadKey(RequestError):
    status = 401
    code = "invalid_api_key"


class HttpError(RequestError):
    """What the HTTP layer itself refuses."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.type = "invalid_request_error" if status < 500 else "server_error"


def create_app(service: Service) -> Sanic[Any, Any]:
    """The application around `service`. It starts and stops nothing."""
    app: Sanic[Any, Any] = Sanic(f"mlc-{next(_names)}", env_prefix="", configure_logging=False)
    settings = service.settings
    app.config.update(
        ACCESS_LOG=False,
        REQUEST_MAX_SIZE=settings.max_body_bytes,
        REQUEST_TIMEOUT=settings.body_seconds,
        RESPONSE_TIMEOUT=settings.answer_seconds + settings.write_seconds,
        KEEP_ALIVE_TIMEOUT=settings.keep_alive_seconds,
    )
    key = None if settings.api_key is None else hashlib.sha256(settings.api_key.encode()).digest()

    @app.on_request
    async def admit(request: Request) -> None:
        request.ctx.started = perf_counter()
        if key is not None and request.path != "/health":
            _check_key(request, key)

    async def record(request: Request, response: BaseHTTPResponse) -> None:
        _record(service, request, response)

    app.register_middleware(record, "response")

    @app.exception(Exception)
    async def explain(request: Request, error: Exception) -> HTTPResponse:
        return _explain(service, request, error)

    _add_routes(app, service)
    return app


def _add_routes(app: Sanic[Any, Any], service: Service) -> None:
    @app.post("/v1/chat/completions", stream=True)
    async def chat(request: Request) -> HTTPResponse | None:
        return await generation.chat(request, service)

    @app.post("/v1/completions", stream=True)
    async def completions(request: Request) -> HTTPResponse | None:
        return await generation.completion(request, service)

    @app.get("/v1/models")
    async def models(request: Request) -> HTTPResponse:
        return _json(replies.ModelList([_model(service)]))

    @app.get("/v1/models/<name:path>")  # names of the hub have a slash, quoted or not
    async def model(request: Request, name: str) -> HTTPResponse:
        service.check_model(unquote(name))
        return _json(_model(service))

    @app.route("/health", methods=["GET", "HEAD"])
    async def health(request: Request) -> HTTPResponse:
        return _health(service)

    @app.get("/metrics")
    async def show_metrics(request: Request) -> HTTPResponse:
        return HTTPResponse(service.metrics.render(), 200, content_type=metrics.CONTENT_TYPE)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(body), status, headers, content_type="application/json")


def _model(service: Service) -> replies.Model:
    return replies.Model(service.card.name, service.card.created, service.engine.context)


def _health(service: Service) -> HTTPResponse:
    health, told = service.engine.health(), service.engine.statistics
    status = "draining" if service.draining and health.status == "ok" else health.status
    body = {
        "status": status,
        "message": health.message,
        "model": service.card.name,
        "steps": health.steps,
        "silent_seconds": round(health.silent_seconds, 3),
        "running": told.running,
        "waiting": told.waiting,
        "flaws": health.flaws,
    }
    return _json(body, 200 if status == "ok" else 503)


def _check_key(request: Request, key: bytes) -> None:
    """`key` is the digest of the right one. Comparing digests takes the same time for every guess."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = request.headers.get("x-api-key", "")
    digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
    if not hmac.compare_digest(digest, key):
        raise BadKey("the API key is missing or wrong; send it as `Authorization: Bearer KEY`")


def _record(service: Service, request: Request, response: BaseHTTPResponse) -> None:
    route = f"/{request.route.path}" if request.route is not None else "unmatched"
    method = request.method if request.method in _METHODS else "other"
    service.metrics.http_requests.labels(method, route, str(response.status)).inc()
    started = getattr(request.ctx, "started", None)
    seconds = 0.0 if started is None else perf_counter() - started
    _access.info("%s %s %d %.1f ms", method, route, response.status, 1000 * seconds)


def _explain(service: Service, request: Request, error: Exception) -> HTTPResponse:
    """Only our own messages go out; of anything else, that it happened."""
    refusal = error if isinstance(error, RequestError) else _http_error(service, request, error)
    service.metrics.errors.labels(refusal.code or refusal.type).inc()
    headers = dict(getattr(error, "headers", {}))
    if refusal.status in (429, 503):
        headers["retry-after"] = "1"
    return _json(replies.error_body(refusal), refusal.status, headers)


def _http_error(service: Service, request: Request, error: Exception) -> RequestError:
    match error:
        case NotFound():
            return NoSuchThing(f"there is no {request.path[:200]!r} here; see /v1/models, /v1/chat/completions")
        case MethodNotAllowed():
            return HttpError(
                f"{request.path} does not take {request.method[:20]}", status=405, code="method_not_allowed"
            )
        case PayloadTooLarge():
            limit = service.settings.max_body_bytes
            return HttpError(
                f"the body or the header is too large; a body may have {limit} bytes", status=413, code="too_large"
            )
        case SanicException() if error.status_code < 500 or error.quiet:
            return HttpError(str(error), status=error.status_code, code="http_error")
        case _:
            _log.error("a request failed", exc_info=error)
            return HttpError(
                "the server failed to handle this request; its log says more", status=500, code="internal_error"
            )
