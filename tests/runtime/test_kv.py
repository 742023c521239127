"""Page pool and prefix tree: a model-based random walk, and faults that `check` has to catch."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from mlc.runtime.kv import PagePool
from mlc.runtime.prefix import PrefixTree

SIZE = 2  # tokens of a page


def text(*tokens: int) -> NDArray[np.int32]:
    return np.array(tokens, np.int32)


def publish(pool: PagePool, tokens: NDArray[np.int32], pages: list[int], salt: str = "") -> None:
    node = None
    for i in range(len(tokens) // SIZE):
        node = pool.tree.add(node, tokens[i * SIZE : (i + 1) * SIZE], pages[i], salt)


def found(pool: PagePool, tokens: NDArray[np.int32], salt: str = "") -> list[int]:
    return [node.page for node in pool.tree.match(tokens, salt)]


@pytest.fixture
def pool() -> PagePool:
    return PagePool(8, PrefixTree(SIZE))


def taken(pool: PagePool, count: int) -> list[int]:
    pages = pool.take(count)
    assert pages is not None
    return pages


def test_taking_is_all_or_nothing(pool: PagePool) -> None:
    pages = taken(pool, 6)
    assert len(set(pages)) == 6 and pool.available == 2
    assert pool.take(3) is None and pool.available == 2
    pool.release(pages)
    assert pool.available == 8
    pool.check()


def test_a_shared_page_is_free_when_its_last_holder_gives_it_up(pool: PagePool) -> None:
    pages = taken(pool, 2)
    pool.share(pages)
    pool.release(pages)
    assert pool.available == 6
    pool.release(pages)
    assert pool.available == 8
    pool.check()


def test_only_full_pages_of_the_same_text_and_salt_are_found(pool: PagePool) -> None:
    pages = taken(pool, 2)
    publish(pool, text(1, 2, 3, 4), pages, "a")
    assert found(pool, text(1, 2, 3, 4, 5), "a") == pages
    assert found(pool, text(1, 2, 3), "a") == pages[:1]
    assert found(pool, text(1, 2, 9, 4), "a") == pages[:1]
    assert found(pool, text(3, 4), "a") == []  # the same tokens elsewhere in the text are another page
    assert found(pool, text(1), "a") == []
    assert found(pool, text(1, 2, 3, 4), "b") == []
    pool.check()


def test_text_known_already_keeps_its_first_page(pool: PagePool) -> None:
    first, second = taken(pool, 1), taken(pool, 1)
    assert pool.tree.add(None, text(1, 2), first[0], "").page == first[0]
    assert pool.tree.add(None, text(1, 2), second[0], "").page == first[0]
    pool.release(second)
    pool.check()


def test_idle_pages_are_evicted_oldest_use_first_and_leaves_before_parents(pool: PagePool) -> None:
    old, new = taken(pool, 2), taken(pool, 2)
    publish(pool, text(1, 2, 3, 4), old)
    publish(pool, text(5, 6, 7, 8), new)
    pool.release(old)
    pool.release(new)
    assert pool.idle == 4 and pool.available == 8
    pool.share(old)  # used again, and then the most recent
    pool.release(old)
    pool.check()
    taken(pool, 5)  # 4 free ones and one idle
    assert found(pool, text(5, 6, 7, 8)) == new[:1] and found(pool, text(1, 2, 3, 4)) == old
    taken(pool, 2)
    assert found(pool, text(5, 6, 7, 8)) == [] and found(pool, text(1, 2, 3, 4)) == old[:1]
    assert pool.evictions == 3
    pool.check()


def test_pages_that_are_not_to_be_kept_are_forgotten_unless_another_text_builds_on_them(pool: PagePool) -> None:
    mine = taken(pool, 3)
    publish(pool, text(1, 2, 3, 4, 5, 6), mine)
    other = [*mine[:1], *taken(pool, 1)]
    pool.share(other[:1])
    publish(pool, text(1, 2, 7, 8), other)
    pool.release(other)
    pool.release(mine, keep=False)
    assert found(pool, text(1, 2, 3, 4, 5, 6)) == mine[:1] and found(pool, text(1, 2, 7, 8)) == other
    pool.check()
    pool.clear()
    assert len(pool.tree) == 0 and pool.idle == 0 and pool.available == 8
    pool.check()


def test_colliding_hashes_never_share_a_wrong_page(pool: PagePool) -> None:
    class Colliding(bytes):
        def __hash__(self) -> int:
            return 7

    class Text(np.ndarray):
        def tobytes(self, order: object = None) -> bytes:
            return Colliding(super().tobytes())

    first, second = text(1, 2, 3, 4).view(Text), text(1, 2, 5, 6).view(Text)
    pages = taken(pool, 2)
    publish(pool, first, pages)
    assert found(pool, first) == pages and found(pool, second) == pages[:1]


def walk(pool: PagePool, seed: int, steps: int = 400) -> None:
    """Random texts over two tokens come, share, grow and go; a dict of whole prefixes tells what may be found."""
    rng = random.Random(seed)
    holders: list[tuple[NDArray[np.int32], list[int], str]] = []
    content: dict[int, tuple[str, tuple[int, ...]]] = {}  # page → salt and the whole text up to its end
    for _ in range(steps):
        if holders and rng.random() < 0.5:
            _, pages, _ = holders.pop(rng.randrange(len(holders)))
            pool.release(pages, keep=rng.random() < 0.9)
        else:
            salt, tokens = rng.choice("ab"), text(*rng.choices((0, 1), k=rng.randrange(1, 9)))
            known = found(pool, tokens, salt)
            for i, page in enumerate(known):
                assert content[page] == (salt, tuple(tokens[: (i + 1) * SIZE].tolist())), "a wrong page was shared"
            pool.share(known)
            fresh = pool.take(-(-len(tokens) // SIZE) - len(known))
            if fresh is None:
                pool.release(known)
            else:
                pages = known + fresh
                for i in range(len(known), len(tokens) // SIZE):
                    content[pages[i]] = (salt, tuple(tokens[: (i + 1) * SIZE].tolist()))
                publish(pool, tokens, pages, salt)
                holders.append((tokens, pages, salt))
        pool.check()
    for _, pages, _ in holders:
        pool.release(pages)
    pool.check()
    assert pool.available == pool.pages


@pytest.mark.parametrize("seed", range(5))
def test_a_random_walk_conserves_pages_and_shares_only_equal_texts(seed: int) -> None:
    walk(PagePool(12, PrefixTree(SIZE)), seed)


class ReleasesTwice(PagePool):
    def release(self, pages: object, *, keep: bool = True) -> None:
        super().release(pages[:1], keep=keep)  # type: ignore[index]
        super().release(pages, keep=keep)  # type: ignore[arg-type]


class ForgetsAReference(PagePool):
    def share(self, pages: object) -> None:
        super().share(pages[1:])  # type: ignore[index]


class LosesAPage(PagePool):
    def release(self, pages: object, *, keep: bool = True) -> None:
        super().release(pages[:-1], keep=keep)  # type: ignore[index]


class ReleasesInTheWrongOrder(PagePool):
    def release(self, pages: object, *, keep: bool = True) -> None:
        super().release(pages[::-1], keep=keep)  # type: ignore[index]


class EvictsTheNewest(PagePool):
    def _evict(self) -> int:
        self._idle.move_to_end(next(reversed(self._idle)), last=False)
        return super()._evict()


class EvictsWithoutForgetting(PagePool):
    def _evict(self) -> int:
        return self._idle.popitem(last=False)[0]


class FreesWhatTheTreeHolds(PagePool):
    def release(self, pages: object, *, keep: bool = True) -> None:
        super().release(pages, keep=keep)  # type: ignore[arg-type]
        self._free += self._idle
        self._idle.clear()


class IgnoresSalts(PrefixTree):
    def match(self, tokens: NDArray[np.int32], salt: str) -> object:  # type: ignore[override]
        return super().match(tokens, "a")

    def add(self, parent: object, tokens: object, page: int, salt: str) -> object:  # type: ignore[override]
        return super().add(parent, tokens, page, "a")  # type: ignore[arg-type]


class IgnoresTheParent(PrefixTree):
    def add(self, parent: object, tokens: object, page: int, salt: str) -> object:  # type: ignore[override]
        return super().add(None, tokens, page, salt)  # type: ignore[arg-type]

    def match(self, tokens: NDArray[np.int32], salt: str) -> object:  # type: ignore[override]
        parts = [tokens[i : i + SIZE] for i in range(0, len(tokens) - SIZE + 1, SIZE)]
        chains = [super(IgnoresTheParent, self).match(part, salt) for part in parts]
        return [chain[0] for chain in chains[: [*map(bool, chains), False].index(False)]]


class ForgetsOnlyTheNumber(PrefixTree):
    def remove(self, page: int) -> None:
        del self._nodes[page]


FAULTS: list[tuple[type[PagePool], type[PrefixTree]]] = [
    (ReleasesTwice, PrefixTree),
    (ForgetsAReference, PrefixTree),
    (LosesAPage, PrefixTree),
    (ReleasesInTheWrongOrder, PrefixTree),
    (EvictsTheNewest, PrefixTree),
    (EvictsWithoutForgetting, PrefixTree),
    (FreesWhatTheTreeHolds, PrefixTree),
    (PagePool, IgnoresSalts),
    (PagePool, IgnoresTheParent),
    (PagePool, ForgetsOnlyTheNumber),
]


@pytest.mark.parametrize(("pool", "tree"), FAULTS)
def test_every_planted_fault_is_caught(pool: type[PagePool], tree: type[PrefixTree]) -> None:
    with pytest.raises(AssertionError):
        for seed in range(5):
            walk(pool(12, tree(SIZE)), seed)
