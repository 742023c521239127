"""The processes that `mlc bench` times: this engine, and the one it is compared with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlc.errors import BadConfig, InputError
from mlc.tools.workers import Worker, peer_command

_OPEN_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Participant:
    """How to start a side, as often as need be."""

    name: str
    command: tuple[str, ...]
    model: Path  # a folder, or a file
    threads: int | None
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    def start(self) -> Worker:
        """A new process with the model loaded; `about` tells what it says of itself. Raises InputError."""
        worker = Worker(self.name, self.command)
        try:
            worker.about |= worker.ask(
                "open", seconds=_OPEN_SECONDS, model=str(self.model), threads=self.threads, options=dict(self.options)
            )
        except BaseException:
            worker.close()
            raise
        return worker

    def settled(self, settings: Mapping[str, Any]) -> Participant:
        """The same with the options that `settings` holds, where there was a choice."""
        return replace(self, options={name: value for name, value in settings.items() if isinstance(value, str)})

    @property
    def size(self) -> int:
        """Bytes on disk."""
        files = self.model.iterdir() if self.model.is_dir() else [self.model]
        return sum(file.stat().st_size for file in files)


def ours(folder: Path, threads: int | None) -> Participant:
    return Participant("mlc", (sys.executable, "-m", "mlc.cli.bench_engine"), folder.resolve(), threads)


def limits_side(threads: int) -> Participant:
    return Participant("limits", (sys.executable, "-m", "mlc.cli.bench_limits"), Path(), threads)


def peer(name: str, model: str | None, python: str | None, threads: int | None, settings: Sequence[str]) -> Participant:
    """The engine `name`, from what the user said of it. Raises BadConfig, InputError."""
    from mlc.backends.load import usable_cores

    command = peer_command(name, python)
    if model is None:
        raise BadConfig(
            f"--vs {name} needs --vs-model: the same model in the format that {name} reads "
            "(docs/PERFORMANCE.md says how to make it)"
        )
    if not Path(model).exists():
        raise InputError(f"--vs-model {model} does not exist")
    options: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadConfig(f"--vs-set {setting!r} is not NAME=VALUE")
        options[key] = value
    return Participant(name, tuple(command), Path(model).resolve(), threads or usable_cores(), options)
