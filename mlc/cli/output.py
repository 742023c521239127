"""What commands print: results on stdout, everything else on stderr, colours on terminals only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Report = Callable[[str, float], None]
"""(phase, share of it that is done)."""


def console(*, stderr: bool = False) -> Console:
    """A rich console. Long lines are never cut or wrapped where they go to a file or a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 1000)


def note(text: str) -> None:
    """A line for people beside the result: dim, on stderr."""
    console(stderr=True).print(text, style="dim", markup=False, soft_wrap=True)


def dim(text: str) -> None:
    """A line of small print in the conversation itself, on stdout."""
    console().print(text, style="dim", markup=False, soft_wrap=True)


def error_line(text: str) -> None:
    """`error: ...`, red on terminals."""
    from rich.text import Text

    line = Text.assemble(("error: ", "bold red"), (text, "red"))
    console(stderr=True).print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Machine-readable output: indented JSON, never coloured."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_lines(lines: Iterable[str]) -> None:
    """Plain text, exactly as it is."""
    for line in lines:
        sys.stdout.write(line + "\n")


@contextmanager
def phases(what: str, *, keep: bool = False) -> Generator[Report]:
    """Shows the phases of a long job while they run: a progress bar each on a terminal, else one line in all.

    The bars stay on the screen afterwards if `keep`.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        said = False

        def tell(phase: str, share: float) -> None:
            nonlocal said
            if not said:
                said = True
                note(what)

        yield tell
        return

    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=not keep) as progress:
        current: tuple[str, Any] | None = None

        def advance(phase: str, share: float) -> None:
            nonlocal current
            if current is None:
                progress.print(what, style="dim")
            if current is None or current[0] != phase:
                if current is not None:
                    progress.update(current[1], total=1, completed=1)
                current = phase, progress.add_task(phase, total=None)
            progress.update(current[1], total=1 if share else None, completed=share)

        yield advance
        if current is not None:
            progress.update(current[1], total=1, completed=1)


def seconds_since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


def size(count: float) -> str:
    """A number of bytes for people: 12 B, 3.4 kB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def quantity(count: float) -> str:
    """A plain number for people: 12, 3.4k, 1.2M, 4.0G."""
    for unit in ("", "k", "M", "G"):
        if count < 1000 or unit == "G":
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError


def table(*columns: str, boxed: bool = False) -> Table:
    """A table; a column whose name ends in ` >` is of numbers. Without columns: lines of a name and a value."""
    from rich.box import SIMPLE_HEAD, SQUARE
    from rich.table import Table

    if not columns:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        return grid
    if boxed:
        result = Table(box=SQUARE)
    else:
        result = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        numbers = name.endswith(" >")
        result.add_column(name.removesuffix(" >"), justify="right" if numbers else "left", overflow="fold")
    return result


def print_table(shown: Table) -> None:
    """On stdout; without the spaces that fill up lines where it is no terminal."""
    out = console()
    if out.is_terminal:
        out.print(shown)
        return
    with out.capture() as capture:
        out.print(shown)
    print_lines(line.rstrip() for line in capture.get().strip("\n").splitlines())
