"""Where the time of one step goes: measured seconds of kernel calls, beside what the graph says they must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlc.ir import Graph

from .stats import Cost, Step, constants, costs, label


@dataclass(frozen=True, slots=True)
class Timed:
    """One kernel call of the step that was measured."""

    op: str  # of the graph node it comes from, or of several, `first+second`
    kernel: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """All calls of one op that read weights of one type."""

    op: str
    reads: str  # the type of its weight; empty where it has none
    kernels: tuple[str, ...]
    calls: int
    seconds: float
    cost: Cost


def attribute(timed: Sequence[Timed], graph: Graph, step: Step) -> list[Row]:
    """The calls of one step, grouped by what they work on, slowest first.

    `timed` is in program order, so the calls of an op follow the nodes of that op; a node may make several. Where the
    two do not match, the calls of the op are one row without weights.
    """
    constant = constants(graph)
    nodes: dict[str, list[tuple[str, Cost]]] = {}
    for node, cost in costs(graph, step):
        nodes.setdefault(node.op.name, []).append((label(node, constant)[1], cost))
    calls: dict[str, list[int]] = {}
    for i, call in enumerate(timed):
        for op in call.op.split("+"):
            calls.setdefault(op, []).append(i)
    reads, spent = [""] * len(timed), [Cost()] * len(timed)
    for op, made in calls.items():
        of_op = nodes.get(op, [])
        share, rest = divmod(len(made), len(of_op)) if of_op else (0, 1)
        for number, i in enumerate(made if not rest else ()):
            weight, cost = of_op[number // share]
            reads[i] = reads[i] or weight
            if number % share == 0:
                spent[i] += cost
    groups: dict[tuple[str, str], list[tuple[Timed, Cost]]] = {}
    for call, weight, cost in zip(timed, reads, spent, strict=True):
        groups.setdefault((call.op, weight), []).append((call, cost))
    rows = [_row(op, reads, members) for (op, reads), members in groups.items()]
    return sorted(rows, key=lambda row: row.seconds, reverse=True)


def _row(op: str, reads: str, members: Sequence[tuple[Timed, Cost]]) -> Row:
    return Row(
        op,
        reads,
        tuple(dict.fromkeys(call.kernel for call, _ in members)),
        len(members),
        sum(call.seconds for call, _ in members),
        sum((cost for _, cost in members), Cost()),
    )
