"""What `mlc bench` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlc.backends.artifact import Manifest
from mlc.tools.bench import FOREIGN_LIMIT, Result, Start
from mlc.tools.limits import Limits, Work
from mlc.tools.machine import machine
from mlc.tools.plot import Chart

from . import output


@dataclass(frozen=True, slots=True)
class SideReport:
    """What is known of one side."""

    about: Mapping[str, Any]
    file_bytes: int
    results: Sequence[Result]
    memory: Mapping[str, int]  # bytes, after all cases
    start: Start | None

    @property
    def name(self) -> str:
        return str(self.about["name"])

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.about,
            "file_bytes": self.file_bytes,
            "memory": dict(self.memory),
            "start": self.start and self.start.as_dict(),
            "results": [result.as_dict() for result in self.results],
        }


@dataclass(frozen=True, slots=True)
class Busy:
    """A decode case beside a process that holds a core."""

    alone: Result  # one thread of this engine, without that process
    loaded: Sequence[Result]  # all threads of each side, with it

    def as_dict(self) -> dict[str, Any]:
        return {"one_thread_alone": self.alone.as_dict(), "loaded": [result.as_dict() for result in self.loaded]}


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run; `sides` begins with this engine."""

    manifest: Manifest
    sides: Sequence[SideReport]
    limits: Limits | None
    works: Sequence[Work] | None  # of this engine, one for each case, where limits were measured
    busy: Sequence[Busy]
    iterations: int
    restless: Sequence[str]  # processes that took the processor while another was timed

    @property
    def threads(self) -> int:
        return int(self.sides[0].about["threads"])

    def as_dict(self) -> dict[str, Any]:
        ours, *others = (side.as_dict() for side in self.sides)
        for result, work in zip(ours["results"], self.works or (), strict=False):
            result["limit"] = work.as_dict()
        return {
            "model": self.manifest.name,
            "quantization": self.manifest.quantization,
            "parameters": self.manifest.parameters,
            "target": self.manifest.target.name,
            "created_by": self.manifest.created_by,
            "iterations": self.iterations,
            "machine": machine(self.threads).as_dict(),
            "limits": self.limits and self.limits.as_dict(),
            "restless": list(self.restless),
            **ours,
            "vs": others[0] if others else None,
            "ratios": [a.rate / b.rate for a, b in zip(*(s.results for s in self.sides), strict=True)]
            if others
            else None,
            "busy": [row.as_dict() for row in self.busy],
        }

    def charts(self) -> list[Chart]:
        """Rates by the length of a prompt, by depth, and by streams, of each side; those with more than one point, or
        all where there is no such.
        """
        charts = [
            self._chart("Reading a prompt", "tokens of the prompt", "prefill", "prompt"),
            self._chart("Writing, one stream", "tokens of context", "decode", "prompt", streams=1),
            self._chart("Writing, all streams together", "streams", "decode", "streams"),
        ]
        filled = [chart for chart in charts if any(chart.series.values())]
        return [chart for chart in filled if max(map(len, chart.series.values())) > 1] or filled

    def _chart(self, title: str, x: str, kind: str, by: str, **fixed: int) -> Chart:
        """The first rate for each value of `by`."""
        series: dict[str, list[tuple[float, float]]] = {}
        for side in self.sides:
            points: dict[float, float] = {}
            for r in side.results:
                if r.case.kind == kind and all(getattr(r.case, name) == value for name, value in fixed.items()):
                    points.setdefault(getattr(r.case, by), r.rate)
            series[side.name] = sorted(points.items())
        return Chart(title, x, "tokens per second", series)


def show(report: Report, *, json: bool) -> None:
    for name in report.restless:
        output.note(f"warning: {name} kept using the processor while others were timed")
    if json:
        output.print_json(report.as_dict())
        return
    manifest = report.manifest
    print("Benchmark Results\n=================")
    print(f"Model: {manifest.name} ({manifest.quantization}, {manifest.target.name}, {report.threads} threads)")
    print(f"Iterations: {report.iterations}")
    if len(report.sides) > 1:
        _show_compared(report)
    elif report.sides[0].results:
        _show_alone(report)
    _show_costs(report)
    if report.busy:
        _show_busy(report)
    if report.limits is not None:
        print(report.limits.describe())
    if any(result.disturbed for side in report.sides for result in side.results):
        print(f"* other programs took more than {100 * FOREIGN_LIMIT:.0f} % of the machine meanwhile")


