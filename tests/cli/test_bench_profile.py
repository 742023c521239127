"""bench --profile: the step that is looked at is the one that was asked for, and all of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc.cli.bench_profile import Subject

Mlc = Callable[..., subprocess.CompletedProcess[str]]


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a command with --json printed."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "subject", [Subject(0), Subject(64), Subject(15, streams=3), Subject(0, rows=40), Subject(33, rows=31)]
)
def test_the_step_keeps_the_laws_of_a_batch(subject: Subject) -> None:
    batch = subject.batch(16, 99)
    batch.check(16, pages=subject.streams * -(-subject.context // 16))
    assert len(batch.tokens) == subject.rows * subject.streams and len(batch.rows) == subject.streams
    assert set(batch.lengths.tolist()) == {subject.depth + subject.rows}


@pytest.mark.slow
def test_a_profile_accounts_for_every_call_of_a_step(cli: Mlc, tiny: Path) -> None:
    profile = told(cli("bench", "-m", tiny, "--profile", "--depth", "64", "--json", "--no-limits"))
    stats = json.loads(cli("show", tiny, "--stats", "--context", "65", "--json").stdout)
    assert {op["op"] for op in profile["ops"]} == {op["op"] for op in stats["ops"]} | {"sample"}
    assert sum(op["bytes"] for op in profile["ops"]) == sum(
        op[kind] for op in stats["ops"] for kind in ("weights", "activations", "cache")
    )
    assert all(op["seconds"] > 0 for op in profile["ops"])
    assert profile["calls_seconds"] == pytest.approx(sum(op["seconds"] for op in profile["ops"]))
    assert profile["limits"] is None and profile["step_seconds"] > 0


@pytest.mark.slow
def test_streams_and_prompts_have_profiles_too(cli: Mlc, tiny: Path) -> None:
    def products(*options: str) -> dict[str, float]:
        """Operations by weight."""
        profile = told(cli("bench", "-m", tiny, "--profile", *options, "--json", "--no-limits"))
        return {op["reads"]: op["operations"] for op in profile["ops"] if op["op"] == "linear"}

    one = products("--depth", "8")
    head = next(reads for reads in one if "1536" in reads)
    assert products("--depth", "8", "--streams", "3") == {reads: 3 * count for reads, count in one.items()}
    read = {reads: 32 * count for reads, count in one.items()} | {head: one[head]}
    assert products("--prompt-len", "32") == read, "one row samples"
    wrong = cli("bench", "-m", tiny, "--profile", "--prompt-len", "600")
    assert "--prompt-len 600 is more than one step of this model takes: 512" in wrong.stderr
    assert "needs 2001 tokens of context" in cli("bench", "-m", tiny, "--profile", "--depth", "2000").stderr
    assert "at least one token" in cli("bench", "-m", tiny, "--profile", "--prompt-len", "0").stderr


@pytest.mark.slow
def test_each_op_is_held_against_the_limit_it_meets_first(cli: Mlc, tiny: Path) -> None:
    profile = told(cli("bench", "-m", tiny, "--profile", "--json"))
    assert {op["binds"] for op in profile["ops"]} <= {"read", "floats"}, "the weights of this model are floats"
    assert all(op["least_seconds"] > 0 for op in profile["ops"] if op["op"] != "sample")
    shown = cli("bench", "-m", tiny, "--profile", "--prompt-len", "64").stdout
    assert "reading 64 tokens after 0" in shown and "at the limits of this machine:" in shown and "of it" in shown
