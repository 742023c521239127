"""The cut of a step into tiles of attention: whatever it is, every row reads each of its tokens once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.backends.attention_plan import OPEN, AttentionPlan

Array = np.ndarray[Any, Any]

PAGE, SPAN, TILE_ROWS, CONTEXT = 2, 8, 3, 64


@dataclass
class Step:
    positions: Array
    starts: Array
    tables: Array


def step_of(lengths: list[int], new: list[int], parents: list[tuple[int, int]]) -> Step:
    """Sequences of `lengths` tokens, the last `new` of them rows; each begins with some pages of an earlier one."""
    tables = np.zeros((len(lengths), CONTEXT // PAGE), np.int32)
    fresh = 1
    for s, (length, (parent, pages)) in enumerate(zip(lengths, parents, strict=True)):
        used = -(-length // PAGE)
        known = 0
        if parent < s:
            known = min(pages, (length - new[s]) // PAGE, lengths[parent] // PAGE)
            tables[s, :known] = tables[parent, :known]
        tables[s, known:used] = np.arange(fresh, fresh + used - known)
        fresh += used - known
    positions = np.concatenate([np.arange(n - k, n) for n, k in zip(lengths, new, strict=True)])
    return Step(positions.astype(np.int32), np.cumsum([0, *new]).astype(np.int32), tables)


def plan_of(threads: int, steps: int = 1) -> AttentionPlan:
    return AttentionPlan(
        page=PAGE,
        span=SPAN,
        tile_rows=TILE_ROWS,
        kv_heads=1,
        max_tokens=64,
        max_sequences=12,
        max_context=CONTEXT,
        threads=threads,
        steps=steps,
    )


def check(plan: AttentionPlan, step: Step) -> dict[str, int]:
    """Fill the plan, and follow each of its tiles a token at a time. Returns what `fill` did."""
    plan.single_tiles[...] = plan.tiles[...] = -1
    plan._whole = 0
    plan.fill(step)
    sizes = plan.fill(step)  # a second time, over what the first left
    follow(plan, step, sizes)
    return sizes


def follow(plan: AttentionPlan, step: Step, sizes: dict[str, int]) -> None:
    """The tiles of a plan, a token at a time."""
    rows = {int(r): i for i, r in enumerate(plan.members[: len(step.positions), 0])}
    assert sorted(rows) == list(range(len(step.positions)))
    owner = np.repeat(np.arange(len(step.starts) - 1), np.diff(step.starts))
    read: dict[int, list[int]] = {row: [] for row in rows}
    written: list[int] = []
    for tile in [*plan.single_tiles[: sizes["single_tiles"]], *plan.tiles[: sizes["tiles"]]]:
        sequence, first, count, lowest, begin, end, split = tile.tolist()
        assert 1 <= count <= TILE_ROWS and begin % SPAN == 0 and begin < end
        members = plan.members[first : first + count]
        assert count == 1 or (lowest <= members[:, 1].min() and end <= members[:, 1].max() + 1)
        for index, (row, position, partial) in enumerate(members.tolist()):
            assert position == step.positions[row]
            seen = range(begin, min(end, position + 1))
            read[row] += seen
            pages = sorted({token // PAGE for token in seen})
            assert (step.tables[owner[row], pages] == step.tables[sequence, pages]).all()
            assert (first + index < sizes["merges"]) == bool(split)
            if split:
                written += [partial + token // SPAN for token in seen if token % SPAN == 0]
    for row, tokens in read.items():
        assert sorted(tokens) == list(range(step.positions[row] + 1))
    assert len(written) == len(set(written)) and max(written, default=0) < plan.partials


SEQUENCES = st.lists(
    st.tuples(st.integers(1, CONTEXT), st.integers(1, 5), st.integers(0, 11), st.integers(0, CONTEXT // PAGE)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, st.sampled_from([1, 2, 8]), st.booleans())
def test_every_row_reads_each_of_its_tokens_once(
    sequences: list[tuple[int, int, int, int]], threads: int, decode: bool
) -> None:
    lengths = [length for length, *_ in sequences]
    new = [1 if decode else min(n, length) for length, n, *_ in sequences]
    check(plan_of(threads), step_of(lengths, new, [(parent, pages) for *_, parent, pages in sequences]))


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, st.sampled_from([1, 2, 8]))
def test_a_plan_holds_for_the_steps_that_follow(sequences: list[tuple[int, int, int, int]], threads: int) -> None:
    steps = 2 * SPAN + 1
    lengths = [min(length, CONTEXT - steps + 1) for length, *_ in sequences]
    parents = [(parent, pages) for *_, parent, pages in sequences]
    plan, step = plan_of(threads, steps), step_of(lengths, [1] * len(lengths), parents)
    sizes = check(plan, step)
    fresh = int(step.tables.max()) + 1
    for _ in range(1, steps):
        step.positions += 1
        plan.members[: len(lengths), 1] += 1
        for table, position in zip(step.tables, step.positions, strict=True):
            if position % PAGE == 0:
                table[position // PAGE], fresh = fresh, fresh + 1
        follow(plan, step, sizes)


def test_pages_in_common_are_read_by_one_tile() -> None:
    # Four sequences have two spans in common, two of these another three; the fifth is alone.
    step = step_of([20, 60, 50, 17, 30], [1] * 5, [(9, 0), (0, 8), (1, 20), (0, 8), (9, 0)])
    plan = plan_of(1)
    assert check(plan, step) == {"single_tiles": 6, "tiles": 2, "merges": 5}
    assert sorted(t[[2, 4, 5]].tolist() for t in plan.tiles[:2]) == [[2, 16, 40], [3, 0, 16]]
    shares = plan.single_tiles[:6, 4:6].tolist()  # the fourth of those that share did not fit into the tile of three
    assert sorted(shares) == [[0, 16], [0, OPEN], [16, OPEN], [16, OPEN], [40, OPEN], [40, OPEN]]


@pytest.mark.parametrize(("threads", "tiles"), [(1, 1), (2, 8), (4, 8)])
def test_a_long_sequence_is_split_among_the_threads(threads: int, tiles: int) -> None:
    assert check(plan_of(threads), step_of([CONTEXT], [1], [(0, 0)]))["single_tiles"] == tiles


def test_short_sequences_are_not_split() -> None:
    sizes = check(plan_of(8), step_of([SPAN, 3, 1], [1, 1, 1], [(9, 0)] * 3))
    assert sizes == {"single_tiles": 3, "tiles": 0, "merges": 0}


def test_more_partials_than_there_is_room_for_are_not_made() -> None:
    plan = plan_of(8)
    plan.partials = 15
    assert check(plan, step_of([CONTEXT, CONTEXT], [1, 1], [(9, 0)] * 2))["merges"] == 0
