"""What a command's argument names: a graph's text, a compiled model, or a checkpoint at some stage of compilation."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from mlc.errors import BadConfig, InputError
from mlc.options import Options

from . import output

if TYPE_CHECKING:
    from mlc.ir import Graph, Tensor


class Stage(StrEnum):
    """How far a graph has come; the graphs of a model in the order of the pipeline."""

    frontend = "frontend"
    fused = "fused"
    quantized = "quantized"
    activations = "activations"
    packed = "packed"
    folded = "folded"
    conversion = "conversion"


_NEED_TARGET = (Stage.packed, Stage.folded, Stage.conversion)
_IN_ARTIFACT = {Stage.folded: "graph-forward.ir", Stage.conversion: "weights-forward.ir"}


def is_artifact(path: Path) -> bool:
    from mlc.backends import artifact as artifacts

    return artifacts.is_artifact(path)


def artifact(subject: str | None, options: Options) -> Path:
    """The folder of the compiled model, compiled now if need be. Raises MlcError."""
    from mlc.cache import prepare

    if subject is not None and is_artifact(Path(subject)) and options != Options():
        raise BadConfig(
            f"{subject} is compiled, so --quant, --embedding-quant, --target and --kv-type come too late; give the "
            "checkpoint instead"
        )
    with output.phases(f"compiling {subject or 'the bundled model'}") as progress:
        return prepare(subject, options, progress, output.note)


def graph(subject: str | None, stage: Stage | None, options: Options) -> tuple[Graph, str]:
    """The graph that `subject` names and a name for it. Without a stage: of a checkpoint, the first; of an artifact,
    what was compiled. Raises MlcError.
    """
    if subject is not None and subject.endswith(".ir"):
        if stage is not None:
            raise BadConfig(f"{subject} is one graph; --stage is for models")
        return read_graph(Path(subject)), subject
    if subject is not None and is_artifact(Path(subject)):
        stage = stage or Stage.folded
        if stage not in _IN_ARTIFACT:
            raise BadConfig(
                f"{subject} is compiled and keeps the stages {', '.join(s.value for s in _IN_ARTIFACT)}; for "
                f"{stage.value}, show the checkpoint it was made from"
            )
        return read_graph(Path(subject) / _IN_ARTIFACT[stage]), subject
    return graphs(subject, [stage or Stage.frontend], options)[0]


def graphs(subject: str | None, wanted: list[Stage], options: Options) -> list[tuple[Graph, str]]:
    """The graphs of a checkpoint at several stages, each with a name. Raises MlcError."""
    from mlc.cache import locate
    from mlc.compile import read_model, stages

    options.check()
    path, name = locate(subject)
    layout = _layout(options.target) if any(s in _NEED_TARGET for s in wanted) else _unpacked
    made = stages(read_model(path, name), options, layout)
    if any(s.value not in made for s in wanted):
        from mlc.passes import fold

        folded = fold(made["packed"])
        made |= {"folded": folded.forward, "conversion": folded.conversion}
    return [(made[s.value], f"{name} ({s.value})") for s in wanted]


def read_graph(path: Path) -> Graph:
    """The verified graph whose text is in `path`. Raises InputError, BadGraph."""
    from mlc.ir import parse_graph, verify

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return verify(parse_graph(text))


def _unpacked(_: Tensor) -> str:
    return ""


def _layout(target: str) -> Callable[[Tensor], str]:
    from mlc.backends.cpu.lower import layout_of
    from mlc.backends.cpu.target import find_isa

    isa = find_isa(target)
    return lambda t: layout_of(t, isa)
