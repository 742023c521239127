"""The child side of a benchmark: a loop that reads orders from stdin and answers on stdout, a line of JSON each.

    PYTHON serve.py PEER        serves the class `Peer` of the file PEER.py beside this one

It runs in whatever interpreter has the peer, so it needs the standard library alone. Between two orders it is blocked
on a pipe. The first line it writes, unasked, says who it is. Orders are `{"do": NAME, ...}`, answers `{"ok": ...}` or
`{"error": TEXT}`:

    open     model, threads, options   load the model; answers what the peer tells about itself
    setup    kind, context, streams    make ready for prefill or decode (`kind`) of that many sequences of that many
                                       tokens each; answers its settings
    prefill  prompt                    forget everything, read token ids, choose the next token; answers a span
    fill     prompts                   read a prompt for each sequence, untimed
    decode   tokens                    after what `fill` read, write that many tokens to each sequence, all in one
                                       batch, greedily; answers a span. Repeatable.
    memory                             answers bytes: resident, peak
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
import time
import types
from collections.abc import Sequence
from typing import Any

PR_SET_PDEATHSIG, SIGKILL = 1, 9
TIMED = ("prefill", "decode")


class Span:
    """Times a block: seconds of the clock, seconds of CPU this process took, and the share others took of the machine.

    `expected` processes (ids) are not counted among the others.
    """

    def __init__(self, expected: Sequence[int] = ()) -> None:
        self.expected = expected

    def __enter__(self) -> Span:
        self._cpu, self._busy, self._known = time.process_time(), busy_seconds(), self._expected_cpu()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        self.cpu = time.process_time() - self._cpu
        others = busy_seconds() - self._busy - self.cpu - (self._expected_cpu() - self._known)
        self.foreign = max(0.0, others / (max(self.seconds, 1e-9) * cores()))

    def _expected_cpu(self) -> float:
        return sum(cpu_seconds(pid) for pid in self.expected)

    def as_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu": self.cpu, "foreign": self.foreign}


def busy_seconds() -> float:
    """Seconds that all cores have worked since the machine started, time stolen by its host included."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(ticks[:3]) + sum(ticks[5:])) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has taken; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def cores() -> int:
    """Cores of the machine, whoever may use them."""
    return os.sysconf("SC_NPROCESSORS_ONLN")


def memory() -> dict[str, int]:
    """Bytes of this process in memory now and at most."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return {name: 1024 * int(lines[key].split()[0]) for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))}


def serve(peer: Any) -> None:
    """Answer orders until stdin ends. `peer` has `about()` and the methods named above; `expected` may be in any order.

    What a library prints goes to stderr, so that it cannot spoil the answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _die_with_parent()

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({"ok": peer.about()})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer({"ok": _obey(peer, order.pop("do"), order)})
        except Exception as error:  # whatever a library raises: the parent tells it
            answer({"error": f"{type(error).__name__}: {error}"})


def _obey(peer: Any, what: str, order: dict[str, Any]) -> Any:
    if what == "memory":
        return memory()
    span = Span(order.pop("expected", ()))
    method = getattr(peer, what)
    if what not in TIMED:
        return method(**order)
    method(span, **order)
    return span.as_dict()


def _die_with_parent() -> None:
    """A native call cannot see that stdin has ended; the system ends this process with the one that started it."""
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)


def load(name: str) -> Any:
    """The peer of the file NAME.py beside this one, imported as `peers.NAME`: a library may have the same name as a
    file here, and must be found all the same.
    """
    folder = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != folder]
    package = sys.modules["peers"] = types.ModuleType("peers")
    package.__path__ = [folder]
    return importlib.import_module(f"peers.{name}").Peer()


def _main() -> None:
    try:
        peer = load(sys.argv[1])
    except ImportError as error:
        print(json.dumps({"error": f"{error}", "missing": True}), flush=True)
        return
    serve(peer)


if __name__ == "__main__":
    _main()
