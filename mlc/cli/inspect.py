"""Commands that look inside: show, diff, doctor."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlc.errors import BadConfig
from mlc.options import Options

from . import output
from .options import EmbeddingQuant, Json, Quant, Target
from .source import Stage

if TYPE_CHECKING:
    from mlc.backends.artifact import Manifest
    from mlc.backends.cpu.choice import Trial
    from mlc.backends.cpu.kernel import Kernel
    from mlc.ir import Graph
    from mlc.tools.doctor import Check


def register(app: typer.Typer) -> None:
    app.command()(show)
    app.command()(diff)
    app.command()(doctor)


def show(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|ARTIFACT|FILE.ir",
            help="A hub id, a checkpoint's folder or file, a compiled model, or a graph's text. "
            "Default: the bundled tiny model.",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option("--stage", help="Which graph. Default: frontend.", show_default=False)
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Parameters, bytes and operations of a decode step, by op.")
    ] = False,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of context that --stats assumes.")] = 512,
    program: Annotated[bool, typer.Option("--program", help="The kernel calls of a step.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="The compiled kernels, and when they run.")] = False,
    kernel: Annotated[
        str | None, typer.Option("--kernel", metavar="NAME", help="The assembly of a kernel.", show_default=False)
    ] = None,
    quant: Quant = "none",
    embedding_quant: EmbeddingQuant = "auto",
    target: Target = "host",
    json: Json = False,
) -> None:
    """Print a model as text, at any stage of compilation.

    Graphs print exactly: the text can be read back, edited, and compared with [bold]mlc diff[/].

    \b
    [bold]Examples[/]
      mlc show --stage fused [dim]# the bundled model after fusion[/]
      mlc show ./model --quant q4 --stats [dim]# what one decode step moves and computes[/]
      mlc show ./compiled --kernels [dim]# what was compiled, and when it runs[/]
    """
    from . import source

    options = Options(quant, target, embedding_quant=embedding_quant)
    if program or kernels or kernel is not None:
        folder = source.artifact(subject, options)
        if kernel is not None:
            _show_kernel(folder, kernel)
        else:
            _show_program(folder, calls=program)
    elif stats:
        is_model = subject is None or not (subject.endswith(".ir") or source.is_artifact(Path(subject)))
        graph, name = source.graph(subject, stage or (Stage.packed if is_model else None), options)
        _show_stats(graph, name, context, json=json)
    elif stage is None and subject is not None and source.is_artifact(Path(subject)):
        _show_manifest(Path(subject), json=json)
    else:
        output.print_lines(str(source.graph(subject, stage, options)[0]).splitlines())


def _show_stats(graph: Graph, name: str, context: int, *, json: bool) -> None:
    from mlc.tools.stats import Cost, decode_step, summarize, total

    rows = summarize(graph, decode_step(context=context))
    whole = total(rows)
    columns = ("parameters", "weights", "activations", "cache", "operations")
    if json:
        fields = ("calls", *columns)
        ops = [{"op": r.op, "reads": r.reads, **{f: getattr(r.cost, f) for f in fields}} for r in rows]
        output.print_json({"context": context, "ops": ops, "total": {f: getattr(whole, f) for f in fields}})
        return

    def cells(cost: Cost) -> list[str]:
        counts = output.quantity(cost.parameters), *map(output.size, (cost.weights, cost.activations, cost.cache))
        return [str(cost.calls), *counts, output.quantity(cost.operations)]

    table = output.table(
        "op", "weight", "calls >", "parameters >", "weights >", "activations >", "KV >", "operations >"
    )
    for row in rows:
        table.add_row(row.op, row.reads, *cells(row.cost))
    table.add_section()
    table.add_row("total", "", *cells(whole), style="bold")
    output.note(f"{name}: one decode step of one sequence, with {context} tokens of context")
    output.print_table(table)


def _show_manifest(folder: Path, *, json: bool) -> None:
    import msgspec

    from mlc.backends.artifact import MANIFEST, read_manifest

    manifest = read_manifest(folder)
    if json:
        output.print_json(msgspec.to_builtins(manifest))
        return
    table = output.table()
    for name, value in _facts(manifest):
        table.add_row(name, value)
    for name in (*manifest.digests, MANIFEST):
        table.add_row("file", f"{name} ({output.size((folder / name).stat().st_size)})")
    output.print_table(table)
    output.note("see also --stage folded, --stage conversion, --stats, --program, --kernels, --kernel NAME")


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    target = manifest.target
    return [
        ("model", f"{manifest.name} ({manifest.model_type})"),
        ("parameters", output.quantity(manifest.parameters)),
        ("weights", manifest.quantization),
        ("KV cache", manifest.kv_type),
        ("context", f"{manifest.context} tokens"),
        ("vocabulary", f"{manifest.vocab} tokens"),
        ("target", f"{target.name} ({target.architecture}: {', '.join(target.features) or 'baseline'})"),
        ("made by", manifest.created_by),
    ]


def _show_kernel(folder: Path, name: str) -> None:
    """The kernel is lowered again from the artifact's graph, for the artifact's target."""
    from mlc.backends.artifact import read_manifest, read_program
    from mlc.backends.cpu.target import find_isa
    from mlc.backends.tvm.listing import listing
    from mlc.compile import lower
    from mlc.tools.show import function

    from .source import Stage, graph

    manifest, host = read_manifest(folder), find_isa("host")
    isa = host if host.name == manifest.target.name else find_isa(manifest.target.name)
    program = read_program(folder, "forward")

    def as_compiled(kernels: Sequence[Kernel], trial: Trial) -> Kernel:
        return next((kernel for kernel in kernels if kernel.name in program.kernels), kernels[0])

    _, kernels = lower(graph(str(folder), Stage.folded, Options())[0], isa, program.limits, as_compiled)
    found = {kernel.name: kernel for kernel in kernels}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        raise BadConfig(
            f"no kernel {name!r}{f'; did you mean {near[0]}' if near else ''}? See `mlc show {folder} --kernels`"
        )
    output.print_lines(function(listing(found[name], isa), f"{name}_compute_").splitlines())
    output.note(f"{name}, as compiled for {isa.name} ({isa.mcpu})")


def _show_program(folder: Path, *, calls: bool) -> None:
    from mlc.backends.artifact import read_manifest, read_program
    from mlc.tools.show import call_lines, kernel_uses

    manifest = read_manifest(folder)
    for name in manifest.programs:
        program = read_program(folder, name)
        if calls:
            output.print_lines(call_lines(program.calls))
        else:
            table = output.table("kernel", "op", "calls >", "when")
            for use in kernel_uses(program.kernels, program.calls):
                table.add_row(use.name, ", ".join(use.ops), str(use.calls), use.when)
            output.print_table(table)
        output.note(
            f"program {name}: {len(program.calls)} calls of {len(program.kernels)} kernels, "
            f"{output.size(program.arena)} of intermediate results. Assembly: mlc show {folder} --kernel NAME"
        )


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A .ir file; or a model, with --stages.")],
    second: Annotated[str | None, typer.Argument(metavar="B", help="Another .ir file.", show_default=False)] = None,
    stages: Annotated[
        tuple[Stage, Stage] | None,
        typer.Option("--stages", help="Compare two stages of the model A.", show_default=False),
    ] = None,
    quant: Quant = "none",
    embedding_quant: EmbeddingQuant = "auto",
    target: Target = "host",
) -> None:
    """Compare two graphs, or two stages of one model. Exits with 1 where they differ.

    Values are numbered in order of definition; a line whose values merely have other numbers counts as equal.

    \b
    [bold]Examples[/]
      mlc diff before.ir after.ir
      mlc diff ./model --stages frontend fused
    """
    from mlc.tools.diff import unified

    from . import source

    if (second is None) == (stages is None):
        raise BadConfig(
            "give two .ir files, or one model with --stages, as in `mlc diff MODEL --stages frontend fused`"
        )
    options = Options(quant, target, embedding_quant=embedding_quant)
    if stages is not None:
        pair = source.graphs(first, list(stages), options)
    else:
        assert second is not None
        pair = [source.graph(name, None, options) for name in (first, second)]
    (a, a_name), (b, b_name) = pair
    if _print_diff(unified(str(a), str(b), (a_name, b_name))):
        raise typer.Exit(1)


def _print_diff(lines: Iterable[str]) -> bool:
    """Whether there were any."""
    from rich.text import Text

    styles = {"-": "red", "+": "green", "@": "cyan"}
    console = output.console()
    any_line = False
    for line in lines:
        any_line = True
        style = "bold" if line.startswith(("--- ", "+++ ")) else styles.get(line[:1], "")
        console.print(Text(line, style), soft_wrap=True)
    return any_line


def doctor(json: Json = False) -> None:
    """Check whether everything mlc needs is here and works. Exits with 1 where something is wrong."""
    from mlc.tools import doctor as checks

    found = [checks.Check("mlc", _mlc_version()), *checks.software()]
    with output.phases("testing tvm ...") as progress:
        progress("tvm self-test", 0)
        found.append(checks.tvm_works())
        found.append(_target(broken=found[-1].status == "fail"))
    found += [*_hardware(), checks.compiler(), *_folders()]
    if json:
        output.print_json({"healthy": checks.healthy(found), "checks": [c.as_dict() for c in found]})
    else:
        _print_checks(found)
    if not checks.healthy(found):
        raise typer.Exit(1)


def _mlc_version() -> str:
    from mlc import __version__

    return f"{__version__} at {Path(__file__).resolve().parents[1]}"


def _hardware() -> list[Check]:
    from mlc.backends.load import measure_foreign_load, quota, threads_beside, usable_cores
    from mlc.tools import doctor as checks
    from mlc.tools.machine import machine

    usable, foreign = usable_cores(), measure_foreign_load()
    chosen = usable if foreign is None else threads_beside(foreign, usable)
    return [*checks.hardware(machine(usable)), *checks.threads(usable, quota(), foreign, chosen)]


def _target(*, broken: bool) -> Check:
    """The instruction set that `--target host` means here."""
    from mlc.tools.doctor import Check, attempt

    if broken:  # importing it here would crash too
        return Check("target", "unknown: the tvm self-test failed", "fail")

    def probe() -> str:
        from mlc.backends.cpu.isa import host_isa, named_isas

        isa, others = host_isa(), named_isas()
        more = f"; by name also {', '.join(others)}" if others else ""
        return f"{isa.name} (tuned for {isa.mcpu}; {', '.join(isa.features) or 'baseline'}){more}"

    return attempt("target", probe)


def _folders() -> list[Check]:
    from huggingface_hub import constants

    from mlc.cache import cache_folder
    from mlc.tools.doctor import cache, hugging_face

    return [cache(cache_folder()), hugging_face(Path(constants.HF_HUB_CACHE), constants.HF_HUB_OFFLINE)]


def _print_checks(found: list[Check]) -> None:
    marks = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "fail": "[red]✗[/]"}
    table = output.table()
    for check in found:
        from rich.markup import escape

        advice = f"\n[yellow]{escape(check.advice)}[/]" if check.advice else ""
        table.add_row(f"{marks[check.status]} {check.name}", escape(check.found) + advice)
    output.print_table(table)
