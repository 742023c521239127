"""The buffer plan, against its one law, on random lifetimes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlc.passes import Interval, plan_memory

intervals = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 10)).map(
        lambda t: Interval(t[0], t[1], t[1] + t[2])
    ),
    max_size=30,
)


@given(intervals)
def test_buffers_alive_at_once_never_overlap(wanted: list[Interval]) -> None:
    plan = plan_memory(wanted)
    for i, a in enumerate(wanted):
        assert plan.offsets[i] % 64 == 0 and plan.offsets[i] + a.size <= plan.size
        for j, b in enumerate(wanted[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert plan.offsets[i] + a.size <= plan.offsets[j] or plan.offsets[j] + b.size <= plan.offsets[i]


def test_a_chain_needs_two_buffers() -> None:
    plan = plan_memory([Interval(640, i, i + 1) for i in range(10)])
    assert plan.size == 1280
