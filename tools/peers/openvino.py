"""OpenVINO GenAI on a GGUF file, or on a folder that it or its exporter wrote: exact token ids, streams in one batch.

Options (`--vs-set`): kv u8, f16 or f32 (the default of its scheduler for processors is u8), mmap on or off.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .base import SWITCH_ON, BasePeer, Option, Timer

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # else every import sends an event
import openvino  # noqa: E402
import openvino_genai as genai  # noqa: E402

_IR = "openvino_model.xml"
_BATCH = 1 << 16  # tokens of a step: prompts are read whole
_UNTIMED = nullcontext()


class Peer(BasePeer):
    name = "openvino"
    known: ClassVar = {"kv": Option("u8", ("u8", "f16", "f32")), "mmap": SWITCH_ON}

    def about(self) -> dict[str, str]:
        return {"name": "OpenVINO", "version": f"openvino-genai {genai.__version__}"}

    def load(self, model: str) -> dict[str, Any]:
        if not (Path(model, _IR).is_file() or model.endswith(".gguf")):
            raise ValueError(f"{model} is neither a GGUF file nor a folder with an {_IR}; see docs/PERFORMANCE.md")
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = False
        scheduler.max_num_batched_tokens = _BATCH
        properties = {
            "INFERENCE_NUM_THREADS": self.threads,
            "KV_CACHE_PRECISION": self.options["kv"],
            "ENABLE_MMAP": self.options["mmap"] == "on",
        }
        self.pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self.vocab = len(self.pipeline.get_tokenizer().get_vocab())
        self.requests = 0
        return {"vocab": self.vocab}

    def prepare(self, context: int, streams: int, settings: Mapping[str, str]) -> None:
        """Nothing: the cache grows by itself, and keeps its size."""

    def prefill(self, span: Timer, prompt: Sequence[int]) -> None:
        self._write([prompt], 1, reading=span)

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        """A request cannot go on after its end, so `decode` reads them."""
        self.prompts = prompts

    def decode(self, span: Timer, tokens: int) -> None:
        self._write(self.prompts, tokens + 1, writing=span)

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        reading: Timer = _UNTIMED,
        writing: Timer = _UNTIMED,
    ) -> None:
        """A new request for each prompt. `reading` ends with the first token of each, `writing` with the last."""
        config = genai.GenerationConfig(
            max_new_tokens=tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        with reading:
            handles = []
            for tensor in inputs:
                handles.append(self.pipeline.add_request(self.requests, tensor, config))
                self.requests += 1
            self.pipeline.step()
        self.written = [_tokens(handle) for handle in handles]
        if {len(written) for written in self.written} != {1}:
            raise RuntimeError(f"OpenVINO did not read {len(prompts)} prompts of {len(prompts[0])} tokens in one step")
        with writing:
            while self.pipeline.has_non_finished_requests():
                self.pipeline.step()
        for written, handle in zip(self.written, handles, strict=True):
            written += _tokens(handle)
        if {len(written) for written in self.written} != {tokens}:
            raise RuntimeError(
                f"OpenVINO wrote {[*map(len, self.written)]} tokens, asked for {tokens} in each sequence"
            )


def _tokens(handle: Any) -> list[int]:
    """What a request has written since it was read last."""
    tokens: list[int] = []
    while handle.can_read():
        tokens += [int(token) for output in handle.read().values() for token in output.generated_ids]
    return tokens
