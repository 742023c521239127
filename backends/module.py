"""Opening an artifact and calling it: the one door through which the runtime reaches a compiled model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlc.errors import ArtifactError

from .artifact import WEIGHTS, Manifest, check, read_manifest, read_program
from .attention_plan import AttentionPlan
from .executor import Executor, load_library, set_threads
from .load import LoadPolicy, usable_cores
from .memory import allocate
from .native import request_tiles
from .program import ADVANCE, Program, evaluate_dim
from .sampling_state import STEPS, Penalties, SamplingState
from .weights_file import load_weights

Array = np.ndarray[Any, Any]

_NUMPY = {"f32": np.float32, "f16": np.float16, "i32": np.int32}


class Batch(Protocol):
    """One step of a language model, int32; see `mlc.runtime.batch`."""

    @property
    def tokens(self) -> Array: ...  # [n]
    @property
    def positions(self) -> Array: ...  # [n]
    @property
    def slots(self) -> Array: ...  # [n]
    @property
    def starts(self) -> Array: ...  # [s+1]
    @property
    def lengths(self) -> Array: ...  # [s]
    @property
    def tables(self) -> Array: ...  # [s, pages of a sequence]
    @property
    def rows(self) -> Array: ...  # [r]


_NO_SAMPLING = {"draws": 0, "again": 0, "penalized": 0}
SMALL = 32 << 20  # bytes of weights; they stay in a core's cache, and meeting at barriers costs more than it gains


class Artifact:
    """An opened artifact: manifest, native library and weights in memory."""

    def __init__(self, folder: Path, *, threads: int | None = None, mapped: bool | None = None) -> None:
        """Steps run on `threads` threads; by default on as many cores as others leave free, one for a small model.
        `mapped`: see `load_weights`. Raises ArtifactError and its kinds.
        """
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        check(folder, self.manifest)
        if "amx-tile" in self.manifest.target.features:
            request_tiles()
        small = (folder / WEIGHTS).stat().st_size < SMALL
        self.threads = threads or (1 if small else usable_cores())
        self._load = LoadPolicy(self.threads) if threads is None and self.threads > 1 else None
        set_threads(self.threads)
        self._run = load_library(folder / self.manifest.library)
        self._weights = load_weights(folder / WEIGHTS, mapped=mapped)

    def executor(self, program: Program, memory: Mapping[tuple[str, str], Array]) -> Executor:
        weights = {("weight", name): array for name, array in self._weights.items()}
        return Executor(program, self._run, {**weights, **memory}, threads=self.threads, load=self._load)

    def weight(self, name: str) -> Array:
        return self._weights[name]


class Function:
    """A program called with arrays: encoders, and anything that is no language model."""

    def __init__(self, artifact: Artifact, name: str) -> None:
        self.program = read_program(artifact.folder, name)
        self._inputs = {p.name: _port_memory(p.type, self.program.limits) for p in self.program.inputs}
        self._outputs = [_port_memory(p.type, self.program.limits) for p in self.program.outputs]
        memory = {("input", name): array for name, array in self._inputs.items()}
        memory |= {("output", p.name): array for p, array in zip(self.program.outputs, self._outputs, strict=True)}
        self.executor = artifact.executor(self.program, memory)

    def __call__(self, **inputs: Array) -> list[Array]:
        """The outputs for named inputs, as new arrays. Raises ArtifactError for shapes that do not fit."""
        symbols: dict[str, int] = {}
        for port in self.program.inputs:
            array = inputs[port.name]
            shape = _shape(port.type)
            _bind(port.name, shape, array.shape, symbols, self.program.limits)
            self._inputs[port.name][: array.size] = array.reshape(-1)
        self.executor.step(symbols)
        results: list[Array] = []
        for port, memory in zip(self.program.outputs, self._outputs, strict=True):
            shape_now = [evaluate_dim(d, symbols) for d in _shape(port.type)]
            results.append(memory[: int(np.prod(shape_now))].reshape(shape_now).copy())
        return results


def _bind(
    name: str, shape: tuple[str, ...], actual: tuple[int, ...], symbols: dict[str, int], limits: Mapping[str, int]
) -> None:
    """Give the symbols of `shape` their values."""
    if len(shape) != len(actual):
        raise ArtifactError(f"input {name} has shape {actual}, expected [{', '.join(shape)}]")
    for dim, size in zip(shape, actual, strict=True):
        if dim in limits:
            if not 1 <= size <= limits[dim] or symbols.setdefault(dim, size) != size:
                raise ArtifactError(f"input {name} has shape {actual}: {dim} must be 1 to {limits[dim]} and agree")
        elif int(dim) != size:
            raise ArtifactError(f"input {name} has shape {actual}, expected [{', '.join(shape)}]")


def _shape(type_text: str) -> tuple[str, ...]:
    return tuple(d for d in type_text.partition("[")[2].rstrip("]").split(", ") if d)


def _port_memory(type_text: str, limits: Mapping[str, int]) -> Array:
    """Flat memory for the largest value of a graph input or output."""
    dtype = np.dtype(_NUMPY[type_text.partition("[")[0]])
    count = int(np.prod([evaluate_dim(d, dict(limits)) for d in _shape(type_text)], dtype=np.int64))
    return allocate(count * dtype.itemsize).view(dtype)


class LanguageModel:
    """A compiled language model with its paged KV cache; implements `mlc.runtime.batch.Model`."""

    def __init__(self, artifact: Artifact, *, max_context: int | None = None, kv_tokens: int | None = None) -> None:
        """`max_context` tokens of one sequence (default: the model's, at most 8192); `kv_tokens` tokens of cache for
        all sequences together (default: room for two of the longest).
        """
        manifest = artifact.manifest
        if "forward" not in manifest.programs:
            raise ArtifactError(f"{manifest.name} is an encoder ({manifest.model_type}) and generates no text")
        self.program = read_program(artifact.folder, "forward")
        p = self.program
        if max_context is not None and not 1 <= max_context <= manifest.context:
            raise ArtifactError(f"{manifest.name} has a context of {manifest.context} tokens, asked for {max_context}")
        self.name = manifest.name
        self.vocab, self.page_size = manifest.vocab, p.page
        self.max_tokens, self.max_sequences = p.limits["n"], p.limits["r"]
        self.max_context = max_context or min(manifest.context, 8192)
        per_sequence = -(-self.max_context // p.page)
        self.pages = max(per_sequence, -(-(kv_tokens or 2 * self.max_context) // p.page))

        self._inputs = {port.name: _port_memory(port.type, p.limits) for port in p.inputs}
        self._logits = _port_memory(p.outputs[0].type, p.limits)
        self._slots = allocate(4 * self.max_tokens).view(np.int32)
        self._tables = allocate(4 * self.max_sequences * per_sequence).view(np.int32).reshape(-1, per_sequence)
        self._attention = AttentionPlan(
            page=p.page,
            span=p.span,
            tile_rows=p.tile_rows,
            kv_heads=max(layer.kv_heads for layer in p.kv_layers),
            max_tokens=self.max_tokens,
            max_sequences=self.max_sequences,
            max_context=self.max_context,
            threads=artifact.threads,
            steps=STEPS,
        )
        memory: dict[tuple[str, str], Array] = {("input", name): array for name, array in self._inputs.items()}
        memory |= {("output", "0"): self._logits, ("step", "slots"): self._slots}
        memory |= {("step", "tables"): self._tables}
        memory |= {("step", "partials"): allocate(p.partial * self._attention.partials)}
        memory |= {("step", name): getattr(self._attention, name) for name in ("members", "single_tiles", "tiles")}
        self._sampling = SamplingState(max_sequences=self.max_sequences, max_context=self.max_context)
        memory |= self._sampling.memory
        memory |= self._kv_places() | self._rotations(artifact)
        self.executor = artifact.executor(p, memory)
        # The call that takes a chosen token for the next step; those from `program.forward` up to it choose.
        self.choosing = next(i for i, call in enumerate(p.calls) if call.op == ADVANCE)
        self.symbols: dict[str, int] = {
            "table_stride": per_sequence,
            "room": self._sampling.room,
            **_NO_SAMPLING,
        }

    def _kv_places(self) -> dict[tuple[str, str], Array]:
        """Keys and values of all layers for one page lie side by side, so that few pages in use are little memory even
        where it is committed in pieces of 2 MB. The memory of a layer begins at its own place in the first page; page p
        of the pool is therefore number p * `_page_stride` to it.
        """
        parts = [(f"{part}.{of.layer}", of.page_bytes) for of in self.program.kv_layers for part in ("k", "v")]
        self._page_stride = len(parts)
        most = np.iinfo(np.int32).max // (self._page_stride * self.page_size)
        if self.pages > most:
            raise ArtifactError(f"the cache of keys and values is asked to hold {self.pages} pages; at most {most}")
        memory = {size: allocate(self.pages * len(parts) * size) for size in {size for _, size in parts}}
        self.kv_memory = tuple(memory.values())  # committed where it is written
        return {("kv", name): memory[size][i * size :] for i, (name, size) in enumerate(parts)}

    def _rotations(self, artifact: Artifact) -> dict[tuple[str, str], Array]:
        """cos and sin f32[max_context, d/2] for every frequency tensor the program rotates by."""
        memory: dict[tuple[str, str], Array] = {}
        names = {ref.name for call in self.program.calls for ref in call.pointers if ref.kind == "rope"}
        for name in sorted(names):
            part, _, tensor = name.partition(".")
            angles = np.arange(self.max_context, dtype=np.float32)[:, None] * artifact.weight(tensor)
            table = allocate(angles.nbytes).view(np.float32).reshape(angles.shape)
            memory["rope", name] = (np.cos if part == "cos" else np.sin)(angles, out=table)
        return memory

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache one token takes in all layers."""
        return sum(2 * layer.page_bytes for layer in self.program.kv_layers) // self.page_size

    def run(self, batch: Batch) -> Array:
        """One step; see `mlc.runtime.batch.Model.run`."""
        self.prepare(batch)
        self.executor.step(self.symbols, 0, self.program.forward)
        rows = self.symbols["r"]
        return self._logits[: rows * self.vocab].reshape(rows, self.vocab)

    def sample(self, rules: Array, draws: Array, penalties: Sequence[Penalties | None]) -> Array:
        """Tokens for the logits that `run` has returned; see `mlc.runtime.batch.Model.sample`."""
        state = self._sampling
        self.symbols.update(draws=state.prepare(rules, draws), penalized=state.hold_penalties(penalties))
        self.executor.step(self.symbols, self.program.forward, self.choosing + 1)
        state.counted(len(rules), 1)
        return state.chosen[: self.symbols["r"]]

    def decode(
        self,
        batch: Batch,
        rules: Array,
        draws: Array,
        stops: Sequence[Collection[int]],
        penalties: Sequence[Penalties | None],
    ) -> list[list[int]]:
        """Steps without anything between them; see `mlc.runtime.batch.Model.decode`."""
        rows, state = len(rules), self._sampling
        self.prepare(batch)
        draws = draws[: STEPS if state.hold_stops(stops) else 1]
        self.symbols.update(again=1, draws=state.prepare(rules, draws), penalized=state.hold_penalties(penalties))
        made = self.executor.steps(self.symbols, len(draws))
        state.counted(rows, made)
        tokens: list[list[int]] = state.history[: made * rows].reshape(made, rows).T.tolist()
        return tokens

    def interrupt(self, wanted: bool) -> None:
        """See `mlc.runtime.batch.Model.interrupt`."""
        self.executor.interrupt(wanted)

    def prepare(self, batch: Batch) -> None:
        """Put the step's integers where the program reads them."""
        n, s, r = len(batch.tokens), len(batch.lengths), len(batch.rows)
        self._inputs["tokens"][:n] = batch.tokens
        self._inputs["positions"][:n] = batch.positions
        self._inputs["rows"][:r] = batch.rows
        slots = self._slots[:n]
        np.floor_divide(batch.slots, self.page_size, out=slots)
        slots *= (self._page_stride - 1) * self.page_size
        slots += batch.slots
        np.multiply(batch.tables, self._page_stride, out=self._tables[:s, : batch.tables.shape[1]])
        self.symbols.update(self._attention.fill(batch), n=n, r=r, **_NO_SAMPLING)


def open_module(
    folder: Path,
    *,
    threads: int | None = None,
    max_context: int | None = None,
    kv_tokens: int | None = None,
    mapped: bool | None = None,
) -> LanguageModel:
    """The language model in an artifact. Call it from one thread only. Raises ArtifactError and its kinds."""
    artifact = Artifact(folder, threads=threads, mapped=mapped)
    return LanguageModel(artifact, max_context=max_context, kv_tokens=kv_tokens)
