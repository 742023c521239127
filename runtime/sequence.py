"""One text on its way through the model: its tokens, its pages, and how far the KV cache has got."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from .prefix import Node

Int32s = NDArray[np.int32]


class _Int32List:
    """A list of int32 whose content numpy reads without a copy."""

    __slots__ = ("_buffer", "length")

    def __init__(self, values: Seq[int] | Int32s) -> None:
        self._buffer: Int32s = np.array(values, np.int32)
        self.length = len(self._buffer)

    @property
    def view(self) -> Int32s:
        return self._buffer[: self.length]

    def __getitem__(self, index: int) -> np.int32:
        assert index < self.length
        return self._buffer[index]  # type: ignore[no-any-return]

    def extend(self, values: Seq[int]) -> None:
        length = self.length + len(values)
        if length > len(self._buffer):
            grown = np.empty(max(16, 2 * length), np.int32)
            grown[: self.length] = self.view
            self._buffer = grown
        self._buffer[self.length : length] = values
        self.length = length


class Sequence:
    """Prompt and answer so far. `tokens[:cached]` have their k, v in `pages`; the others are still to run.

    `pages[:shared]` are in the prefix tree, the last of them at `tail`; the others belong to this sequence alone.
    """

    __slots__ = (
        "_pages",
        "_tokens",
        "arrival",
        "cached",
        "finished",
        "last",
        "layout",
        "leader",
        "limit",
        "prompt",
        "reused",
        "salt",
        "shared",
        "tail",
    )

    def __init__(
        self, arrival: int, tokens: Seq[int] | Int32s, limit: int, *, salt: str = "", leader: Sequence | None = None
    ) -> None:
        self.arrival = arrival  # unique; smaller is older
        self.prompt = len(tokens)  # tokens
        self.limit = limit  # tokens of prompt and answer together
        self.salt = salt  # prefixes are shared among equal salts only
        self.leader = leader  # another answer to the same prompt: once that one starts, this one shares its pages
        self.cached = 0  # tokens
        self.shared = 0  # pages
        self.tail: Node | None = None
        self.reused: int | None = None  # tokens found in the tree at the first admission; None before that
        self.finished = False
        self._tokens = _Int32List(tokens)
        self._pages = _Int32List([])
        self.last = int(tokens[-1])  # token
        self.layout = 0  # changes with `pages`

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return self._tokens.length

    @property
    def answered(self) -> int:
        """Tokens of the answer."""
        return self._tokens.length - self.prompt

    @property
    def pending(self) -> int:
        """Tokens still to run."""
        return self._tokens.length - self.cached

    @property
    def full(self) -> bool:
        """No more tokens fit under the limit."""
        return self._tokens.length >= self.limit

    @property
    def ready(self) -> bool:
        """Whether it makes sense to start: not while the leader computes the pages that this one would share."""
        return self.leader is None or self.leader.finished or self.leader.answered > 0

    @property
    def tokens(self) -> Int32s:
        """[length], a view that the next `append` may outdate."""
        return self._tokens.view

    @property
    def pages(self) -> Int32s:
        """Page ids in the order of the text, a view that the next `hold` may outdate."""
        return self._pages.view

    def page(self, index: int) -> int:
        return int(self._pages[index])

    def append(self, token: int) -> None:
        self.extend((token,))

    def extend(self, tokens: Seq[int]) -> None:
        """Add at least one token."""
        self._tokens.extend(tokens)
        self.last = int(tokens[-1])

    def hold(self, pages: Seq[int]) -> None:
        """Add `pages` after those it has."""
        if pages:
            self._pages.extend(pages)
            self.layout += 1

    def replace(self, index: int, page: int) -> None:
        """Let `page` stand in for the page at `index`: it holds the same text."""
        self._pages.view[index] = page
        self.layout += 1

    def let_go(self) -> list[int]:
        """Forget all pages, and with them what is cached; returns them."""
        pages: list[int] = self.pages.tolist()
        self._pages.length = self.cached = self.shared = 0
        self.tail = None
        self.layout += 1
        return pages
