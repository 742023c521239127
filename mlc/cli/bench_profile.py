"""bench --profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.errors import BadConfig

from . import output

if TYPE_CHECKING:
    from mlc.backends.module import LanguageModel
    from mlc.tools.profile import Timed

_PROFILE_STEPS = 20  # each call's best time counts
_TICK = 1e-8  # seconds; a call takes at least that


def profile(folder: Path, depth: int, threads: int | None, max_context: int | None, *, json: bool) -> None:
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


def _open(folder: Path, threads: int | None, max_context: int | None, *, at_least: int) -> LanguageModel:
    """The model, with room for what is measured: models made for long contexts are opened no longer than needed."""
    from mlc.backends.artifact import read_manifest
    from mlc.backends.module import open_module

    limit = read_manifest(folder).context
    context = max_context or min(limit, max(at_least, 512))
    return open_module(folder, threads=threads, max_context=context, kv_tokens=context)
