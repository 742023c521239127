"""What a chat template may spend: every operation on data is paid for before it runs, by the size of the data.

A unit is about one character handled or one byte made, so the budget bounds time and memory together, and the same
template on the same messages always ends the same way. A limit of processor time stands behind it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

STEP = 8  # units of the smallest operation
CONTAINER = 64  # units of a list or mapping, its elements apart
ELEMENT = 16  # units of an element that is made; one that is only copied costs COPY
COPY = 4
BASE, PER_UNIT = 1 << 24, 256  # the budget: a base, and so many units for each unit of what the template is given
_LOOK = 1 << 15  # units between two looks at the clock
_REMEMBERED = 4096  # weights kept of containers that the template makes
_VIEWS: tuple[type, ...] = (type({}.items()), type({}.keys()), type({}.values()))

METER: ContextVar[Meter] = ContextVar("METER")  # of the rendering under way on this thread


class Meter:
    """The budget of one rendering. `spend` raises SecurityError when it is used up."""

    def __init__(self, given: Mapping[str, Any], seconds: float) -> None:
        """`given` is what the template is given, JSON data; `seconds` of this thread's processor time."""
        self.left = self.budget = 1 << 62
        self._unseen, self._end = 0, time.thread_time() + seconds
        # weights by id; holding the value keeps the id its own
        self._given, self._made = OrderedDict[int, tuple[Any, int]](), OrderedDict[int, tuple[Any, int]]()
        total = self._weigh(given, self._given)
        self.left = self.budget = BASE + PER_UNIT * total

    def spend(self, units: int) -> None:
        self.left -= units
        self._unseen += units
        if self.left < 0:
            raise SecurityError(f"it needs more than the {self.budget} units of work that these messages allow")
        if self._unseen > _LOOK:
            self._unseen = 0
            if time.thread_time() > self._end:
                raise SecurityError("it takes too long")

    def weight(self, value: Any) -> int:
        """Units that going through all of `value` takes, shared parts counted each time; it may be astronomic.

        Weights of containers are remembered: the sandbox lets nobody change one.
        """
        known = self._given.get(id(value)) or self._made.get(id(value))
        return known[1] if known else self._weigh(value, self._made)

    def size(self, value: Any) -> int:
        """Units that looking at the elements of `value` takes, but not into them."""
        return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 1

    def made(self, value: Any) -> Any:
        """Pay for a value that an operation has made; returns it."""
        if isinstance(value, (list, tuple)):
            self.spend(CONTAINER + COPY * len(value))
        elif isinstance(value, dict):
            self.spend(4 * CONTAINER + 2 * ELEMENT * len(value))
        elif isinstance(value, str):
            self.spend(len(value))
        return value

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same values, each paid for as it is taken."""
        for value in values:
            self.spend(ELEMENT)
            yield value

    def text(self, value: Any) -> str:
        """`str(value)`, paid for."""
        if not isinstance(value, str):
            self.spend(4 * self.weight(value))  # a repr may need escapes
        text = str(value)
        self.spend(len(text))
        return text

    def _weigh(self, value: Any, memory: OrderedDict[int, tuple[Any, int]]) -> int:
        if isinstance(value, str):
            return len(value) + 1
        if isinstance(value, int):
            return value.bit_length() // 3 + 1
        if not isinstance(value, (list, tuple, dict, *_VIEWS)):
            return len(value) if isinstance(value, range) else ELEMENT
        parts: Any = (*value.keys(), *value.values()) if isinstance(value, dict) else value
        self.spend(len(parts))
        total = CONTAINER
        for part in parts:
            known = self._given.get(id(part)) or self._made.get(id(part))
            total += ELEMENT + (known[1] if known else self._weigh(part, memory))
        memory[id(value)] = value, total
        if memory is self._made and len(memory) > _REMEMBERED:
            memory.popitem(last=False)
        return total
