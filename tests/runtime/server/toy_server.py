"""A server around a toy model: run as a script it listens, imported it is the factory of an engine process.

The model writes each token into its pages and reads them back through the page tables, so what it says depends on what
a compiled model would see. It speaks lower-case letters, blanks and é, and ends at every 64th position.
"""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

import mlc.runtime.engine
from mlc.backends.reference.sample import ReferenceSampling
from mlc.errors import BadConfig, InvalidRequest
from mlc.runtime.batch import Batch
from mlc.runtime.engine import Engine
from mlc.runtime.process import EngineSpec
from mlc.runtime.prompts import Prompts
from mlc.runtime.server.settings import ServeSettings
from mlc.runtime.settings import EngineSettings

END = 256
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz \xc3", np.uint8).astype(np.int64)
FAIL, DIE, HANG = b"\x01"[0], b"\x02"[0], b"\x03"[0]  # what they do to the model, once it has read past a 64th position


class ToyModel(ReferenceSampling):
    vocab = 257
    page_size = 8
    max_tokens = 256
    max_sequences = 64
    max_context = 1024

    def __init__(self, pages: int, delay: float) -> None:
        self.pages = pages
        self._delay = delay  # seconds of a step
        self._cache = np.full(pages * self.page_size, 7, np.int32)  # garbage until it is written

    def run(self, batch: Batch) -> NDArray[np.float32]:
        time.sleep(self._delay)
        self._cache[batch.slots] = batch.tokens
        logits = np.full((len(batch.rows), self.vocab), -30.0, np.float32)
        for out, row in zip(logits, batch.rows.tolist(), strict=True):
            s = int(np.searchsorted(batch.starts, row, "right")) - 1
            length = int(batch.lengths[s])
            self.read(self._cache.reshape(-1, self.page_size)[batch.tables[s]].reshape(-1)[:length], out)
        self.logits = logits
        return logits

    def read(self, text: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        if len(text) > 64:
            if FAIL in text:
                raise RuntimeError("secret")
            if DIE in text:
                os._exit(3)
            if HANG in text:
                time.sleep(60)
        out[LETTERS] = np.random.default_rng(crc32(text[-4:].tobytes())).normal(size=len(LETTERS))
        if text[-1] == 0xC3:
            out[0xA9] = 30
        elif len(text) % 64 == 0:
            out[END] = 30


class ToyDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[int]) -> str:
        return self._decoder.decode(bytes(token for token in tokens if token < END))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class ToyTokenizer:
    """Bytes are tokens."""

    eos_ids = frozenset({END})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    encode_chat = encode

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < END).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < END else b""

    def stream_decoder(self, *, continues: bool = False) -> ToyDecoder:
        return ToyDecoder()


class ToyTemplate:
    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if messages[0]["content"] == "a template may refuse":
            raise InvalidRequest("the template refused", param="messages")
        thinking = "think " if (kwargs or {}).get("enable_thinking") else ""
        return (
            "".join(f"{m['role']}: {m['content']}\n" for m in messages)
            + "assistant: " * add_generation_prompt
            + thinking
        )


def open_engine(
    pages: int = 512,
    delay: float = 0.0,
    settings: EngineSettings | None = None,
    fail: str = "",
    opening: float = 0.0,
    call_seconds: float | None = None,
) -> Engine:
    time.sleep(opening)
    if call_seconds is not None:
        mlc.runtime.engine.CALL_SECONDS = call_seconds
    if fail:
        raise BadConfig(fail)
    return Engine(ToyModel(pages, delay), ToyTokenizer(), settings)


def toy_prompts(chat: bool = True) -> Prompts:
    return Prompts(ToyTokenizer(), ToyTemplate() if chat else None)


@dataclass
class Options:
    """What the tests say to the script, as JSON."""

    pages: int = 512
    delay: float = 0.0
    opening: float = 0.0
    chat: bool = True
    serve: ServeSettings = ServeSettings()  # noqa: RUF009


def main() -> None:
    from mlc.runtime.server.serve import run, serve_engine  # the engine process imports this file without them
    from mlc.runtime.server.service import ModelCard

    options = msgspec.json.decode(sys.argv[1], type=Options)
    engine = {
        "pages": options.pages,
        "delay": options.delay,
        "opening": options.opening,
        "settings": options.serve.engine,
    }
    card = ModelCard("toy/model", 1_700_000_000, "toy-1")
    spec = EngineSpec("toy_server:open_engine", engine | {"settings": options.serve.engine})

    def announce(line: str) -> None:
        print(line, flush=True)

    run(serve_engine(spec, toy_prompts(options.chat), card, options.serve, announce))


if __name__ == "__main__":
    main()
