"""bench --profile: where the time of one step goes, op by op, against what the machine could do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from mlc.backends.module import Artifact, LanguageModel
from mlc.backends.tvm.limits import Limits as Meter
from mlc.errors import BadConfig
from mlc.options import Options
from mlc.runtime.batch import Batch
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.tokenizer import Tokenizer
from mlc.tools.bench import FOREIGN_LIMIT
from mlc.tools.limits import Limits, Measured
from mlc.tools.peers.serve import Span
from mlc.tools.profile import Row, Timed, attribute
from mlc.tools.stats import Step, decode_step, prefill_step

from . import output
from .bench_overhead import ANSWER, Overhead, measure_overhead, sampling_params
from .source import Stage, graph

_ROUNDS, _LEAST_ROUNDS, _SECONDS = 100, 3, 6.0
_WARM = 0.005  # seconds
_TICK = 1e-8  # seconds; a call takes at least that


@dataclass(frozen=True, slots=True)
class Subject:
    """The step to look at: `streams` sequences add `rows` tokens each, after `depth` tokens of context.

    With `cached_kv` a sequence has one page in place of all its pages, so that keys and values come from the cache.
    """

    depth: int
    rows: int = 1
    streams: int = 1
    cached_kv: bool = False

    @property
    def context(self) -> int:
        return self.depth + self.rows

    @property
    def label(self) -> str:
        if self.rows > 1:
            return f"reading {self.rows} tokens after {self.depth}"
        cached = ", keys and values in the cache" if self.cached_kv else ""
        return f"writing a token to each of {self.streams} streams at depth {self.depth}{cached}"

    def step(self) -> Step:
        """As `tools.stats` counts it."""
        if self.rows > 1:
            return prefill_step(self.rows, context=self.context)
        return decode_step(tokens=self.streams, context=self.context)

    def batch(self, page: int, vocab: int) -> Batch:
        """As the model runs it; stream s has the pages from s * pages on."""
        pages = -(-self.context // page)
        tables = np.arange(self.streams * pages, dtype=np.int32).reshape(self.streams, pages)
        if self.cached_kv:
            tables[:] = tables[:, :1]
        positions = np.tile(np.arange(self.depth, self.context, dtype=np.int32), self.streams)
        stream = np.repeat(np.arange(self.streams), self.rows)
        ends = np.arange(self.streams + 1, dtype=np.int32) * self.rows
        return Batch(
            tokens=(1000 + np.arange(len(positions), dtype=np.int32)) % vocab,
            positions=positions,
            slots=tables[stream, positions // page] * page + positions % page,
            starts=ends,
            lengths=np.full(self.streams, self.context, np.int32),
            tables=tables,
            rows=ends[1:] - 1,
        )


@dataclass(frozen=True, slots=True)
class Times:
    """Medians of several rounds."""

    calls: Sequence[Timed]  # those that were made, without the time to launch them
    step: float  # seconds of the step as one native call
    launch: float  # seconds to launch a call
    limits: Limits | None  # of the machine, between the steps


def profile(
    folder: Path,
    subject: Subject,
    *,
    threads: int | None,
    max_context: int | None,
    limits: bool,
    sampling: Sequence[str],
    json: bool,
) -> None:
    """Print the table. Raises BadConfig where the step does not fit the model."""
    if min(subject.rows, subject.streams) < 1:
        raise BadConfig("a step has at least one token: give --prompt-len and --streams above 0 with --profile")
    for option, wanted in (("--sampling", sampling), ("--cached-kv", subject.cached_kv)):
        if wanted and subject.rows > 1:
            raise BadConfig(f"{option} is of steps that write: give --depth without --prompt-len")
    params, artifact = sampling_params(sampling), Artifact(folder, threads=threads)
    model = _open(artifact, subject, max_context)
    meter = Meter(artifact.threads) if limits else None
    with Span() as span:
        times = time_calls(model, subject, meter)
        overhead = _overhead(artifact, subject, params) if subject.rows == 1 else None
    if span.foreign > FOREIGN_LIMIT:
        output.note(f"warning: other programs took {100 * span.foreign:.0f} % of the machine meanwhile")
    rows = attribute(times.calls, graph(str(folder), Stage.folded, Options())[0], subject.step())
    if json:
        engine = overhead and overhead.as_dict() | {"sampling": asdict(params)}
        output.print_json(_as_dict(model, subject, times, rows, span.foreign) | {"engine": engine})
    else:
        _show(model, subject, times, rows)
        if overhead is not None:
            print(overhead.describe())


def time_calls(model: LanguageModel, subject: Subject, meter: Meter | None = None) -> Times:
    """The step as one native call, its kernel calls one by one, and what the machine can do, by turns.

    Each follows the other within milliseconds: a virtual machine is slower at one time than at another.
    """
    model.prepare(subject.batch(model.page_size, model.vocab))
    for pages in model.kv_memory:
        pages.fill(0)  # what nobody has written is one page of zeros for all, and lies in the cache
    executor, calls = model.executor, model.executor.program.calls
    steps, limits = list[float](), list[Measured]()
    each: list[list[float]] = [[] for _ in calls]
    last = 0.0

    def observe(i: int) -> None:
        nonlocal last
        each[i].append(perf_counter() - last)
        last = perf_counter()

    end = perf_counter() + _SECONDS
    while len(steps) < _LEAST_ROUNDS or (len(steps) < _ROUNDS and perf_counter() < end):
        if meter is not None:
            limits.append(meter.measure(passes=1, seconds=0.0))
        warm = perf_counter() + _WARM
        if subject.rows == 1 or not steps:  # a step that writes finds in the caches what others like it left there
            executor.step(model.symbols)
            while perf_counter() < warm:
                executor.step(model.symbols)
        began = perf_counter()
        executor.step(model.symbols)
        last = perf_counter()
        steps.append(last - began)
        executor.step_flat(model.symbols, observe)
    made = {i for i in range(len(calls)) if executor.runs(i, model.symbols)}
    launch = min((median(each[i]) for i in range(len(calls)) if i not in made), default=0.0)  # a guard says no
    timed = [Timed(calls[i].op, calls[i].kernel, max(median(each[i]) - launch, _TICK)) for i in sorted(made)]
    return Times(timed, median(steps), launch, Limits.of(limits) if limits else None)


def _open(artifact: Artifact, subject: Subject, max_context: int | None) -> LanguageModel:
    """The model, with room for the step alone."""
    limit = max_context or artifact.manifest.context
    if subject.context > limit:
        raise BadConfig(f"the step needs {subject.context} tokens of context and the model has {limit}; lower --depth")
    context = max(1, min(limit, subject.context))
    model = _with_room(artifact, context, subject.streams)
    for option, wanted, most in (
        ("--streams", subject.streams, model.max_sequences),
        ("--prompt-len", subject.rows * subject.streams, model.max_tokens),
    ):
        if wanted > most:
            raise BadConfig(f"{option} {wanted} is more than one step of this model takes: {most}")
    return model


def _with_room(artifact: Artifact, context: int, streams: int) -> LanguageModel:
    page = 64  # tokens, at most
    return LanguageModel(artifact, max_context=context, kv_tokens=streams * (context + page))


def _overhead(artifact: Artifact, subject: Subject, params: SamplingParams) -> Overhead:
    """Of the engine that decodes as `subject` does, or at less depth where its answers would not fit."""
    context = min(artifact.manifest.context, max(1, subject.depth) + ANSWER + 1)
    depth = min(subject.depth, context - ANSWER // 2)
    model = _with_room(artifact, context, subject.streams)
    return measure_overhead(model, Tokenizer.open(artifact.folder), params, depth=depth, streams=subject.streams)


def _as_dict(
    model: LanguageModel, subject: Subject, times: Times, rows: Sequence[Row], foreign: float
) -> dict[str, Any]:
    limits = times.limits
    ops = []
    for r in rows:
        op = {
            "op": r.op,
            "reads": r.reads,
            "kernels": list(r.kernels),
            "calls": r.calls,
            "seconds": r.seconds,
            "bytes": r.cost.bytes,
            "operations": r.cost.operations,
        }
        if limits is not None:
            op["binds"], op["least_seconds"] = limits.bind(r.reads, r.cost)
        ops.append(op)
    return {
        "model": model.name,
        "depth": subject.depth,
        "tokens": subject.rows,
        "streams": subject.streams,
        "cached_kv": subject.cached_kv,
        "threads": model.executor.threads,
        "step_seconds": times.step,
        "calls_seconds": sum(row.seconds for row in rows),
        "launch_seconds": times.launch,
        "foreign": foreign,
        "limits": limits and limits.as_dict(),
        "ops": ops,
    }


def _show(model: LanguageModel, subject: Subject, times: Times, rows: Sequence[Row]) -> None:
    limits = times.limits
    whole = sum(row.seconds for row in rows)
    least = [limits.bind(row.reads, row.cost) if limits else ("", 0.0) for row in rows]
    columns = ["op", "weight", "calls >", "µs >", "share >", "bytes >", "GB/s >", "operations >", "Gop/s >"]
    table = output.table(*columns, *(["limit", "of it >"] if limits else []))
    for r, (binds, seconds) in zip(rows, least, strict=True):
        cells = [
            r.op,
            r.reads,
            str(r.calls),
            f"{1e6 * r.seconds:.1f}",
            f"{100 * r.seconds / whole:.1f}%",
            output.size(r.cost.bytes),
            f"{r.cost.bytes / r.seconds / 1e9:.2f}",
            output.quantity(r.cost.operations),
            f"{r.cost.operations / r.seconds / 1e9:.2f}",
        ]
        table.add_row(*cells, *([binds, f"{100 * seconds / r.seconds:.0f}%"] if limits else []))
    output.print_table(table)
    print(
        f"{subject.label}, threads {model.executor.threads}: {1e6 * times.step:.0f} µs as one native call; its "
        f"{len(times.calls)} calls one by one: {1e6 * whole:.0f} µs ({100 * whole / times.step:.0f} %), and "
        f"{1e6 * times.launch:.1f} µs to launch each"
    )
    if limits is not None:
        total = sum(seconds for _, seconds in least)
        print(f"at the limits of this machine: {1e6 * total:.0f} µs, {100 * total / times.step:.0f} % of the step")
        print(limits.describe())
