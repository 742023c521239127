"""ONNX Runtime GenAI on a folder that its model builder wrote: exact token ids, the streams as one batch.

Options (`--vs-set`): chunk off, a number or trial (prompts whole or in pieces of that many tokens, 128 where a short
trial finds that faster; the default), spin on or off (threads wait for more work awake), prepack on or off (weights
copied into the order of the kernels).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .base import SWITCH_ON, BasePeer, Option, Timer

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # on by default; read when the library is loaded
import onnxruntime_genai as genai

_CONFIG = "genai_config.json"


class Peer(BasePeer):
    name = "onnxruntime"
    known: ClassVar = {"chunk": Option("trial", ("off", "trial"), number=True), "spin": SWITCH_ON, "prepack": SWITCH_ON}
    tried = "chunk"
    candidates: ClassVar = {"prefill": ("off", "128"), "decode": ("off",)}

    def about(self) -> dict[str, str]:
        packages = ("onnxruntime-genai", "onnxruntime")
        return {"name": "ONNX Runtime", "version": ", ".join(f"{package} {version(package)}" for package in packages)}

    def load(self, model: str) -> dict[str, Any]:
        path = Path(model, _CONFIG)
        if not path.is_file():
            raise ValueError(
                f"{model} is no folder with a {_CONFIG}; `python -m onnxruntime_genai.models.builder` writes one, see "
                "docs/PERFORMANCE.md"
            )
        self.vocab = int(json.loads(path.read_text())["model"]["vocab_size"])
        session = {
            "intra_op_num_threads": self.threads,
            "session.intra_op.allow_spinning": str(int(self.options["spin"] == "on")),
            "session.disable_prepacking": str(int(self.options["prepack"] == "off")),
        }
        config = genai.Config(model)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = genai.Model(config)
        return {"vocab": self.vocab}

    def prepare(self, context: int, streams: int, settings: Mapping[str, str]) -> None:
        self.generator: Any = None  # frees the memory of the one before
        search: dict[str, Any] = {"max_length": context, "min_length": context}  # nothing else ends an answer
        if settings["chunk"] != "off":
            search["chunk_size"] = int(settings["chunk"])
        params = genai.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, batch_size=streams, **search)
        self.generator = genai.Generator(self.model, params)

    def prefill(self, span: Timer, prompt: Sequence[int]) -> None:
        tokens = np.array([prompt], np.int32)
        self.generator.rewind_to(0)
        with span:
            self._read(tokens)

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts = np.array(prompts, np.int32)
        self.generator.rewind_to(0)
        self._read(self.prompts)
        self.filled = True

    def decode(self, span: Timer, tokens: int) -> None:
        if not self.filled:
            # A lone sequence can go back to the last token of its prompt; several are read again.
            streams, depth = self.prompts.shape
            kept = depth - 1 if streams == 1 else 0
            self.generator.rewind_to(kept)
            self._read(self.prompts[:, kept:])
        self.filled = False
        with span:
            for _ in range(tokens):
                self.generator.generate_next_token()

    def _read(self, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """Run the model over tokens [streams, n] and choose those that follow: the next one needs the model again."""
        self.generator.append_tokens(tokens)
        self.generator.generate_next_token()
