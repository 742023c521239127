"""The engine as users meet it: named by a model instead of by an artifact, which is compiled first if need be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlc.cache import Progress, prepare
from mlc.options import Options
from mlc.runtime import api
from mlc.runtime.settings import EngineSettings


def _silent(*_: object) -> None:
    """Compiling takes seconds to a minute, once; a library prints nothing meanwhile."""


@contextmanager
def _main_module_left_alone() -> Generator[None]:
    """A process spawned within does not import the main module.

    It would run a script that lacks `if __name__ == "__main__"` once more, and the compiler needs nothing of it.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


class Engine(api.Engine):
    """A model, ready to answer; see `mlc.runtime.api.Engine` for the calls."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        quant: str = "none",
        embedding_quant: str = "auto",
        target: str = "host",
        kv_type: str = "auto",
        threads: int | None = None,
        max_context: int | None = None,
        kv_tokens: int | None = None,
        settings: EngineSettings | None = None,
        progress: Progress = _silent,
        note: Callable[[str], None] = _silent,
    ) -> None:
        """`model` is a hub id, a checkpoint's folder, a .gguf file or a compiled model; None is the bundled one.

        `quant`, `embedding_quant`, `target` and `kv_type` say how to compile it. `progress` is told (phase, share done)
        meanwhile, `note` in a line what was reused or made. The other arguments are those of `mlc.runtime.api.Engine`.
        Raises MlcError.
        """
        options = Options(quant, target, kv_type, embedding_quant=embedding_quant)
        with _main_module_left_alone():
            folder = prepare(None if model is None else str(model), options, progress, note)
        super().__init__(folder, threads=threads, max_context=max_context, kv_tokens=kv_tokens, settings=settings)
