"""What `mlc bench` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlc.backends.artifact import Manifest
from mlc.tools.bench import FOREIGN_LIMIT, Result, Start
from mlc.tools.machine import machine

from . import output


@dataclass(frozen=True, slots=True)
class SideReport:
    """What is known of one side."""

    about: Mapping[str, Any]
    file_bytes: int
    results: Sequence[Result]
    memory: Mapping[str, int]  # bytes, after all cases
    start: Start | None = None

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
class Report:
    """A whole run; `sides` begins with this engine."""

    manifest: Manifest
    sides: Sequence[SideReport]
    notes: Sequence[str] = field(default_factory=tuple[str, ...])

    @property
    def threads(self) -> int:
        return int(self.sides[0].about["threads"])

    def as_dict(self) -> dict[str, Any]:
        ours, *others = (side.as_dict() for side in self.sides)
        result = {
            "model": self.manifest.name,
            "quantization": self.manifest.quantization,
            "parameters": self.manifest.parameters,
            "target": self.manifest.target.name,
            "created_by": self.manifest.created_by,
            "threads": self.threads,
            "machine": machine(self.threads).as_dict(),
            **ours,
            "notes": list(self.notes),
        }
        if others:
            result["vs"] = others[0]
            result["ratios"] = [a.rate / b.rate for a, b in zip(*(s.results for s in self.sides), strict=True)]
        return result


def show(report: Report, *, json: bool) -> None:
    for note in report.notes:
        output.note(note)
    if json:
        output.print_json(report.as_dict())
        return
    manifest = report.manifest
    print("Benchmark Results\n=================")
    print(f"Model: {manifest.name} ({manifest.quantization}, {manifest.target.name}, {report.threads} threads)")
    print(f"Iterations: {len(report.sides[0].results[0].seconds)}")
    if len(report.sides) == 1:
        _show_alone(report.sides[0])
    else:
        _show_compared(*report.sides)
    if any(result.disturbed for side in report.sides for result in side.results):
        print(f"* other programs took more than {100 * FOREIGN_LIMIT:.0f} % of the machine meanwhile")


def _show_alone(side: SideReport) -> None:
    table = output.table("Test", "T/s >", "Latency >", boxed=True)
    for r in side.results:
        unit = "TTFT" if r.case.kind == "prefill" else "TPOT"
        table.add_row(r.case.label, f"{r.mean:.1f} ± {r.deviation:.1f}{_mark(r)}", f"{r.latency:.2f} ms {unit}")
    output.print_table(table)


def _show_compared(ours: SideReport, theirs: SideReport) -> None:
    settings = {name: value for name, value in theirs.results[-1].settings.items()}
    print(f"Against: {theirs.name} ({theirs.about['version']}; {', '.join(f'{k} {v}' for k, v in settings.items())})")
    table = output.table("Test", f"{ours.name} >", f"{theirs.name} >", "ratio >", boxed=True)
    for a, b in zip(ours.results, theirs.results, strict=True):
        table.add_row(a.case.label, _rates(a), _rates(b), f"{a.rate / b.rate:.2f}x")
    rows: list[tuple[str, float, float, str]] = []
    if ours.start and theirs.start:
        for label, name, unit in (
            ("Start to first token", "first_token_seconds", "s"),
            ("Memory after the first token", "resident", "B"),
            ("Memory at most until then", "peak", "B"),
        ):
            rows.append((label, getattr(ours.start, name), getattr(theirs.start, name), unit))
    rows.append(("Memory at most in all tests", ours.memory["peak"], theirs.memory["peak"], "B"))
    rows.append(("Size on disk", ours.file_bytes, theirs.file_bytes, "B"))
    for label, x, y, unit in rows:
        shown = [output.size(v) if unit == "B" else f"{v:.2f} s" for v in (x, y)]
        table.add_row(label, *shown, f"{x / y:.2f}x")
    output.print_table(table)


def _rates(result: Result) -> str:
    """Median, least and most."""
    return f"{result.rate:.1f} ({min(result.rates):.1f}-{max(result.rates):.1f}){_mark(result)}"


def _mark(result: Result) -> str:
    return " *" if result.disturbed else ""
