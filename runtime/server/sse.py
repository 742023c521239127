"""Server-sent events as OpenAI streams them: one `data:` line each, then an empty one. No I/O."""

from __future__ import annotations

from typing import Any

import msgspec

CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must not hold events back
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"  # a comment: clients skip it, proxies see that the stream lives

_encoder = msgspec.json.Encoder()


def event(body: Any) -> bytes:
    """`body` as one event. JSON has no line breaks outside strings, and none unescaped inside."""
    return b"data: " + _encoder.encode(body) + b"\n\n"
