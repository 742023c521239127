"""All subcommands under one name, and what becomes of errors."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlc import __version__
from mlc.errors import MlcError

from . import bench, inspect, models, serving

_USAGE, _INTERNAL = 2, 1  # exit codes: what was given cannot be used; our own fault


class _Commands(TyperGroup):
    """Turns errors of any subcommand into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except MlcError as error:
            _fail(str(error))
            raise typer.Exit(_USAGE) from None
        except (BrokenPipeError, typer.Exit, typer.Abort, EOFError):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer.", "click.")):
                raise  # wrong usage: it explains itself
            _fail(f"{type(error).__name__}: {error} (an error of mlc itself; run again with MLC_DEBUG=1 and report it)")
            raise typer.Exit(_INTERNAL) from None


def _fail(text: str) -> None:
    """Say what went wrong in a line, or, with MLC_DEBUG=1, with the whole traceback."""
    if os.environ.get("MLC_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    from .output import error_line

    error_line(text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlc {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="mlc",
    cls=_Commands,
    help="Compile a language model for this machine, then serve it.",
    epilog="Begin with [bold]mlc run[/]: it answers from a small bundled model and downloads nothing.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


for group in (models, serving, bench, inspect):
    group.register(app)
