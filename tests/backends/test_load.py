"""How many threads a step gets: the arithmetic on invented machines, and a real busy process beside this one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlc.backends import load
from mlc.backends.load import LoadPolicy, Sample, foreign_load, parse_stat, quota, read_sample, usable_cores

STAT = b"""cpu  1000 20 300 9000 70 5 6 40 11 12
cpu0 500 10 150 4500 35 2 3 20 0 0
cpu1 400 8 120 4600 30 2 2 15 0 0
cpu10 100 2 30 100 5 1 1 5 0 0
intr 270274 0 0
cpu1 not a line of a core any more
"""


@dataclass
class Machine:
    """A machine of some cores on which we always compute with the threads the policy says, and others take `foreign`
    cores, given how many threads we run.
    """

    cores: int = 2
    foreign: float = 0.0
    stolen: float = 0.0  # cores that the hypervisor takes whenever we want them all
    now: float = 100.0
    working: bool = True
    blind: bool = False
    own: float = 0.0
    busy: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.busy = dict.fromkeys(range(self.cores), 5.0)
        self.policy = LoadPolicy(self.cores, clock=lambda: self.now, sample=self.sample)

    def sample(self) -> Sample | None:
        return None if self.blind else Sample(self.now, self.own, dict(self.busy))

    def run(self, seconds: float, step: float = 0.02) -> list[int]:
        """The number of threads of every step in that time."""
        chosen = []
        end = self.now + seconds
        while self.now < end - 1e-9:
            threads = self.policy.threads() if self.working else 0
            chosen.append(threads)
            others = self.foreign + (self.stolen if threads == self.cores else 0.0)
            ours = min(threads, self.cores - others * threads / (threads + others)) if threads else 0.0
            others = min(others, self.cores - ours)
            self.now += step
            self.own += ours * step
            for core in self.busy:
                self.busy[core] += (ours + others) * step / self.cores
            if self.working:
                self.policy.ended()
        return chosen


def test_a_free_machine_gives_all_cores() -> None:
    assert set(Machine().run(5)) == {2} and set(Machine(cores=16).run(5)) == {16}


def test_a_busy_process_costs_one_thread_within_half_a_second_and_for_as_long_as_it_runs() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign = 1.0
    chosen = machine.run(10)
    assert set(chosen[25:]) == {1}
    machine.foreign = 0.0
    assert set(machine.run(2)[50:]) == {2}, "and the thread comes back within a second"


def test_other_cores_stay_in_use() -> None:
    assert set(Machine(cores=16, foreign=3.0).run(5)[50:]) == {13}


def test_one_thread_is_left_whatever_others_do() -> None:
    assert set(Machine(foreign=20.0).run(5)[50:]) == {1}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_load_between_the_thresholds_changes_nothing(threads: int) -> None:
    machine = Machine(foreign=1.0 if threads == 1 else 0.0)
    machine.run(1)
    machine.foreign = 0.28 if threads == 1 else 0.3
    assert set(machine.run(10)) == {threads}


def test_a_core_that_is_stolen_whenever_it_is_used_is_tried_ever_more_rarely() -> None:
    machine = Machine(stolen=0.8)
    chosen = machine.run(60)
    assert chosen[:1500].count(2) > chosen[1500:].count(2) > 0
    assert chosen[1500:].count(2) < 0.1 * 1500
    machine.stolen = 0.0
    machine.run(9)
    assert set(machine.run(5)) == {2}


def test_time_without_work_says_nothing_about_now() -> None:
    machine = Machine(foreign=1.0)
    machine.run(1)
    machine.working, machine.foreign = False, 0.0
    machine.run(60)
    machine.working, machine.foreign = True, 1.0
    assert set(machine.run(2)) == {1}, "the idle minute was not free cores"


def test_long_steps_are_not_taken_for_idle_time() -> None:
    machine = Machine(foreign=1.0)
    assert machine.run(12, step=3.0)[2:] == [1, 1]


def test_a_system_that_tells_nothing_keeps_all_threads() -> None:
    assert set(Machine(blind=True, foreign=2.0).run(2)) == {2}


def test_a_core_that_goes_offline_is_not_counted() -> None:
    machine = Machine(cores=4)
    machine.run(1)
    del machine.busy[3]
    assert set(machine.run(2)[25:]) == {3}


def test_looks_are_rare() -> None:
    machine = Machine()
    looks = 0

    def count() -> Sample | None:
        nonlocal looks
        looks += 1
        return machine.sample()

    machine.policy = LoadPolicy(2, clock=lambda: machine.now, sample=count)
    machine.run(10, step=0.001)
    assert looks <= 102


def test_the_counters_of_our_cores_are_read() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    busy = parse_stat(STAT, {1, 10, 11})
    assert busy == {1: pytest.approx(547 * tick), 10: pytest.approx(139 * tick)}


@pytest.mark.parametrize("text", [b"cpu0 1 2\n", b"cpux 1 2 3 4 5 6 7 8\n", b"cpu0 a b c d e f g h\n"])
def test_counters_of_another_form_are_refused(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_stat(text, {0})
    (tmp_path / "stat").write_bytes(text)
    assert read_sample(str(tmp_path / "stat")) is None


def test_missing_empty_and_old_counters_are_no_error(tmp_path: Path) -> None:
    assert read_sample(str(tmp_path / "stat")) is None
    (tmp_path / "stat").write_bytes(b"")
    assert read_sample(str(tmp_path / "stat")) is None
    assert set(parse_stat(b"cpu0 1 2 3 4 5 6 7\n", {0})) == {0}, "without steal"


def test_counters_that_run_backwards_are_no_load() -> None:
    old, new = Sample(1.0, 0.0, {0: 9.0, 1: 1.0}), Sample(2.0, 0.0, {0: 3.0, 1: 1.5})
    assert foreign_load(old, new) == 0.5
    assert foreign_load(old, old) == 0.0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "half\n"}, math.inf),
        ({"sys/fs/cgroup/cpu.max": "1 0\n"}, math.inf),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n1:cpuset:/\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
    ],
)
def test_the_quota_of_the_cgroups(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == cores


@pytest.mark.parametrize(("share", "cores"), [(0.5, 1), (2.9, 2), (math.inf, 3)])
def test_usable_cores_are_whole_and_at_least_one(share: float, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "quota", lambda: share)
    monkeypatch.setattr(load, "allowed_cores", lambda: {0, 4, 7})
    assert usable_cores() == cores


@pytest.fixture
def hogs() -> Iterator[None]:
    """Processes that keep every core busy."""
    count = len(os.sched_getaffinity(0))
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what others take")
def test_a_real_busy_machine_leaves_one_thread(hogs: None) -> None:
    policy = LoadPolicy(len(os.sched_getaffinity(0)))
    deadline = time.monotonic() + 30
    while policy.threads() > 1 and time.monotonic() < deadline:
        sum(range(100_000))  # our own work is not foreign
        policy.ended()
    assert policy.threads() == 1
