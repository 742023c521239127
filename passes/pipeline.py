"""Running passes: one flat list, the verifier after each, and the text after each where MLC_DUMP names a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mlc.ir import Graph, verify

Pass = Callable[[Graph], Graph]


def run(graph: Graph, passes: Sequence[tuple[str, Pass]]) -> Graph:
    """Apply the named passes in order. With MLC_DUMP set, each graph is written to `$MLC_DUMP/NN-graph-pass.ir`."""
    dump(graph, "00", "frontend")
    for number, (name, apply) in enumerate(passes, start=1):
        graph = verify(apply(graph))
        dump(graph, f"{number:02}", name)
    return graph


def dump(graph: Graph, number: str, stage: str) -> None:
    """Write one graph's text into the folder MLC_DUMP names, if it names one."""
    if folder := os.environ.get("MLC_DUMP"):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{number}-{graph.name}-{stage}.ir").write_text(f"{graph}\n")
