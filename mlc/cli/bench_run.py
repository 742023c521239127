"""One run of `mlc bench`: all processes alive at once and timed by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc.backends.artifact import read_manifest, read_program
from mlc.backends.load import usable_cores
from mlc.errors import BadConfig
from mlc.options import Options
from mlc.tools.bench import START_CONTEXT, Case, Result, Start, check, measure, measure_starts
from mlc.tools.limits import Limits, Measured, Work, work
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
    start: bool  # time new processes to their first token


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
        results = session.measure(sides, plan.cases, between=session.measure_limits)
        memory = [side.ask("memory") for side in sides]
        busy = session.measure_busy() if plan.busy else []
        starts = session.measure_starts(participants, context) if plan.start else [None] * len(sides)
        reports = [
            SideReport(side.about, p.size, [of_case[number] for of_case in results], memory[number], starts[number])
            for number, (side, p) in enumerate(zip(sides, participants, strict=True))
        ]
    measured = [found for of_case in session.limits.values() for found in of_case]
    limits = Limits.of(measured) if measured else None
    works = _works(plan, reports[0].results, session.limits, most["n"])
    return Report(manifest, reports, limits, works, busy, plan.iterations, session.restless)


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
        self.limits: dict[Case, list[Measured]] = {}

    @property
    def restless(self) -> list[str]:
        """Sides that did not leave the processor alone while another was timed."""
        workers = [*self._sides, *([self._meter] if self._meter else [])]
        return [worker.name for worker in workers if worker.restless]

    def measure_limits(self, case: Case) -> None:
        """Once a round: what a virtual machine may do changes from one second to the next."""
        if self._meter is not None:
            self.limits.setdefault(case, []).append(self._meter.ask("measure", seconds=_LIMIT_SECONDS))
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
        """With the settings that each side chooses now, so that it need not choose while it is timed."""
        self._progress("process start", 0)
        order: dict[str, Any] = {"kind": "prefill", "context": min(context, START_CONTEXT), "streams": 1}
        openers = [
            p.settled(side.ask("setup", **order)).start for p, side in zip(participants, self._sides, strict=True)
        ]
        return measure_starts(openers, vocab=self._vocab, context=context, iterations=self._plan.iterations)


def _works(
    plan: Plan, results: Sequence[Result], limits: Mapping[Case, Sequence[Measured]], step_tokens: int
) -> list[Work] | None:
    """How near this engine came to what the machine could do in the same rounds."""
    if not limits:
        return None
    forward, _ = graph(str(plan.folder), Stage.folded, Options())
    return [work(forward, r.case, r.time, Limits.of(limits[r.case]), step_tokens=step_tokens) for r in results]
