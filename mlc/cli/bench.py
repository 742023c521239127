"""bench."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlc.errors import BadConfig

from . import output
from .options import Json, MaxContext, Model, Quant, Target, Threads

if TYPE_CHECKING:
    from mlc.tools.bench import Case, Start

    from .bench_output import Report
    from .bench_sides import Participant

_METHOD, _PEER = "Measuring", "Comparing"


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
    streams: Annotated[
        str, typer.Option("--streams", help="Sequences that write together; a list.", rich_help_panel=_METHOD)
    ] = "1",
    iterations: Annotated[int, typer.Option("--iterations", help="Runs that count.", rich_help_panel=_METHOD)] = 3,
    warmup: Annotated[int, typer.Option("--warmup", help="Runs before them.", rich_help_panel=_METHOD)] = 1,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Time, bytes and operations of one decode step, by op.", rich_help_panel=_METHOD
        ),
    ] = False,
    vs: Annotated[
        str | None,
        typer.Option(
            "--vs", help="Time another engine by turns with this one: llama.cpp.", rich_help_panel=_PEER, metavar="PEER"
        ),
    ] = None,
    vs_model: Annotated[
        str | None,
        typer.Option("--vs-model", help="The same model as the other engine reads it.", rich_help_panel=_PEER),
    ] = None,
    vs_python: Annotated[
        str | None,
        typer.Option(
            "--vs-python", help="The Python that has the other engine. Default: this one.", rich_help_panel=_PEER
        ),
    ] = None,
    vs_threads: Annotated[
        int | None,
        typer.Option(
            "--vs-threads", min=1, help="Threads of the other engine. Default: the cores.", rich_help_panel=_PEER
        ),
    ] = None,
    vs_set: Annotated[
        list[str] | None,
        typer.Option(
            "--vs-set", help="A setting of the other engine, such as flash=off; may be repeated.", rich_help_panel=_PEER
        ),
    ] = None,
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
      mlc bench -m ./compiled --vs llama.cpp --vs-model model.gguf --streams 1,8
    """
    from mlc.tools.bench import cases

    from .source import artifact

    depths = _numbers("--depth", depth)
    if profile:
        from .bench_profile import profile as show_profile

        show_profile(artifact(model, quant, target), depths[0], threads, max_context, json=json)
        return
    from .bench_output import show
    from .bench_sides import ours, peer

    todo = cases(
        _numbers("--prompt-len", prompt_len), _numbers("--gen-len", gen_len), depths, _numbers("--streams", streams)
    )
    rival = [peer(vs, vs_model, vs_python, vs_threads, vs_set or [])] if vs else []
    folder = artifact(model, quant, target)
    report = _measure(folder, [ours(folder, threads), *rival], todo, max_context, iterations, warmup)
    show(report, json=json)


def _measure(
    folder: Path,
    participants: Sequence[Participant],
    todo: Sequence[Case],
    max_context: int | None,
    iterations: int,
    warmup: int,
) -> Report:
    from mlc.backends.artifact import read_manifest, read_program
    from mlc.tools.bench import check, measure, measure_starts

    from .bench_output import Report, SideReport

    manifest = read_manifest(folder)
    if "forward" not in manifest.programs:
        raise BadConfig(f"{manifest.name} is an encoder ({manifest.model_type}) and generates no text to measure")
    context, sequences = max_context or manifest.context, read_program(folder, "forward").limits["r"]
    check(todo, context=context, sequences=sequences, iterations=iterations, warmup=warmup)
    with ExitStack() as stack, output.phases(f"measuring {manifest.name}") as progress:
        sides = [stack.enter_context(participant.start()) for participant in participants]
        vocab = min(int(side.about["vocab"]) for side in sides)

        def tell(case: Case, iteration: int) -> None:
            progress(case.label, iteration / (warmup + iterations))

        results = measure(sides, todo, vocab=vocab, iterations=iterations, warmup=warmup, progress=tell)
        memory = [side.ask("memory") for side in sides]
        starts: list[Start | None] = [None] * len(sides)
        if len(sides) > 1:
            progress("process start", 0)
            settled = [p.settled(r.settings) for p, r in zip(participants, results[-1], strict=True)]
            starts = [*measure_starts([p.start for p in settled], vocab=vocab, context=context, iterations=iterations)]
    by_side = zip(sides, participants, zip(*results, strict=True), memory, starts, strict=True)
    return Report(manifest, [SideReport(side.about, p.size, r, m, s) for side, p, r, m, s in by_side])


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise BadConfig(f"{option} must be a whole number or a list such as 128,512; got {text!r}")
    return [int(part) for part in parts]
