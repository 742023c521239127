"""Which page holds the k, v of which tokens: a tree of full pages, one edge per page of text.

The tree knows content, the pool (`kv.PagePool`) knows ownership. What a page holds depends on every token before it,
so a page is found by its parent page *and* its own tokens. The tokens are the key itself: a hash that collides costs a
comparison and never shares a wrong page. Texts under different salts (tenants, adapters, media) never meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False, slots=True)
class Node:
    """A page and the text that leads to it. The root of a salt has no page (-1) and no tokens."""

    page: int
    tokens: bytes  # int32, page_size of them
    parent: Node | None
    salt: str
    children: dict[bytes, Node] = field(default_factory=dict[bytes, "Node"])


class PrefixTree:
    def __init__(self, page_size: int) -> None:
        self.page_size = page_size  # tokens
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}  # by page

    def __len__(self) -> int:
        """Pages in the tree."""
        return len(self._nodes)

    def __contains__(self, page: int) -> bool:
        return page in self._nodes

    def match(self, tokens: NDArray[np.int32], salt: str) -> list[Node]:
        """The longest known chain of full pages that `tokens` [n] begin with, first page first."""
        node, chain, size = self._roots.get(salt), list[Node](), self.page_size
        for start in range(0, len(tokens) - size + 1, size):
            if node is None:
                break
            node = node.children.get(tokens[start : start + size].tobytes())
            if node is not None:
                chain.append(node)
        return chain

    def add(self, parent: Node | None, tokens: NDArray[np.int32], page: int, salt: str) -> Node:
        """Record that `page` holds `tokens` [page_size] after `parent` (None: at the start of the text).

        Returns the node of that text: an older one, with another page, where one was known already.
        """
        if len(tokens) != self.page_size:
            raise AssertionError(f"a page of {self.page_size} tokens was added with {len(tokens)}")
        if parent is None:
            parent = self._roots.setdefault(salt, Node(-1, b"", None, salt))
        key = tokens.tobytes()
        node = parent.children.get(key)
        if node is None:
            assert page not in self._nodes, f"page {page} is in the tree under another text"
            node = parent.children[key] = self._nodes[page] = Node(page, key, parent, salt)
        return node

    def remove(self, page: int) -> None:
        """Forget a page that no other page of the tree follows."""
        node = self._nodes.pop(page)
        parent = node.parent
        assert parent is not None and not node.children, f"page {page} was forgotten before those that follow it"
        del parent.children[node.tokens]
        if parent.parent is None and not parent.children:
            del self._roots[parent.salt]

    def is_leaf(self, page: int) -> bool:
        return not self._nodes[page].children

    def parent(self, page: int) -> int | None:
        """The page before `page` in its text; None for the first."""
        parent = self._nodes[page].parent
        return None if parent is None or parent.parent is None else parent.page

    def check(self) -> None:
        """Every node hangs where its tokens say, under a root of its salt, and is found by its page."""
        found = 0
        todo = list(self._roots.values())
        for root in todo:
            assert root.children, f"the root of salt {root.salt!r} is empty and was kept"
        while todo:
            node = todo.pop()
            for key, child in node.children.items():
                assert child.parent is node and child.tokens == key and child.salt == node.salt
                assert len(key) == 4 * self.page_size, f"page {child.page} is in the tree and not full"
                assert self._nodes.get(child.page) is child, f"page {child.page} is not found by its number"
                found += 1
                todo.append(child)
        assert found == len(self._nodes), "a page of the tree cannot be reached from a root"
