"""The memory in which a program finds how each row is sampled, and puts what was chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from .cpu.sync import COUNTS, FREQUENCY, PENALTIES, PRESENCE, REPETITION, STOPS
from .memory import allocate

Array = np.ndarray[Any, Any]

STEPS = 256  # at most in one native call
_BIASES = 1024  # tokens of a list that are in no text
_LANES = 16  # the rows of lists begin at vectors


class Penalties(Protocol):
    """What the text of one row makes of its logits; see `mlc.runtime.batch`."""

    @property
    def answered(self) -> int: ...  # tokens
    @property
    def numbers(self) -> tuple[float, float, float]: ...  # repetition, frequency, presence
    def listed(self) -> tuple[Array, Array, Array]: ...  # i32 ids, i32 counts, f32 biases


class SamplingState:
    """Arrays by the names that the program has for them (`memory`), written where a row is not what it was."""

    def __init__(self, *, max_sequences: int, max_context: int) -> None:
        room = self.room = -(-(max_context + _BIASES) // _LANES) * _LANES
        self.rules = allocate(16 * max_sequences).view(np.float32).reshape(-1, 4)
        self.draws = allocate(8 * (STEPS + 1) * max_sequences).view(np.float64)
        self.chosen = allocate(4 * max_sequences).view(np.int32)
        self.history = allocate(4 * STEPS * max_sequences).view(np.int32)
        self._stops = allocate(4 * STOPS * max_sequences).view(np.int32).reshape(-1, STOPS)
        self._stops[:] = -1
        self._penalties = allocate(4 * PENALTIES * max_sequences).view(np.float32).reshape(-1, PENALTIES)
        self._listed = allocate(4 * max_sequences).view(np.int32)
        lists = (allocate(4 * room * max_sequences).view(dtype).reshape(-1, room) for dtype in ("i4", "i4", "f4"))
        self._ids, self._counts, self._biases = lists
        self._stops_held: list[Collection[int]] = [()] * max_sequences  # what `_stops` holds
        self._lists_held: list[tuple[Penalties | None, int]] = [(None, 0)] * max_sequences  # and the lists, as of when
        self.memory: dict[tuple[str, str], Array] = {
            ("step", name): array
            for name, array in (
                ("rules", self.rules),
                ("draws", self.draws),
                ("chosen", self.chosen),
                ("history", self.history),
                ("stops", self._stops),
                ("penalties", self._penalties),
                ("listed", self._listed),
                ("ids", self._ids),
                ("counts", self._counts),
                ("biases", self._biases),
            )
        }

    def prepare(self, rules: Array, draws: Array) -> int:
        """Take `rules` [rows, 4] and `draws` [steps, rows]; returns whether anything is drawn."""
        self.rules[: len(rules)] = rules
        self.draws[: draws.size] = draws.reshape(-1)
        return int(rules[:, 0].any())

    def hold_stops(self, stops: Sequence[Collection[int]]) -> bool:
        """Take the `stops` of each row; False where they are more than the program looks at."""
        for row, (held, wanted) in enumerate(zip(self._stops_held, stops, strict=False)):
            if held is not wanted:
                if len(wanted) > STOPS:
                    return False
                self._stops[row, : len(wanted)] = list(wanted)
                self._stops[row, len(wanted) :] = -1
                self._stops_held[row] = wanted
        return True

    def hold_penalties(self, penalties: Sequence[Penalties | None]) -> int:
        """Take those of each row; returns whether there are any. What the program itself has counted is not taken
        again.
        """
        for row, wanted in enumerate(penalties):
            known = (wanted, wanted.answered if wanted is not None else 0)
            if self._lists_held[row] != known:
                self._list(row, wanted)
                self._lists_held[row] = known
        return int(any(one is not None for one in penalties))

    def counted(self, rows: int, steps: int) -> None:
        """The program has made so many steps: it counted their tokens."""
        for row in range(rows):
            wanted, answered = self._lists_held[row]
            if wanted is not None:
                self._lists_held[row] = wanted, answered + steps

    def _list(self, row: int, wanted: Penalties | None) -> None:
        numbers = self._penalties[row]
        if wanted is None:
            self._listed[row] = numbers[COUNTS] = 0
            return
        ids, counts, biases = wanted.listed()
        count = self._listed[row] = len(ids)
        self._ids[row, :count], self._counts[row, :count], self._biases[row, :count] = ids, counts, biases
        numbers[[REPETITION, FREQUENCY, PRESENCE]] = wanted.numbers
        numbers[COUNTS] = wanted.numbers != (1.0, 0.0, 0.0)
