"""bench --profile: the step that is looked at is the one that was asked for, and all of it."""

from __future__ import annotations

import json
import mmap
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc.backends.module import Artifact, LanguageModel
from mlc.backends.tvm.limits import Limits as Meter
from mlc.cli import bench_overhead, bench_profile
from mlc.cli.bench_overhead import measure_overhead, sampling_params
from mlc.cli.bench_profile import Subject, time_calls
from mlc.errors import BadConfig, InvalidRequest
from mlc.runtime.detokenize import StreamDecoder
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.tokenizer import Tokenizer
from mlc.tools.limits import Limits

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


def test_a_profile_reads_keys_and_values_from_memory_of_their_own(tiny: Path) -> None:
    """Memory that was never written is one page of zeros, which a cache holds."""
    model = LanguageModel(Artifact(tiny), max_context=1024, kv_tokens=1024)
    time_calls(model, Subject(1000))
    places = [(pages.ctypes.data, pages.size) for pages in model.kv_memory]
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        for start, size in places:
            pagemap.seek(start // mmap.PAGESIZE * 8)
            entries = np.fromfile(pagemap, np.uint64, size // mmap.PAGESIZE)
            assert (entries >> np.uint64(63)).all(), "present"
            exclusive = (entries >> np.uint64(56)) & np.uint64(1)
            assert exclusive.all(), "a page that others map too"


def test_limits_are_measured_between_the_steps_they_are_held_against(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, done = LanguageModel(Artifact(tiny), max_context=64, kv_tokens=64), list[str]()
    step, flat, rates = model.executor.step, model.executor.step_flat, iter([1.0, 2.0, 9.0] * 100)

    class Machine(Meter):
        def __init__(self) -> None: ...

        def measure(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            done.append("limits")
            return dict.fromkeys(("read", "bytes", "nibbles", "floats"), next(rates))

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def noting(*args: Any) -> None:
            done.append(name)
            call(*args)

        return noting

    monkeypatch.setattr(bench_profile, "_ROUNDS", 6)
    monkeypatch.setattr(bench_profile, "_WARM", 0.0)
    monkeypatch.setattr(model.executor, "step", noted("step", step))
    monkeypatch.setattr(model.executor, "step_flat", noted("calls", flat))
    times = time_calls(model, Subject(10), Machine())
    assert done == ["limits", "step", "step", "calls"] * 6
    assert times.limits == Limits(2.0, 2.0, 2.0, 2.0)
    done.clear()
    assert time_calls(model, Subject(0, rows=20)).limits is None
    assert done == ["step", *["step", "calls"] * 6], "what reads a prompt is long enough to fill the caches by itself"


def test_cached_keys_and_values_are_one_page_of_each_sequence(tiny: Path) -> None:
    subject = Subject(200, streams=2, cached_kv=True)
    model = LanguageModel(Artifact(tiny), max_context=256, kv_tokens=1024)
    times = time_calls(model, subject)
    used = model.executor._memory["step", "tables"].reshape(-1, 256 // model.page_size)[
        :2, : -(-201 // model.page_size)
    ]
    assert (used == used[:, :1]).all() and used[0, 0] != used[1, 0]
    assert len(times.calls) == len(time_calls(model, Subject(200, streams=2)).calls), "the same calls"


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


PAUSE = 0.02  # seconds


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 3])
def test_what_is_slow_is_charged_to_where_it_is(tiny: Path, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause in the text of each token, in the graph's calls, and in those that choose tokens."""
    monkeypatch.setattr(bench_overhead, "ANSWER", 12)
    monkeypatch.setattr(bench_overhead, "_SECONDS", 0.0)
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", PAUSE / 2)
    artifact, tokenizer = Artifact(tiny, threads=1), Tokenizer.open(tiny)

    def measured(
        graph: float = 0.0, sampling: float = 0.0, text: float = 0.0, logprobs: int | None = None
    ) -> tuple[float, float, float]:
        model = LanguageModel(artifact, max_context=200, kv_tokens=1024)
        native, push = model.executor.native, StreamDecoder.push

        def slow(*arguments: Any) -> None:
            first, last = arguments[:2]
            chooses = last > max(first, model.program.forward)
            time.sleep((graph if first == 0 else 0.0) + (sampling if chooses else 0.0))
            native(*arguments)

        def slow_push(decoder: StreamDecoder, ids: Sequence[int]) -> str:
            time.sleep(text * len(ids))
            return push(decoder, ids)

        model.executor.native = slow
        with monkeypatch.context() as patch:
            patch.setattr(StreamDecoder, "push", slow_push)
            params = SamplingParams(temperature=0.0, logprobs=logprobs)
            found = measure_overhead(model, tokenizer, params, depth=20, streams=streams)
        assert found.share == pytest.approx((found.sampling + found.rest) / found.step)
        return found.step, found.sampling, found.rest

    step, sampling, rest = measured(text=PAUSE)
    assert rest >= streams * PAUSE > sampling and step >= rest
    # one step a call, because a step takes longer than a call may
    step, sampling, rest = measured(graph=PAUSE)
    assert step >= PAUSE > sampling + rest
    for logprobs in (None, 0):  # in one native call with the graph, and in one of its own
        step, sampling, rest = measured(sampling=PAUSE, logprobs=logprobs)
        assert step >= sampling >= PAUSE > rest


@pytest.mark.slow
def test_the_share_of_sampling_and_python_is_told(cli: Mlc, tiny: Path) -> None:
    options = ("--profile", "--depth", "30", "--no-limits", "--streams", "2")
    engine = told(cli("bench", "-m", tiny, *options, "--json", "--sampling", "top_p=0.9"))["engine"]
    assert engine["sampling"]["top_p"] == 0.9 and engine["sampling"]["temperature"] == 1.0
    assert 0 < engine["sampling_seconds"] < engine["step_seconds"] and 0 < engine["share"] < 1
    assert "of which choosing tokens takes" in cli("bench", "-m", tiny, *options).stdout
    reading = cli("bench", "-m", tiny, "--profile", "--prompt-len", "32", "--sampling", "top_p=0.9")
    assert "give --depth without --prompt-len" in reading.stderr
    assert "--sampling belongs to --profile" in cli("bench", "-m", tiny, "--sampling", "top_p=0.9").stderr
    assert "--cached-kv belongs to --profile" in cli("bench", "-m", tiny, "--cached-kv").stderr
    wrong = cli("bench", "-m", tiny, "--profile", "--prompt-len", "8", "--cached-kv")
    assert "--cached-kv is of steps that write" in wrong.stderr


def test_sampling_options_are_checked() -> None:
    assert sampling_params([]).greedy
    found = sampling_params(["temperature=0.5", "top_k=3", "stop=END"])
    assert (found.temperature, found.top_k, found.stop) == (0.5, 3, ("END",))
    for wrong in ("top_q=3", "top_p", "max_tokens=3"):
        with pytest.raises(BadConfig, match=f"'{wrong}' is not NAME=VALUE"):
            sampling_params([wrong])
    with pytest.raises(InvalidRequest, match="top_p is 2"):
        sampling_params(["top_p=2"])
