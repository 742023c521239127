"""What to run next. Plans only: it never touches the device, so it is tested without one."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence as Seq
from operator import attrgetter
from typing import NamedTuple

from .kv import PagePool
from .sequence import Sequence

_by_arrival = attrgetter("arrival")


class Work(NamedTuple):
    """Run the next `tokens` pending tokens of `sequence`; sample if that reaches its last one."""

    sequence: Sequence
    tokens: int
    samples: bool


class Scheduler:
    """First come, first served, in one step for all: whoever decodes advances by a token, prompts fill the rest.

    Both lists are sorted by arrival. When pages run out, the youngest running sequence gives its pages back and waits
    again, to be recomputed. The oldest therefore always advances, and everyone becomes the oldest in time. That takes
    two promises by the caller: no sequence's limit exceeds the pool, and `max_sequences` <= `max_step_tokens`.
    """

    def __init__(self, pool: PagePool, *, max_step_tokens: int, max_sequences: int, share: bool = True) -> None:
        self.pool = pool
        self.page_size = pool.tree.page_size  # tokens
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences  # in one step
        self.share = share  # sequences with a common prefix use the same pages
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def settled(self) -> bool:
        """Whether nobody waits who could start before one of those that run ends."""
        return not self.waiting or len(self.running) == self.max_sequences

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_by_arrival)

    def plan(self) -> list[Work]:
        """One step, in which each sequence occurs at most once: those that decode first, then those that prefill.

        Reserves the pages that it needs, and changes nothing else but who runs and who waits: a plan that is not
        carried out can be made again.
        """
        decodes, prefills = list[Work](), list[Work]()
        budget = self.max_step_tokens - sum(sequence.pending == 1 for sequence in self.running)
        i = 0
        while i < len(self.running):  # oldest first; a preemption shortens the list at its end
            sequence = self.running[i]
            i += 1
            pending = sequence.pending
            if pending == 1:
                if self._make_room(sequence):
                    decodes.append(Work(sequence, 1, True))
            elif budget > 0:
                tokens = min(pending, budget)
                prefills.append(Work(sequence, tokens, tokens == pending))
                budget -= tokens
        while budget > 0 and len(self.running) < self.max_sequences:
            waiting = next((sequence for sequence in self.waiting if sequence.ready), None)
            if waiting is None or not self._admit(waiting):
                break
            tokens = min(waiting.pending, budget)
            prefills.append(Work(waiting, tokens, tokens == waiting.pending))
            budget -= tokens
        return decodes + prefills

    def reserve(self, step: Seq[Work], steps: int) -> bool:
        """Whether `step`, which runs one token of each sequence, now has pages to go on for `steps` in all.

        It takes no page that somebody holds; nobody may be waiting for one.
        """
        needs = [-(-(work.sequence.length + steps - 1) // self.page_size) - len(work.sequence.pages) for work in step]
        if sum(max(0, need) for need in needs) > self.pool.available:
            return False
        for work, need in zip(step, needs, strict=True):
            work.sequence.hold(self.pool.take(max(0, need)) or [])
        return True

    def advance(self, step: Seq[Work]) -> None:
        """The device has run `step`: its tokens are cached, and pages that became full can be shared."""
        for sequence, tokens, _ in step:
            sequence.cached += tokens
            if self.share and sequence.cached >= (sequence.shared + 1) * self.page_size:
                self._publish(sequence)

    def drop(self, sequence: Sequence, *, keep: bool = True) -> None:
        """`sequence` has ended, wherever it was. `keep` false: what its pages hold is not to be shared."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.pool.release(sequence.let_go(), keep=keep)
        sequence.finished = True

    def distrust(self) -> None:
        """What the pages hold is unknown: whoever runs is computed again, and nothing old is shared."""
        for sequence in tuple(self.running):
            self._preempt(sequence)
        self.pool.clear()

    def _make_room(self, sequence: Sequence) -> bool:
        """Give `sequence` pages for all its tokens, if need be those of the youngest; False if that is itself."""
        while sequence.length > len(sequence.pages) * self.page_size:
            pages = self.pool.take(1)
            if pages is not None:
                sequence.hold(pages)
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Start `sequence` if there are pages for all its tokens, and one to spare for each that runs already."""
        # The last token is never taken from the cache: somebody has to compute its logits.
        chain = self.pool.tree.match(sequence.tokens[:-1], sequence.salt) if self.share else []
        known = [node.page for node in chain]
        self.pool.share(known)
        need = -(-sequence.length // self.page_size) - len(known)
        pages = self.pool.take(need) if need + len(self.running) <= self.pool.available else None
        if pages is None:
            self.pool.release(known)
            return False
        sequence.hold(known)
        sequence.hold(pages)
        sequence.shared = len(known)
        sequence.tail = chain[-1] if chain else None
        sequence.cached = len(known) * self.page_size
        if sequence.reused is None:
            sequence.reused = sequence.cached
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_by_arrival)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.let_go())
        self.add(sequence)
        self.preemptions += 1

    def _publish(self, sequence: Sequence) -> None:
        """Put the pages of `sequence` that are full by now into the tree."""
        size, tree = self.page_size, self.pool.tree
        for i in range(sequence.shared, sequence.cached // size):
            page = int(sequence.pages[i])
            node = tree.add(sequence.tail, sequence.tokens[i * size : (i + 1) * size], page, sequence.salt)
            if node.page != page:  # someone else computed the same text meanwhile; one copy is enough
                self.pool.share([node.page])
                self.pool.release([page])
                sequence.replace(i, node.page)
            sequence.tail = node
            sequence.shared = i + 1

    def check(self) -> None:
        """The pool's laws, and: references are those of running sequences, whose shared pages hold their text."""
        self.pool.check()
        held = Counter(page for sequence in self.running for page in sequence.pages.tolist())
        for page in range(self.pool.pages):
            assert held[page] == self.pool.references(page), f"page {page}: references do not match its holders"
        for sequences in (self.waiting, self.running):
            arrivals = [sequence.arrival for sequence in sequences]
            assert arrivals == sorted(set(arrivals)), "sequences are not in the order of arrival"
            assert not any(sequence.finished for sequence in sequences), "a sequence that ended is still here"
        assert len(self.running) <= self.max_sequences, "too many sequences run"
        for sequence in self.waiting:
            assert not len(sequence.pages) and sequence.cached == sequence.shared == 0, "who waits holds pages"
        for sequence in self.running:
            self._check_running(sequence)

    def _check_running(self, sequence: Sequence) -> None:
        size, tree, pages = self.page_size, self.pool.tree, sequence.pages.tolist()
        assert 0 <= sequence.cached < sequence.length <= sequence.limit, "nothing is left to run"
        assert sequence.cached <= len(pages) * size, "more is cached than the pages hold"
        assert sequence.shared * size <= sequence.cached, "a page is shared that is not full"
        assert len(set(pages)) == len(pages), "a page occurs twice in one text"
        chain = tree.match(sequence.tokens[: sequence.shared * size], sequence.salt)
        assert [node.page for node in chain] == pages[: sequence.shared], "a shared page holds another text"
        assert (chain[-1] if chain else None) is sequence.tail, "the tail is not the last shared page"
        for page in pages[sequence.shared :]:
            assert self.pool.references(page) == 1 and page not in tree, f"page {page} is written by one, held by two"
