"""The `mlc` command. `commands` puts its groups of subcommands together, each of which is a file here; what they need
is imported when they run, and nothing of it by the processes that `mlc bench` starts from this package.
"""

from __future__ import annotations


def main() -> None:
    """The entry point of the `mlc` command and of `python -m mlc`."""
    from .commands import app

    app(prog_name="mlc")
