"""Pages of the KV cache: who refers to each, and which of the unused ones are worth keeping."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from .prefix import PrefixTree


class PagePool:
    """Each page is in one of three states.

        free   no references, nothing worth keeping
        used   one reference per sequence that holds it
        idle   no references, but the prefix tree knows its content: `share` revives it, `take` evicts it

    Idle pages are evicted least recently used first. Sequences release their deepest page first, so a page of the tree
    comes after all that follow it in that order, and what is evicted is always a leaf.
    """

    def __init__(self, pages: int, tree: PrefixTree) -> None:
        self.pages = pages
        self.tree = tree
        self.evictions = 0  # pages whose content was given up for another's
        self._free = list(range(pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._references = [0] * pages

    @property
    def available(self) -> int:
        """Pages that `take` can give: the free and the idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def idle(self) -> int:
        """Pages without references whose content is kept."""
        return len(self._idle)

    def references(self, page: int) -> int:
        return self._references[page]

    def take(self, count: int) -> list[int] | None:
        """`count` pages of unspecified content, one reference each; None when there are too few. Never partial."""
        if count > self.available:
            return None
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One more reference to each of `pages`, which are used or idle."""
        for page in pages:
            if self._references[page] == 0:
                del self._idle[page]
            self._references[page] += 1

    def release(self, pages: Sequence[int], *, keep: bool = True) -> None:
        """Give up one reference to each of `pages`, in the order of the text.

        A page without references stays idle if the tree knows it and `keep`; else it is free (with `keep` false, the
        tree forgets it, unless other known pages follow it).
        """
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] > 0:
                continue
            if page in self.tree and not keep and self.tree.is_leaf(page):
                self.tree.remove(page)
            if page in self.tree:
                self._idle[page] = None
            else:
                self._free.append(page)

    def clear(self) -> None:
        """Evict every idle page."""
        self._free += [self._evict() for _ in range(len(self._idle))]

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self.tree.remove(page)
        self.evictions += 1
        return page

    def check(self) -> None:
        """Every page is in exactly one state, the tree holds used and idle pages only, and leaves are evicted first."""
        free, idle = set(self._free), set(self._idle)
        used = {page for page, count in enumerate(self._references) if count > 0}
        assert min(self._references, default=0) >= 0, "a page was released more often than taken"
        assert len(free) == len(self._free), "a page was freed twice"
        assert not free & idle and not free & used and not idle & used, "a page is in two states"
        assert len(free) + len(idle) + len(used) == self.pages, "a page was lost"
        self.tree.check()
        known = {page for page in range(self.pages) if page in self.tree}
        assert len(known) == len(self.tree) and not known & free, "the tree holds a free page"
        assert idle <= known, "a page is idle that nobody can find"
        order = {page: i for i, page in enumerate(self._idle)}
        for page in known:
            parent = self.tree.parent(page)
            if parent is None:
                continue
            assert page not in used or parent in used, f"page {page} is used and the page before it is not"
            if parent in idle:
                assert order[page] < order[parent], f"page {parent} would be evicted before page {page}, which needs it"
