"""Our own side of a benchmark, as a process: `python -m mlc.cli.bench_engine` obeys the orders that
`tools/peers/serve.py` describes, with the engine that `mlc serve` runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc import __version__
from mlc.backends.module import Artifact, LanguageModel
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.settings import EngineSettings
from mlc.tools.peers.serve import Span, serve


@dataclass(frozen=True, slots=True)
class NoText:
    """A tokenizer for token ids alone: what is measured is the engine."""

    eos_ids: tuple[int, ...] = ()

    def encode(self, text: str, /) -> list[int]:
        raise AssertionError("a benchmark has no text")

    def stream_decoder(self, *, continues: bool = False) -> NoText:
        return self

    def push(self, tokens: Sequence[int], /) -> str:
        return ""

    def flush(self) -> str:
        return ""


class EngineSide:
    """The orders that `tools/peers/serve.py` describes."""

    def about(self) -> dict[str, str]:
        return {"name": "mlc", "version": __version__}

    def open(self, model: str, threads: int | None, options: Mapping[str, str]) -> dict[str, Any]:
        assert not options, "mlc has no options here"
        self._artifact = Artifact(Path(model), threads=threads)
        manifest = self._artifact.manifest
        return {"vocab": manifest.vocab, "parameters": manifest.parameters, "threads": self._artifact.threads}

    def setup(self, kind: str, context: int, streams: int) -> dict[str, Any]:
        size = 64  # tokens; whole pages, and one to spare, whatever their size
        room = streams * (-(-context // size) + 1) * size
        self._model = LanguageModel(self._artifact, max_context=context, kv_tokens=room)
        self._settings = EngineSettings(max_sequences=streams, prefix_cache=kind == "decode")
        self._engine = Engine(self._model, NoText(), self._settings)
        return {"threads": self._artifact.threads}

    def prefill(self, span: Span, prompt: Sequence[int]) -> None:
        with span:
            self._engine.submit(_request(prompt, 1))
            while not self._engine.idle:
                self._engine.step()

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Their pages stay in the prefix cache, so `decode` computes the last page of each alone."""
        self._prompts = prompts
        for prompt in prompts:
            self._engine.submit(_request(prompt, 1))
        while not self._engine.idle:
            self._engine.step()

    def decode(self, span: Span, tokens: int) -> None:
        engine, asked = self._engine, tokens * len(self._prompts)
        waiting = {engine.submit(_request(prompt, tokens + 1)) for prompt in self._prompts}
        while waiting:
            waiting.difference_update(output.request for output in engine.step())
        written = 0
        with span:
            while not engine.idle:
                written += sum(len(output.tokens) for output in engine.step())
        # Where the ends of the prompts took several steps, the first streams were ahead by as many tokens.
        assert 0 < written <= asked
        span.seconds *= asked / written


def _request(prompt: Sequence[int], tokens: int) -> Request:
    return Request(prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))


if __name__ == "__main__":
    serve(EngineSide())
