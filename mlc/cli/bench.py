"""bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlc.errors import BadConfig
from mlc.options import Options

from . import output
from .options import EmbeddingQuant, Json, KvType, MaxContext, Model, Quant, Target, Threads

_METHOD, _PEER = "Measuring", "Comparing"


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    model: Model = None,
    prompt_len: Annotated[
        str | None,
        typer.Option(
            "--prompt-len",
            help="Tokens to read; a list such as 128,512. 0: none.",
            show_default="512",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    gen_len: Annotated[
        str, typer.Option("--gen-len", help="Tokens to write; a list. Under 2: none.", rich_help_panel=_METHOD)
    ] = "128",
    depth: Annotated[
        str | None,
        typer.Option(
            "--depth",
            help="Tokens of context before those written; a list.",
            show_default="4",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    streams: Annotated[
        str, typer.Option("--streams", help="Sequences that write together; a list.", rich_help_panel=_METHOD)
    ] = "1",
    iterations: Annotated[int, typer.Option("--iterations", help="Runs that count.", rich_help_panel=_METHOD)] = 3,
    warmup: Annotated[int, typer.Option("--warmup", help="Runs before them.", rich_help_panel=_METHOD)] = 1,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Time, bytes and operations of one step, by op: of decoding at --depth with --streams, or of reading "
            "--prompt-len tokens where that is given. Of decoding also what the engine spends besides.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            help="With --profile: how the engine chooses tokens, such as top_p=0.9; may be repeated. Default: greedy.",
            metavar="NAME=VALUE",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None,
    cached_kv: Annotated[
        bool,
        typer.Option(
            "--cached-kv",
            help="With --profile: all pages of a context are one, which stays in the cache. What attention takes then "
            "is arithmetic; what it takes longer without, memory.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    limits: Annotated[
        bool,
        typer.Option(
            "--limits/--no-limits",
            help="Measure the machine's bandwidth and arithmetic too, and give shares of them.",
            rich_help_panel=_METHOD,
        ),
    ] = True,
    busy: Annotated[
        bool,
        typer.Option("--busy", help="Repeat decode while another process holds a core.", rich_help_panel=_METHOD),
    ] = False,
    start: Annotated[
        bool,
        typer.Option(
            "--start",
            help="Start the process anew: time to the first token, and memory.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the rates into an SVG file.", metavar="FILE", rich_help_panel=_METHOD),
    ] = None,
    vs: Annotated[
        str | None,
        typer.Option(
            "--vs",
            help="Time another engine by turns with this one: llama.cpp, mistralrs, onnxruntime, openvino.",
            rich_help_panel=_PEER,
            metavar="PEER",
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
    embedding_quant: EmbeddingQuant = "auto",
    target: Target = "host",
    kv_type: KvType = "auto",
    threads: Threads = None,
    max_context: MaxContext = None,
    json: Json = False,
) -> None:
    """Measure how fast a model reads and writes.

    The cases are those of [bold]mistralrs bench[/]: synthetic prompts, greedy, nothing stops an answer but its length.
    TTFT is the time to read a prompt and choose one token; decoding is timed once its context has been read. Shares are
    of what the machine can do, measured in the same run. docs/PERFORMANCE.md tells more.

    \b
    [bold]Examples[/]
      mlc bench
      mlc bench -m ./compiled --prompt-len 128,512,2048 --depth 128,512 --streams 1,8 --json
      mlc bench -m ./compiled --profile --depth 512 [dim]# where a decode step spends its time[/]
      mlc bench -m ./compiled --profile --prompt-len 512 [dim]# and one that reads a prompt[/]
      mlc bench -m ./compiled --vs llama.cpp --vs-model model.gguf --start
    """
    from mlc.tools.bench import cases

    from .source import artifact

    depths, many = _numbers("--depth", depth or "4"), _numbers("--streams", streams)
    if profile:
        from .bench_profile import Subject
        from .bench_profile import profile as show_profile

        subject = Subject(depths[0], streams=many[0], cached_kv=cached_kv)
        if prompt_len is not None:
            rows = _numbers("--prompt-len", prompt_len)[0]
            subject = Subject(0 if depth is None else depths[0], rows=rows, cached_kv=cached_kv)
        folder = artifact(model, Options(quant, target, kv_type, embedding_quant=embedding_quant))
        show_profile(
            folder,
            subject,
            threads=threads,
            max_context=max_context,
            limits=limits,
            sampling=sampling or [],
            json=json,
        )
        return
    if sampling:
        raise BadConfig("--sampling belongs to --profile; all other measurements are greedy")
    if cached_kv:
        raise BadConfig("--cached-kv belongs to --profile; all other measurements read keys and values from memory")
    from mlc.tools.plot import svg

    from .bench_output import show
    from .bench_run import Plan, run
    from .bench_sides import peer

    todo = cases(
        _numbers("--prompt-len", prompt_len or "512"), _numbers("--gen-len", gen_len), depths, many, or_none=start
    )
    rival = peer(vs, vs_model, vs_python, vs_threads, vs_set or []) if vs else None
    folder = artifact(model, Options(quant, target, kv_type, embedding_quant=embedding_quant))
    report = run(Plan(folder, threads, rival, todo, max_context, iterations, warmup, limits, busy, start))
    show(report, json=json)
    if plot is not None:
        plot.write_text(svg(report.charts()), encoding="utf-8")
        output.note(f"drawn into {plot}")


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise BadConfig(f"{option} must be a whole number or a list such as 128,512; got {text!r}")
    return [int(part) for part in parts]
