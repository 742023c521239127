"""One step as the compiled model takes it: plain int32 arrays, one row per token, whatever sequence it belongs to."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .scheduler import Work
from .sequence import Int32s, Sequence

Logits = NDArray[np.float32]
Rules = NDArray[np.float32]
Draws = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Views into the builder's buffers, valid until the next build. n tokens of s sequences, r of them sample."""

    tokens: Int32s  # [n] ids
    positions: Int32s  # [n] in their sequence, from 0
    slots: Int32s  # [n] page * page_size + offset: where k, v of that token are written
    starts: Int32s  # [s+1] first row of each sequence, then n
    lengths: Int32s  # [s] tokens of context, those of this step included
    tables: Int32s  # [s, pages_per_sequence] page ids in the order of the text, unused entries 0
    rows: Int32s  # [r] rows whose logits are wanted, ascending: the last row of each sequence that samples
    steps: int = 1  # how many the tables have room for, if every sequence decodes

    def check(self, page_size: int, pages: int) -> None:
        """The laws a model relies on, checked one token at a time. Nothing here shares code with the builder."""
        assert len(self.starts) == len(self.lengths) + 1 == len(self.tables) + 1
        assert self.starts[0] == 0 and self.starts[-1] == len(self.tokens) == len(self.positions) == len(self.slots)
        written = set[int]()
        for s, length in enumerate(self.lengths.tolist()):
            first, last = int(self.starts[s]), int(self.starts[s + 1])
            assert 0 < last - first <= length, f"sequence {s} runs {last - first} tokens of {length}"
            used = -(-(length + self.steps - 1) // page_size)
            assert not self.tables[s, used:].any(), f"sequence {s}: unused entries of its table are not 0"
            for row in range(first, last):
                position = length - last + row
                slot = int(self.tables[s, position // page_size]) * page_size + position % page_size
                assert self.positions[row] == position, f"row {row} is at {self.positions[row]}, not {position}"
                assert self.slots[row] == slot, f"row {row} writes slot {self.slots[row]}, not {slot}"
                assert 0 <= slot < pages * page_size and slot not in written, f"slot {slot} is taken or does not exist"
                written.add(slot)
        ends = set((self.starts[1:] - 1).tolist())
        assert (np.diff(self.rows) > 0).all() and set(self.rows.tolist()) <= ends, "a row samples before its end"


class Penalties(Protocol):
    """What the text of one row makes of its logits, as `SamplingParams` defines it."""

    @property
    def answered(self) -> int: ...  # tokens of the answer; they are counted
    @property
    def numbers(self) -> tuple[float, float, float]: ...  # repetition, frequency and presence penalty
    def listed(self) -> tuple[Int32s, Int32s, Logits]:
        """Tokens, how often the answer holds each (0: the prompt alone does, -1: neither), and their biases."""
        ...


class Model(Protocol):
    """A compiled language model with its KV cache, as the engine drives it. One thread calls all but `interrupt`."""

    @property
    def vocab(self) -> int: ...  # tokens
    @property
    def page_size(self) -> int: ...  # tokens
    @property
    def pages(self) -> int: ...  # of the KV cache
    @property
    def max_tokens(self) -> int: ...  # in one step
    @property
    def max_sequences(self) -> int: ...  # in one step
    @property
    def max_context(self) -> int: ...  # tokens of one sequence; a page table has ceil(max_context / page_size) entries

    def run(self, batch: Batch) -> Logits:
        """Write k, v of every token to its slot, attend causally through the tables.

        Returns f32 [r, vocab], the logits of `batch.rows`: a view that is valid until the next run.
        """
        ...

    def sample(self, rules: Rules, draws: Draws, penalties: Seq[Penalties | None]) -> Int32s:
        """Choose a token for each row of the logits that `run` returned, as they are now. It may change them.

        `rules` [r, 4] hold 1 / temperature (0: the most probable token is taken), top_k (0: all), top_p (1: all) and
        min_p, as `SamplingParams` defines them; `draws` [r] a uniform number in [0, 1) for each row; `penalties` come
        first. A row depends on nothing but itself. In place of a token there is -1 where logits are NaN or
        infinite, and -2 where all of them are -infinity. Returns i32 [r], valid until the next call.
        """
        ...

    def decode(
        self,
        batch: Batch,
        rules: Rules,
        draws: Draws,
        stops: Seq[Collection[int]],
        penalties: Seq[Penalties | None],
    ) -> list[list[int]]:
        """As many steps as `draws` [at most batch.steps, r] has rows, each running the tokens that the last one chose.

        The tokens are those of `run` and `sample` step by step, each counted in `penalties`; returns them by row. It
        ends with the step in which a row gets a token of its `stops`, or none, or before. If there are several, every
        sequence of `batch` runs one token and samples.
        """
        ...

    def interrupt(self, wanted: bool) -> None:
        """`decode` makes one step more and no other, be it under way or called later, until `wanted` is False.

        Any thread may call it.
        """
        ...


class BatchBuilder:
    """Fills the same buffers at each step: a few copies per sequence, positions and slots for all rows at once. Where
    every sequence runs its last token, four numbers for each.
    """

    def __init__(self, *, page_size: int, max_tokens: int, max_sequences: int, pages_per_sequence: int) -> None:
        self._page_size = page_size
        self._tokens, self._positions, self._slots = self._three = np.zeros((3, max_tokens), np.int32)
        self._starts = np.zeros(max_sequences + 1, np.int32)
        self._lengths = np.zeros(max_sequences, np.int32)
        self._tables = np.zeros((max_sequences, pages_per_sequence), np.int32)
        self._used = [0] * max_sequences  # entries of each table that are not 0 for sure
        self._filled: list[tuple[Sequence | None, int, int]] = [(None, 0, 0)] * max_sequences  # from what it was
        self._rows = np.zeros(max_sequences, np.int32)
        self._ramp = np.arange(max(max_tokens, max_sequences) + 1, dtype=np.int32)

    def build(self, step: Seq[Work], steps: int = 1) -> Batch:
        """The arrays of `step`, its sequences in the order given, and of the pages that `steps` of them take."""
        for s, (sequence, tokens, _) in enumerate(step):
            used = -(-(sequence.cached + tokens + steps - 1) // self._page_size)
            if self._filled[s] != (source := (sequence, sequence.layout, used)):
                self._fill_table(s, sequence.pages[:used])
                self._filled[s] = source
        n = s = len(step)
        if all(work.samples and work.tokens == 1 for work in step):
            starts = rows = self._ramp
            self._place_last(step)
        else:
            starts, rows = self._starts, self._rows
            n, s = self._place(step)
        return Batch(
            tokens=self._tokens[:n],
            positions=self._positions[:n],
            slots=self._slots[:n],
            starts=starts[: len(step) + 1],
            lengths=self._lengths[: len(step)],
            tables=self._tables[: len(step)],
            rows=rows[:s],
            steps=steps,
        )

    def _fill_table(self, s: int, pages: Int32s) -> None:
        table, used = self._tables[s], len(pages)
        table[:used] = pages
        if used < self._used[s]:
            table[used : self._used[s]] = 0
        self._used[s] = used

    def _place_last(self, step: Seq[Work]) -> None:
        """Each sequence runs its last token."""
        size = self._page_size
        positions = [sequence.cached for sequence, _, _ in step]
        slots = [work.sequence.page(at // size) * size + at % size for work, at in zip(step, positions, strict=True)]
        self._three[:, : len(step)] = [work.sequence.last for work in step], positions, slots
        np.add(self._positions[: len(step)], 1, out=self._lengths[: len(step)])

    def _place(self, step: Seq[Work]) -> tuple[int, int]:
        """All rows of any step; returns how many there are, and how many of them sample."""
        starts, lengths, rows = [0], list[int](), list[int]()
        n, s = 0, len(step)
        for sequence, tokens, samples in step:
            cached = sequence.cached
            self._tokens[n : n + tokens] = sequence.tokens[cached : cached + tokens]
            n += tokens
            if samples:
                rows.append(n - 1)
            starts.append(n)
            lengths.append(cached + tokens)
        self._starts[: s + 1] = starts
        self._lengths[:s] = lengths
        self._rows[: len(rows)] = rows
        positions, slots = self._positions[:n], self._slots[:n]
        owner = np.repeat(self._ramp[:s], np.diff(self._starts[: s + 1]))
        np.add(self._ramp[:n], (self._lengths[:s] - self._starts[1 : s + 1])[owner], out=positions)
        page, offset = np.divmod(positions, self._page_size)
        np.multiply(self._tables[owner, page], self._page_size, out=slots)
        np.add(slots, offset, out=slots)
        return n, len(rows)
