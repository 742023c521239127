"""llama.cpp through the low-level interface of llama-cpp-python: exact token ids, one sequence id for each stream.

Options (`--vs-set`): flash on, off or trial (what a short trial finds faster; the default), kv f16 or q8_0 or f32,
ubatch (512), mmap on or off, repack on or off.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import llama_cpp as llama
import numpy as np

from .base import SWITCH_ON, BasePeer, Option, Timer

_BATCH = 2048  # tokens of a call; the library cuts it into ubatches
_KV = {"f32": 0, "f16": 1, "q8_0": 8}
_FLASH = {"off": 0, "on": 1}

_SILENT = llama.llama_log_callback(lambda level, text, data: None)


class Peer(BasePeer):
    name = "llama.cpp"
    known: ClassVar = {
        "flash": Option("trial", ("on", "off", "trial")),
        "kv": Option("f16", tuple(_KV)),
        "ubatch": Option("512", number=True),
        "mmap": SWITCH_ON,
        "repack": SWITCH_ON,
    }
    tried = "flash"
    candidates: ClassVar = dict.fromkeys(("prefill", "decode"), tuple(_FLASH))

    def about(self) -> dict[str, str]:
        return {"name": self.name, "version": f"llama-cpp-python {llama.__version__}"}

    def load(self, model: str) -> dict[str, Any]:
        llama.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.use_mmap = self.options["mmap"] == "on"
        params.use_extra_bufts = self.options["repack"] == "on"
        self.model = llama.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(_BATCH, 0, 1)
        self.tokens, self.positions, self.wanted = (
            np.ctypeslib.as_array(column, (_BATCH,)) for column in (self.batch.token, self.batch.pos, self.batch.logits)
        )
        for i in range(_BATCH):
            self.batch.n_seq_id[i] = 1
        self.context = None
        return {
            "vocab": self.vocab,
            "parameters": llama.llama_model_n_params(self.model),
            "system": llama.llama_print_system_info().decode().strip(),
        }

    def prepare(self, context: int, streams: int, settings: Mapping[str, str]) -> None:
        if self.context:
            llama.llama_free(self.context)
        params = llama.llama_context_default_params()
        params.n_ctx = context * streams
        params.n_seq_max = streams
        params.n_batch, params.n_ubatch = _BATCH, int(settings["ubatch"])
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = _FLASH[settings["flash"]]
        params.type_k = params.type_v = _KV[settings["kv"]]
        params.kv_unified = True
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context for {context * streams} tokens with {dict(settings)}")

    def prefill(self, span: Timer, prompt: Sequence[int]) -> None:
        self._forget()
        with span:
            self._read(0, prompt)

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        self._forget()
        self.next = np.array([self._read(s, prompt) for s, prompt in enumerate(prompts)])
        self.depths = np.array([len(prompt) for prompt in prompts])

    def decode(self, span: Timer, tokens: int) -> None:
        memory = llama.llama_get_memory(self.context)
        for s, depth in enumerate(self.depths):
            llama.llama_memory_seq_rm(memory, s, int(depth), -1)
        streams, current = len(self.depths), self.next.copy()
        self.batch.n_tokens = streams
        for s in range(streams):
            self.batch.seq_id[s][0] = s
        self.wanted[:streams] = 1
        with span:
            for step in range(tokens):
                self.tokens[:streams] = current
                self.positions[:streams] = self.depths + step
                self._decode()
                for s in range(streams):
                    current[s] = self._best(s)

    def _read(self, sequence: int, prompt: Sequence[int]) -> int:
        """Put a prompt into an empty sequence; returns the token that follows."""
        for start in range(0, len(prompt), _BATCH):
            part = prompt[start : start + _BATCH]
            count = self.batch.n_tokens = len(part)
            self.tokens[:count] = part
            self.positions[:count] = np.arange(start, start + count)
            self.wanted[:count] = 0
            self.wanted[count - 1] = start + count == len(prompt)
            for i in range(count):
                self.batch.seq_id[i][0] = sequence
            self._decode()
        return self._best(count - 1)

    def _decode(self) -> None:
        status = llama.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _best(self, row: int) -> int:
        logits = llama.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def _forget(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
