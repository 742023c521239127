"""One run of `mlc bench`: all processes alive at once and timed by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc.backends.artifact import read_manifest, read_program
from mlc.backends.module import usable_cores
from mlc.errors import BadConfig
from mlc.tools.bench import Case, Result, Start, check, measure, measure_starts
from mlc.tools.limits import Limits, Work, work
from mlc.tools.workers import Load, Worker

from . import output
from .bench_output import Busy, Report, SideReport
from .bench_sides import Participant, limits_side, ours
from .source import Stage, graph

_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user asked for."""

    folder: Path  # of the compiled model
    threads: int | None
    peer: Participant | None
    cases: Sequence[Case]
    max_context: int | None
    iterations: int
    warmup: int
    limits: bool  # measure those of the machine too
    busy: bool  # repeat decode while another process holds a core


def run(plan: Plan) -> Report:
    """Raises InputError and its kinds where a process cannot do what is asked."""
    manifest = read_manifest(plan.folder)
    if "forward" not in manifest.programs:
        raise BadConfig(f"{manifest.name} is an encoder ({manifest.model_type}) and generates no text to measure")
    most = read_program(plan.folder, "forward").limits
    context = plan.max_context or manifest.context
    check(plan.cases, context=context, sequences=most["r"], iterations=plan.iterations, warmup=plan.warmup)
    participants = [ours(plan.folder, plan.threads), *([plan.peer] if plan.peer else [])]
    with ExitStack() as stack, output.phases(f"measuring {manifest.name}") as progress:
        meter = stack.enter_context(limits_side(plan.threads or usable_cores()).start()) if plan.limits else None
        sides = [stack.enter_context(participant.start()) for participant in participants]
        session = _Session(plan, sides, min(int(side.about["vocab"]) for side in sides), meter, progress)
        session.measure_limits()
        results = session.measure(sides, plan.cases, pause=session.measure_limits)
        memory = [side.ask("memory") for side in sides]
        busy = session.measure_busy() if plan.busy else []
        settled = [p.settled(r.settings) for p, r in zip(participants, results[-1], strict=True)]
        starts = session.measure_starts(settled, context) if plan.peer else [None] * len(sides)
        by_side = zip(sides, participants, zip(*results, strict=True), memory, starts, strict=True)
        reports = [SideReport(side.about, p.size, r, m, s) for side, p, r, m, s in by_side]
    limits = Limits.of(session.limits) if session.limits else None
    return Report(
        manifest, reports, limits, _works(plan, reports[0].results, limits, most["n"]), busy, session.restless
    )


class _Session:
    """The living processes of a run."""

    def __init__(
        self,
        plan: Plan,
        sides: Sequence[Worker],
        vocab: int,
        meter: Worker | None,
        progress: Callable[[str, float], None],
    ) -> None:
        self._plan, self._sides, self._vocab, self._meter, self._progress = plan, sides, vocab, meter, progress
        self.limits: list[dict[str, dict[str, float]]] = []

    @property
    def restless(self) -> list[str]:
        """Sides that did not leave the processor alone while another was timed."""
        workers = [*self._sides, *([self._meter] if self._meter else [])]
        return [worker.name for worker in workers if worker.restless]

    def measure_limits(self) -> None:
        if self._meter is not None:
            self.limits.append(self._meter.ask("measure", seconds=_LIMIT_SECONDS))
            self._meter.settle()

    def measure(self, sides: Sequence[Worker], cases: Sequence[Case], **more: Any) -> list[tuple[Result, ...]]:
        plan = self._plan
        rounds = plan.warmup + plan.iterations

        def tell(case: Case, iteration: int) -> None:
            self._progress(case.label, iteration / rounds)

        return measure(
            sides, cases, vocab=self._vocab, iterations=plan.iterations, warmup=plan.warmup, progress=tell, **more
        )

    def measure_busy(self) -> list[Busy]:
        """Decoding beside a process that holds a core, and what one thread does without it."""
        plan = self._plan
        cases = [case for case in plan.cases if case.kind == "decode"]
        with ours(plan.folder, 1).start() as single:
            alone = self.measure([single], cases)
        with Load() as load:
            loaded = self.measure(self._sides, cases, expected=[load.pid])
        return [Busy(one[0], several) for one, several in zip(alone, loaded, strict=True)]

    def measure_starts(self, participants: Sequence[Participant], context: int) -> list[Start]:
        self._progress("process start", 0)
        openers = [participant.start for participant in participants]
        return measure_starts(openers, vocab=self._vocab, context=context, iterations=self._plan.iterations)


def _works(plan: Plan, results: Sequence[Result], limits: Limits | None, step_tokens: int) -> list[Work] | None:
    if limits is None:
        return None
    forward, _ = graph(str(plan.folder), Stage.folded, "none", "host")
    return [work(forward, r.case, r.time, limits, step_tokens=step_tokens) for r in results]
