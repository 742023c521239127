"""The step program with more threads than cores, and with a number of them that changes from step to step."""

from __future__ import annotations

import os
import subprocess
import sys

COUNTS = [1, 2, 3, 4, 8, 16, 64]
PROGRAM = """
import hashlib, sys
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from mlc.backends.module import open_module

def ints(*values):
    return np.array(values, np.int32)

def digest(model):
    "Of the logits of a prompt and of some single tokens after it."
    count, pages = 70, np.arange(4, dtype=np.int32)[None]
    found = hashlib.sha256()
    for start, stop in [(0, count), *((i, i + 1) for i in range(count, count + 4))]:
        at = np.arange(start, stop, dtype=np.int32)
        rows = ints(0, stop - start - 1)[-min(2, stop - start):]
        step = dict(tokens=at * 37 % 211, positions=at, slots=at, starts=ints(0, stop - start), lengths=ints(stop))
        found.update(model.run(SimpleNamespace(**step, tables=pages, rows=rows)).tobytes())
    return found.hexdigest()

class Changing:
    "Stands in for the load of the machine."
    def __init__(self, counts):
        self.counts = cycle(counts)
    def threads(self):
        return next(self.counts)
    def ended(self):
        pass

folder, counts = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
model = open_module(folder, threads=max(counts))  # first, so that the pool has room for all
for count in counts:
    model = open_module(folder, threads=count)
    print(count, model.executor.threads_now(), digest(model))
model = open_module(folder, threads=max(counts))
model.executor._load = Changing([2, 1, 3, max(counts)])
print("changing", 0, digest(model))
"""


def test_one_to_64_threads_and_a_changing_number_give_the_same_bits(checkpoint, compiled):
    """In a process of its own: a pool never grows, and the other tests made theirs small."""
    folder = compiled(checkpoint("qwen3").folder)
    command = [sys.executable, "-c", PROGRAM, str(folder), *map(str, COUNTS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TVM_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [*map(str, COUNTS), "changing"]
    assert [int(line[1]) for line in lines[:-1]] == COUNTS, "each ran with as many threads as it was told"
    assert len({line[2] for line in lines}) == 1