def _show_alone(report: Report) -> None:
    table = output.table("Test", "T/s >", "Latency >", *_limit_column(report), boxed=True)
    for r, limit in zip(report.sides[0].results, _limit_cells(report), strict=True):
        unit = "TTFT" if r.case.kind == "prefill" else "TPOT"
        rate = f"{r.mean:.1f} ± {r.deviation:.1f}{_mark(r)}"
        table.add_row(r.case.label, rate, f"{r.latency:.2f} ms {unit}", *limit)
    output.print_table(table)


def _show_compared(report: Report) -> None:
    ours, theirs = report.sides
    settings = ", ".join(f"{name} {value}" for r in theirs.results[-1:] for name, value in r.settings.items())
    print(f"Against: {theirs.name} ({theirs.about['version']}; {settings})")
    names = (f"{ours.name} >", f"{theirs.name} >")
    if not ours.results:
        return
    table = output.table("Test, tokens/s", *names, *_ratio_column(report), *_limit_column(report), boxed=True)
    for a, b, limit in zip(ours.results, theirs.results, _limit_cells(report), strict=True):
        table.add_row(a.case.label, _rates(a), _rates(b), f"{a.rate / b.rate:.2f}x", *limit)
    output.print_table(table)


def _show_costs(report: Report) -> None:
    """What is better the less it is."""
    table = output.table("Cost", *(f"{side.name} >" for side in report.sides), *_ratio_column(report), boxed=True)
    rows: list[tuple[str, list[float], Callable[[float], str]]] = []
    if starts := [side.start for side in report.sides if side.start]:
        rows.append(("Process start to first token", [s.first_token_seconds for s in starts], "{:.2f} s".format))
        rows.append(("Memory after the first token", [s.resident for s in starts], output.size))
        rows.append(("Memory at most until then", [s.peak for s in starts], output.size))
    rows.append(("Memory at most in all tests", [side.memory["peak"] for side in report.sides], output.size))
    rows.append(("Size on disk", [side.file_bytes for side in report.sides], output.size))
    for label, values, shown in rows:
        ratio = [f"{values[0] / values[1]:.2f}x"] if len(values) > 1 else []
        table.add_row(label, *map(shown, values), *ratio)
    output.print_table(table)


def _show_busy(report: Report) -> None:
    print("While another process holds a core:")
    names = [side.name for side in report.sides]
    title = f"{names[0]}, 1 thread, machine idle >"
    table = output.table("Test, tokens/s", title, *(f"{name} >" for name in names), "of 1 thread >", boxed=True)
    for row in report.busy:
        share = f"{100 * row.loaded[0].rate / row.alone.rate:.0f} %"
        table.add_row(row.alone.case.label, _rates(row.alone), *map(_rates, row.loaded), share)
    output.print_table(table)


def _ratio_column(report: Report) -> list[str]:
    return ["ratio >"] if len(report.sides) > 1 else []


def _limit_column(report: Report) -> list[str]:
    return ["of the limit >"] if report.works is not None else []


def _limit_cells(report: Report) -> Iterator[list[str]]:
    """What goes into that column, for each case."""
    if report.works is None:
        yield from ([] for _ in report.sides[0].results)
        return
    for work in report.works:
        unit = "GB/s" if work.binds == "read" else "Gop/s"
        yield [f"{work.rate / 1e9:.1f} {unit}, {100 * work.share:.0f} %"]


def _rates(result: Result) -> str:
    """Median, least and most."""
    return f"{result.rate:.1f} ({min(result.rates):.1f}-{max(result.rates):.1f}){_mark(result)}"


def _mark(result: Result) -> str:
    return " *" if result.disturbed else ""
