"""llama.cpp through the low-level interface of llama-cpp-python: exact token ids, one sequence id for each stream.

Options (`--vs-set`): flash on, off or trial (what a short trial finds faster; the default), kv f16 or q8_0 or f32,
ubatch (512), mmap on or off, repack on or off.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import llama_cpp as llama
import numpy as np

_Timer = AbstractContextManager[Any]

_BATCH = 2048  # tokens of a call; the library cuts it into ubatches
_TRIAL = {"prefill": (256, 0), "decode": (128, 8)}  # tokens to read, steps to write
_KV = {"f32": 0, "f16": 1, "q8_0": 8}
_FLASH = {"off": 0, "on": 1}
_DEFAULTS = {"flash": "trial", "kv": "f16", "ubatch": "512", "mmap": "on", "repack": "on"}
_CHOICES = {"flash": ("on", "off", "trial"), "kv": tuple(_KV), "mmap": ("on", "off"), "repack": ("on", "off")}


_SILENT = llama.llama_log_callback(lambda level, text, data: None)


class Peer:
    def about(self) -> dict[str, str]:
        return {"name": "llama.cpp", "version": f"llama-cpp-python {llama.__version__}"}

    def open(self, model: str, threads: int, options: Mapping[str, str]) -> dict[str, Any]:
        self.options, self.threads = _checked(options), threads
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

    def setup(self, kind: str, context: int, streams: int) -> dict[str, Any]:
        flash = self.options["flash"]
        if flash == "trial":
            seconds = {choice: self._trial(kind, context, streams, choice) for choice in _FLASH}
            flash = min(seconds, key=seconds.__getitem__)
        self._make_context(context, streams, flash)
        return {**self.options, "flash": flash, "threads": self.threads}

    def prefill(self, span: _Timer, prompt: Sequence[int]) -> None:
        self._forget()
        with span:
            self._read(0, prompt)

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        self._forget()
        self.next = np.array([self._read(s, prompt) for s, prompt in enumerate(prompts)])
        self.depths = np.array([len(prompt) for prompt in prompts])

    def decode(self, span: _Timer, tokens: int) -> None:
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

    def _make_context(self, context: int, streams: int, flash: str) -> None:
        if self.context:
            llama.llama_free(self.context)
        params = llama.llama_context_default_params()
        params.n_ctx = context * streams
        params.n_seq_max = streams
        params.n_batch, params.n_ubatch = _BATCH, int(self.options["ubatch"])
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = _FLASH[flash]
        params.type_k = params.type_v = _KV[self.options["kv"]]
        params.kv_unified = True
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context for {context * streams} tokens with {self.options}")

    def _trial(self, kind: str, context: int, streams: int, flash: str) -> float:
        """Seconds of a little of what will be measured."""
        self._make_context(context, streams, flash)
        tokens, steps = _TRIAL[kind]
        steps = min(steps, context - 1)
        length = max(1, min(tokens // streams, context - steps))
        began = time.perf_counter()
        self.fill([[(7 * i + s) % self.vocab for i in range(length)] for s in range(streams)])
        if kind == "decode":
            began = time.perf_counter()
            self.decode(nullcontext(), steps)
        return time.perf_counter() - began


def _checked(options: Mapping[str, str]) -> dict[str, str]:
    """The options with their defaults. Raises ValueError."""
    for name, value in options.items():
        if name not in _DEFAULTS:
            raise ValueError(f"llama.cpp has no option {name}; there are {', '.join(_DEFAULTS)}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} is {value}; expected {' or '.join(_CHOICES[name])}")
    return {**_DEFAULTS, **options}
