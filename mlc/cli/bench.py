"""bench."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlc.errors import BadConfig

from . import output
from .options import Json, MaxContext, Model, Quant, Target, Threads

if TYPE_CHECKING:
    from mlc.backends.module import LanguageModel
    from mlc.tools.bench import Case, Result
    from mlc.tools.profile import Timed

_METHOD = "Measuring"
_PROFILE_STEPS = 20  # each call's best time counts
_TICK = 1e-8  # seconds; a call takes at least that


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    model: Model = None,
    prompt_len: Annotated[
        str,
        typer.Option("--prompt-len", help="Tokens to read; a list such as 128,512. 0: none.", rich_help_panel=_METHOD),
    ] = "512",
    gen_len: Annotated[
        str, typer.Option("--gen-len", help="Tokens to write; a list. Under 2: none.", rich_help_panel=_METHOD)
    ] = "128",
    depth: Annotated[
        str, typer.Option("--depth", help="Tokens of context before those written; a list.", rich_help_panel=_METHOD)
    ] = "4",
    iterations: Annotated[int, typer.Option("--iterations", help="Runs that count.", rich_help_panel=_METHOD)] = 3,
    warmup: Annotated[int, typer.Option("--warmup", help="Runs before them.", rich_help_panel=_METHOD)] = 1,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Time, bytes and operations of one decode step, by op.", rich_help_panel=_METHOD
        ),
    ] = False,
    quant: Quant = "none",
    target: Target = "host",
    threads: Threads = None,
    max_context: MaxContext = None,
    json: Json = False,
) -> None:
    """Measure how fast a model reads and writes.

    The method is that of [bold]mistralrs bench[/]: synthetic prompts, greedy, one sequence, no prefix cache, nothing
    stops an answer but its length. TTFT is the time to read a prompt and write one token.

    \b
    [bold]Examples[/]
      mlc bench
      mlc bench -m ./compiled --prompt-len 128,512,2048 --depth 128,512 --json
      mlc bench -m ./compiled --profile --depth 512 [dim]# where a decode step spends its time[/]
    """
    from mlc.tools.bench import cases, measure

    from .source import artifact

    depths = _numbers("--depth", depth)
    if profile:
        _profile(artifact(model, quant, target), depths[0], threads, max_context, json=json)
        return
    todo = cases(_numbers("--prompt-len", prompt_len), _numbers("--gen-len", gen_len), depths)
    folder = artifact(model, quant, target)
    longest = max(case.tokens for case in todo)
    opened = _open(folder, threads, max_context, at_least=longest)
    with output.phases(f"measuring {opened.name} with {opened.executor.threads} threads") as progress:

        def show(case: Case, iteration: int) -> None:
            progress(case.label, iteration / (warmup + iterations))

        results = measure(
            _generator(opened),
            todo,
            vocab=opened.vocab,
            context=opened.max_context,
            iterations=iterations,
            warmup=warmup,
            progress=show,
        )
    _print_results(results, opened, folder, json=json)


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise BadConfig(f"{option} must be a whole number or a list such as 128,512; got {text!r}")
    return [int(part) for part in parts]


def _open(folder: Path, threads: int | None, max_context: int | None, *, at_least: int) -> LanguageModel:
    """The model, with room for what is measured: models made for long contexts are opened no longer than needed."""
    from mlc.backends.artifact import read_manifest
    from mlc.backends.module import open_module

    limit = read_manifest(folder).context
    context = max_context or min(limit, max(at_least, 512))
    return open_module(folder, threads=threads, max_context=context, kv_tokens=context)


@dataclass(frozen=True, slots=True)
class _NoText:
    """A tokenizer for token ids alone: what is measured is the engine."""

    eos_ids: tuple[int, ...] = ()

    def encode(self, text: str, /) -> list[int]:
        raise AssertionError("a benchmark has no text")

    def stream_decoder(self, *, continues: bool = False) -> _NoText:
        return self

    def push(self, token: int, /) -> str:
        return ""

    def flush(self) -> str:
        return ""


def _generator(model: LanguageModel) -> Any:
    """What `tools.bench` measures: an engine for one sequence, without a prefix cache."""
    from mlc.runtime.engine import Engine
    from mlc.runtime.sampling import SamplingParams
    from mlc.runtime.settings import EngineSettings

    engine = Engine(model, _NoText(), EngineSettings(max_sequences=1, prefix_cache=False))

    def generate(prompt: list[int], tokens: int) -> Iterator[int]:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        for out in engine.generate(prompt, params):
            yield len(out.tokens)

    return generate


def _print_results(results: list[Result], model: LanguageModel, folder: Path, *, json: bool) -> None:
    from mlc.backends.artifact import read_manifest

    manifest = read_manifest(folder)
    if json:
        from mlc.tools.machine import machine

        output.print_json(
            {
                "model": model.name,
                "quantization": manifest.quantization,
                "parameters": manifest.parameters,
                "target": manifest.target.name,
                "created_by": manifest.created_by,
                "threads": model.executor.threads,
                "machine": machine(model.executor.threads).as_dict(),
                "results": [
                    {
                        "test": r.case.kind,
                        "prompt": r.case.prompt,
                        "generated": r.case.generated,
                        "tokens_per_second": r.mean,
                        "deviation": r.deviation,
                        "latency_ms": r.latency,
                        "rates": list(r.rates),
                    }
                    for r in results
                ],
            }
        )
        return
    print("Benchmark Results\n=================")
    print(f"Model: {model.name} ({manifest.quantization}, {manifest.target.name}, {model.executor.threads} threads)")
    print(f"Iterations: {len(results[0].rates)}")
    table = output.table("Test", "T/s >", "Latency >", boxed=True)
    for r in results:
        unit = "TTFT" if r.case.kind == "prefill" else "TPOT"
        table.add_row(r.case.label, f"{r.mean:.1f} ± {r.deviation:.1f}", f"{r.latency:.2f} ms {unit}")
    output.print_table(table)


def _profile(folder: Path, depth: int, threads: int | None, max_context: int | None, *, json: bool) -> None:
    from mlc.tools.profile import attribute
    from mlc.tools.stats import decode_step

    from .source import Stage, graph

    model = _open(folder, threads, max_context, at_least=depth + 1)
    if depth >= model.max_context:
        raise BadConfig(f"--depth {depth} leaves no room for a token in a context of {model.max_context}")
    timed, step_seconds, launch = _time_calls(model, depth)
    rows = attribute(timed, graph(str(folder), Stage.folded, "none", "host")[0], decode_step(context=depth + 1))
    whole = sum(row.seconds for row in rows)
    if json:
        output.print_json(
            {
                "model": model.name,
                "depth": depth,
                "threads": model.executor.threads,
                "step_seconds": step_seconds,
                "launch_seconds": launch,
                "ops": [
                    {
                        "op": r.op,
                        "reads": r.reads,
                        "kernels": list(r.kernels),
                        "calls": r.calls,
                        "seconds": r.seconds,
                        "bytes": r.cost.bytes,
                        "operations": r.cost.operations,
                    }
                    for r in rows
                ],
            }
        )
        return
    table = output.table("op", "weight", "calls >", "µs >", "share >", "bytes >", "GB/s >", "operations >", "Gop/s >")
    for r in rows:
        table.add_row(
            r.op,
            r.reads,
            str(r.calls),
            f"{1e6 * r.seconds:.1f}",
            f"{100 * r.seconds / whole:.1f}%",
            output.size(r.cost.bytes),
            f"{r.cost.bytes / r.seconds / 1e9:.2f}",
            output.quantity(r.cost.operations),
            f"{r.cost.operations / r.seconds / 1e9:.2f}",
        )
    output.print_table(table)
    print(
        f"one decode step, depth {depth}, threads {model.executor.threads}: {1e6 * step_seconds:.0f} µs as one native "
        f"call; its {len(timed)} calls one by one: {1e6 * whole:.0f} µs, and {1e6 * launch:.1f} µs to launch each"
    )


def _time_calls(model: LanguageModel, depth: int) -> tuple[list[Timed], float, float]:
    """Every kernel call of one decode step, at its best time, without the time to launch it; the best time of the step
    as one native call; and the time to launch a call.
    """
    from time import perf_counter

    import numpy as np

    from mlc.runtime.batch import Batch
    from mlc.tools.profile import Timed

    def ints(*values: int) -> Any:
        return np.array(values, np.int32)

    pages = -(-(depth + 1) // model.page_size)
    model.prepare(
        Batch(
            tokens=ints(1000 % model.vocab),
            positions=ints(depth),
            slots=ints(depth),
            starts=ints(0, 1),
            lengths=ints(depth + 1),
            tables=np.arange(pages, dtype=np.int32)[None],
            rows=ints(0),
        )
    )
    executor, calls = model.executor, model.executor.program.calls
    best = [float("inf")] * len(calls)
    whole = float("inf")
    for _ in range(_PROFILE_STEPS):
        started = perf_counter()
        executor.step(model.symbols)
        whole = min(whole, perf_counter() - started)
        last = perf_counter()

        def observe(i: int) -> None:
            nonlocal last
            now = perf_counter()
            best[i] = min(best[i], now - last)
            last = perf_counter()

        executor.step_flat(model.symbols, observe)
    made = {i for i in range(len(calls)) if executor.runs(i, model.symbols)}
    launch = min((best[i] for i in range(len(calls)) if i not in made), default=0.0)  # a call whose guard says no
    return [Timed(calls[i].op, calls[i].kernel, max(best[i] - launch, _TICK)) for i in sorted(made)], whole, launch
