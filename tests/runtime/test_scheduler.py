"""The scheduler and the batch builder before a pretended device: who runs, when, and on which pages."""

from __future__ import annotations

import pytest

from tests.runtime.conftest import World, fuzz


@pytest.mark.parametrize("seed", range(3))
def test_200_requests_of_random_lengths_cancelled_at_random_end_with_every_page_free(seed: int) -> None:
    world = World(pages=20 + 10 * seed)
    fuzz(world, seed, 200)
    assert world.scheduler.preemptions > 0 and world.pool.evictions > 0, "the test was too easy"


def test_the_laws_hold_in_the_narrowest_world() -> None:
    world = World(pages=3, max_step_tokens=1, max_sequences=1)
    fuzz(world, 0, 30)


def test_whoever_decodes_goes_first_and_prompts_fill_the_rest_in_chunks() -> None:
    world = World(max_step_tokens=8)
    first = world.add([1] * 4)
    world.step()
    second, third = world.add([2] * 12), world.add([0] * 3)
    assert world.step() == [(first, 1, True), (second, 7, False)]
    assert world.step() == [(first, 1, True), (second, 5, True), (third, 2, False)]
    assert world.step() == [(first, 1, True), (second, 1, True), (third, 1, True)]


def test_a_later_request_starts_behind_the_prefix_that_an_earlier_one_left() -> None:
    world = World()
    world.add([1] * 10)
    world.finish()
    sequence = world.add([1] * 10 + [2])
    assert world.step() == [(sequence, 3, True)] and sequence.reused == 8


def test_the_last_token_of_a_prompt_is_computed_even_if_its_page_is_known() -> None:
    world = World()
    world.add([1] * 8)
    world.finish()
    sequence = world.add([1] * 8)
    assert world.step() == [(sequence, 4, True)] and sequence.reused == 4


def test_texts_of_different_salts_share_nothing() -> None:
    world = World()
    world.add([1] * 10, salt="a")
    world.finish()
    sequence = world.add([1] * 10, salt="b")
    world.step()
    assert sequence.reused == 0


def test_answers_to_one_prompt_wait_for_its_pages_and_let_others_pass() -> None:
    world = World(max_step_tokens=16)
    leader = world.add([1] * 18)
    follower, other = world.add([1] * 18, leader=leader), world.add([2] * 3)
    assert world.step() == [(leader, 16, False)]
    assert world.step() == [(leader, 2, True), (other, 3, True)]
    assert world.step() == [(leader, 1, True), (other, 1, True), (follower, 2, True)]
    assert follower.reused == 16 and follower.pages[:4].tolist() == leader.pages[:4].tolist()


def test_answers_do_not_wait_for_a_leader_that_ended() -> None:
    world = World(max_step_tokens=4)
    leader = world.add([1] * 18)
    follower = world.add([1] * 18, leader=leader)
    world.step()
    world.cancel(leader)
    assert world.step() == [(follower, 4, False)]


def test_two_that_compute_the_same_prompt_at_once_end_up_on_the_same_pages() -> None:
    world = World(max_step_tokens=32)
    one, two = world.add([1] * 9), world.add([1] * 9)
    world.step()
    assert one.pages[:2].tolist() == two.pages[:2].tolist() and one.pages[2] != two.pages[2]


def test_the_youngest_gives_way_and_comes_back_before_those_behind_it() -> None:
    world = World(pages=6, max_sequences=3)
    old, young = world.add([1] * 7, answer=16), world.add([2] * 7, answer=9)
    behind = world.add([0] * 8, answer=1)
    while not world.scheduler.preemptions:
        world.step()
    assert world.scheduler.running == [old] and world.scheduler.waiting == [young, behind]
    world.finish()


def test_nobody_is_admitted_into_the_pages_that_others_need_next() -> None:
    world = World(pages=5)
    world.add([1] * 8, answer=12)
    world.step()
    late = world.add([2] * 12, answer=1)
    world.step()
    assert late in world.scheduler.waiting  # 3 pages are left, and the one who runs will want one of them


def test_distrust_computes_everything_again() -> None:
    world = World()
    sequence = world.add([1] * 10, answer=8)
    world.step()
    world.scheduler.distrust()
    world.memory.clear()
    world.scheduler.check()
    assert len(world.pool.tree) == 0 and world.step() == [(sequence, 11, True)]
    world.finish()


def test_without_sharing_nothing_is_kept() -> None:
    world = World(share=False)
    fuzz(world, 1, 40)
    assert len(world.pool.tree) == 0


def test_a_plan_that_is_not_carried_out_can_be_made_again() -> None:
    world = World(pages=8)
    for token in range(3):
        world.add([token] * 9, answer=12)
    for _ in range(30):
        world.step()
        while True:  # until preemptions have settled
            plan, again = world.scheduler.plan(), world.scheduler.plan()
            if plan == again:
                break
        world.scheduler.check()
    world.finish()
