"""Faults planted in scheduler, pool and batch builder: the laws have to catch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import SIZE, World, fuzz

# Each function plants one fault; `Any` because it reaches for what is private.


def leaks_on_drop(world: Any) -> None:
    def drop(sequence: Any, *, keep: bool = True) -> None:
        (world.scheduler.running if sequence in world.scheduler.running else world.scheduler.waiting).remove(sequence)
        sequence.finished = True

    world.scheduler.drop = drop


def drops_twice(world: Any) -> None:
    drop = world.scheduler.drop

    def faulty(sequence: Any, *, keep: bool = True) -> None:
        world.pool.release(sequence.pages.tolist())
        drop(sequence)

    world.scheduler.drop = faulty


def forgets_a_reference(world: Any) -> None:
    world.pool.share = lambda pages: None


def shares_partial_pages(world: Any) -> None:
    publish = world.scheduler._publish

    def faulty(sequence: Any) -> None:
        cached, sequence.cached = sequence.cached, min(-(-sequence.cached // SIZE) * SIZE, sequence.length)
        publish(sequence)
        sequence.cached = cached

    world.scheduler._publish = faulty


def publishes_before_the_device_ran(world: Any) -> None:
    plan = world.scheduler.plan

    def faulty() -> Any:
        step = plan()
        for sequence, tokens, _ in step:
            sequence.cached += tokens
            world.scheduler._publish(sequence)
            sequence.cached -= tokens
        return step

    world.scheduler.plan = faulty


def keeps_cached_after_preemption(world: Any) -> None:
    preempt = world.scheduler._preempt

    def faulty(sequence: Any) -> None:
        cached = sequence.cached
        preempt(sequence)
        sequence.cached = cached

    world.scheduler._preempt = faulty


def preempts_the_oldest(world: Any) -> None:
    preempt = world.scheduler._preempt
    world.scheduler._preempt = lambda sequence: preempt(world.scheduler.running[0])


def takes_the_last_token_from_the_cache(world: Any) -> None:
    match = world.pool.tree.match

    def faulty(tokens: Any, salt: str) -> Any:
        whole = tokens.base[: len(tokens) + 1] if tokens.base is not None else tokens
        return match(whole, salt)

    world.pool.tree.match = faulty


def looks_up_under_another_salt(world: Any) -> None:
    match = world.pool.tree.match
    world.pool.tree.match = lambda tokens, salt: match(tokens, "")


def counts_a_token_twice(world: Any) -> None:
    advance = world.scheduler.advance

    def faulty(step: Any) -> None:
        advance(step)
        for sequence, _, _ in step:
            sequence.cached += 1

    world.scheduler.advance = faulty


def exceeds_the_budget(world: Any) -> None:
    world.scheduler.plan = with_larger(world.scheduler, "max_step_tokens")


def runs_too_many(world: Any) -> None:
    world.scheduler.plan = with_larger(world.scheduler, "max_sequences")


def with_larger(scheduler: Any, name: str) -> Callable[[], Any]:
    plan, value = scheduler.plan, getattr(scheduler, name)

    def faulty() -> Any:
        setattr(scheduler, name, value + 1)
        step = plan()
        setattr(scheduler, name, value)
        return step

    return faulty


def queues_at_the_front(world: Any) -> None:
    world.scheduler.add = lambda sequence: world.scheduler.waiting.insert(0, sequence)


def keeps_both_copies_of_a_page(world: Any) -> None:
    publish = world.scheduler._publish

    def faulty(sequence: Any) -> None:
        release, world.pool.release = world.pool.release, lambda pages: None
        publish(sequence)
        world.pool.release = release

    world.scheduler._publish = faulty


def writes_the_wrong_slot(world: Any) -> None:
    place = world.builder._place

    def faulty(step: Any) -> tuple[int, int]:
        n, rows = place(step)
        world.builder._slots[n - 1] ^= 1
        return n, rows

    world.builder._place = faulty


def writes_the_wrong_slot_of_a_last_token(world: Any) -> None:
    place = world.builder._place_last

    def faulty(step: Any) -> None:
        place(step)
        world.builder._slots[0] ^= 1

    world.builder._place_last = faulty


def overlooks_that_pages_changed(world: Any) -> None:
    build = world.builder.build

    def faulty(step: Any) -> Any:
        for work in step:
            work.sequence.layout = 0
        return build(step)

    world.builder.build = faulty


def leaves_old_pages_in_the_table(world: Any) -> None:
    def faulty(s: int, pages: Any) -> None:
        world.builder._tables[s, : len(pages)] = pages

    world.builder._fill_table = faulty


def reads_a_stale_table(world: Any) -> None:
    fill, seen = world.builder._fill_table, dict[int, Any]()

    def faulty(s: int, pages: Any) -> None:
        old = seen.get(s, np.empty(0, np.int32))
        fill(s, np.concatenate((old[: len(pages)], pages[len(old) :])))
        seen[s] = pages.copy()

    world.builder._fill_table = faulty


FAULTS = [
    leaks_on_drop,
    drops_twice,
    forgets_a_reference,
    shares_partial_pages,
    publishes_before_the_device_ran,
    keeps_cached_after_preemption,
    preempts_the_oldest,
    takes_the_last_token_from_the_cache,
    looks_up_under_another_salt,
    counts_a_token_twice,
    exceeds_the_budget,
    runs_too_many,
    queues_at_the_front,
    keeps_both_copies_of_a_page,
    writes_the_wrong_slot,
    writes_the_wrong_slot_of_a_last_token,
    overlooks_that_pages_changed,
    leaves_old_pages_in_the_table,
    reads_a_stale_table,
]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_every_planted_fault_is_caught(plant: Callable[[Any], None]) -> None:
    world = World(pages=30)
    plant(world)
    with pytest.raises(AssertionError):
        fuzz(world, 0, 200)
