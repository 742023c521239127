"""What each row of a step attends to, cut into work: the tables that the attention kernels read (see `cpu.attention`).

However the work is cut, the bits of a row are the same, so the cut is free to follow the machine: the context of a long
sequence is split where there would be too few items for the threads, and what several sequences have in common is read
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from .memory import allocate

Array = np.ndarray[Any, Any]

OPEN = np.iinfo(np.int32).max  # where a tile of one row ends that reads all tokens up to its own
ITEMS = 8  # items that each thread should get at least, so that one that lost its core delays the others little
PARTIALS = 4096  # of all rows of a step together, unless one row alone has more


class Rows(Protocol):
    """What the plan reads of a step, int32; see `mlc.runtime.batch.Batch`."""

    @property
    def positions(self) -> Array: ...  # [n]
    @property
    def starts(self) -> Array: ...  # [s+1]
    @property
    def tables(self) -> Array: ...  # [s, pages of a sequence]


class AttentionPlan:
    """Memory for the tables of one step, filled by `fill`. int32 all of them.

    Where every sequence runs one row, the tables hold for the steps that follow as well, up to `steps` in all: then
    only the positions of members change.

    members       [rows, 3] = (row, its position, number of its partial for span 0); those that are merged come first
    tiles         [any, 7] = (sequence, first member, members, lowest position, begin, end, split), of up to `tile_rows`
                  members
    single_tiles  the same of one member, which has the lowest position; those that end with it are OPEN
    """

    def __init__(
        self,
        *,
        page: int,
        span: int,
        tile_rows: int,
        kv_heads: int,
        max_tokens: int,
        max_sequences: int,
        max_context: int,
        threads: int,
        steps: int = 1,
    ) -> None:
        """`span` tokens give one partial, a multiple of `page`."""
        self.page, self.span, self.tile_rows, self.kv_heads, self.threads = page, span, tile_rows, kv_heads, threads
        self._later = -(-(steps - 1) // span)  # spans that steps to come may add
        spans = -(-max_context // span) + self._later
        self.partials = max(spans, min(PARTIALS, max_sequences * spans))
        self.members = _table(max_tokens, 3)
        self.single_tiles = _table(max_sequences + self.partials, 7)
        self.tiles = _table(max_tokens + self.partials, 7)
        self._ramp = np.arange(max_tokens, dtype=np.int32)
        self._whole = 0  # leading members and single tiles that are those of sequence 0, 1, ... running one row each

    def fill(self, step: Rows) -> dict[str, int]:
        """Fill the tables for `step`; returns how many single_tiles, tiles and merges there are."""
        s, n = len(step.starts) - 1, len(step.positions)
        if n == s:
            return self._decode(step, self._ramp[:s], step.positions)
        counts = np.diff(step.starts)
        one = np.flatnonzero(counts == 1)
        sizes = self._decode(step, one, step.positions[step.starts[one]])
        sizes["tiles"] += self._many(step, counts, len(one), sizes["tiles"])
        self._whole = 0
        return sizes

    def _many(self, step: Rows, counts: Array, members: int, before: int) -> int:
        """Tiles of the sequences that run several rows, behind so many `members` and the tiles `before`."""
        many = np.flatnonzero(counts > 1)
        rows = np.flatnonzero(np.repeat(counts > 1, counts))
        self.members[members : members + len(rows), 0] = rows
        self.members[members : members + len(rows), 1] = step.positions[rows]
        counts = counts[many]
        per_sequence = -(-counts // self.tile_rows)
        total = int(per_sequence.sum())
        owner = np.repeat(self._ramp[: len(many)], per_sequence)
        first = np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence)
        offset = (self._ramp[:total] - first) * self.tile_rows  # rows of the same sequence before this tile
        tiles = self.tiles[before : before + total]
        tiles[:, 0] = many[owner]
        tiles[:, 1] = members + (np.cumsum(counts) - counts)[owner] + offset
        tiles[:, 2] = np.minimum(counts[owner] - offset, self.tile_rows)
        tiles[:, 3] = self.members[tiles[:, 1], 1]
        tiles[:, 4] = tiles[:, 6] = 0
        tiles[:, 5] = tiles[:, 3] + tiles[:, 2]
        return total

    def _decode(self, step: Rows, sequences: Array, positions: Array) -> dict[str, int]:
        """Members and tiles of the `sequences` that run one row, at `positions`."""
        count = len(sequences)
        longest = int(positions.max()) // self.span + 1 if count else 0
        if longest > 1:
            spans = positions // self.span + 1
            total = int(spans.sum())
            room = total + self._later * count
            share = -(-total * self.kv_heads // (self.threads * ITEMS))
            limit = longest if self.threads == 1 else share
            order, common = self._common(step.tables[sequences], positions)
            if room <= self.partials and (longest > limit or common.any()):
                return self._split(step, sequences[order], positions[order], spans[order], common, limit)
        members, tiles = self.members[:count], self.single_tiles[:count]
        members[:, 1] = positions
        if count > self._whole:  # else the rest is as the last steps left it
            members[:, 0] = step.starts[sequences]
            tiles[:] = 0, 0, 1, 0, 0, OPEN, 0
            tiles[:, 0], tiles[:, 1] = sequences, self._ramp[:count]
            self._whole = count
        return {"single_tiles": count, "tiles": 0, "merges": 0}

    def _common(self, tables: Array, positions: Array) -> tuple[Array, Array]:
        """An order in which sequences with the same pages are neighbours, and how many full spans each has in common
        with the one after it.
        """
        full = (positions + 1) // self.span
        width = int(full.max()) * (self.span // self.page)
        if not width or len(np.unique(tables[:, 0])) == len(tables):
            return np.arange(len(tables)), np.zeros(len(tables) - 1, np.int64)
        tables = np.ascontiguousarray(tables[:, :width])
        order = np.argsort(tables.view(f"V{tables.itemsize * width}")[:, 0])
        differ = tables[order[1:]] != tables[order[:-1]]
        same = np.where(differ.any(axis=1), differ.argmax(axis=1), width) * self.page // self.span
        full = full[order]
        return order, np.minimum(same, np.minimum(full[1:], full[:-1]))

    def _split(
        self, step: Rows, sequences: Array, positions: Array, spans: Array, common: Array, limit: int
    ) -> dict[str, int]:
        """Every row in partials, at most `limit` spans to an item."""
        members = self.members[: len(sequences)]
        members[:, 0], members[:, 1] = step.starts[sequences], positions
        room = spans + self._later
        members[:, 2] = np.cumsum(room) - room
        single: list[tuple[int, ...]] = []
        shared: list[tuple[int, ...]] = []
        for first, stop, low, high in _tree(common, spans, 0, len(sequences), 0):
            for begin in range(low, max(high, low + 1), limit):
                end = OPEN if stop - first == 1 and begin + limit >= high else min(high, begin + limit) * self.span
                for member in range(first, stop, self.tile_rows):
                    count = min(stop - member, self.tile_rows)
                    lowest = int(positions[member : member + count].min())
                    row = (sequences[member], member, count, lowest, begin * self.span, end, 1)
                    (single if count == 1 else shared).append(row)
        self.single_tiles[: len(single)] = np.array(single, np.int32).reshape(-1, 7)
        self.tiles[: len(shared)] = np.array(shared, np.int32).reshape(-1, 7)
        self._whole = 0
        return {"single_tiles": len(single), "tiles": len(shared), "merges": len(sequences)}


def _tree(common: Array, spans: Array, first: int, stop: int, low: int) -> Iterator[tuple[int, int, int, int]]:
    """(first, stop, low, high): sequences first .. stop have the same pages in spans low .. high, cut where they part.

    Sequence i has `spans[i]` spans, of which the first `common[i]` are those of sequence i + 1.
    """
    if stop - first == 1:
        yield first, stop, low, int(spans[first])
        return
    high = int(common[first : stop - 1].min())
    if high > low:
        yield first, stop, low, high
    ends = [*(first + 1 + np.flatnonzero(common[first : stop - 1] == high)), stop]
    for end in ends:
        yield from _tree(common, spans, first, int(end), high)
        first = int(end)


def _table(rows: int, columns: int) -> Array:
    return allocate(4 * rows * columns).view(np.int32).reshape(rows, columns)
