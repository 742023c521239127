"""What peers have in common: options that are checked, and one of them chosen by a short trial."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

Timer = AbstractContextManager[Any]
"""Times a block; see `serve.Span`."""

_TRIAL = {"prefill": (256, 0), "decode": (128, 8)}  # tokens to read, steps to write


@dataclass(frozen=True, slots=True)
class Option:
    """An option of `--vs-set`: one of the words, or where it is a number, a whole one above 0."""

    default: str
    words: tuple[str, ...] = ()
    number: bool = False

    def allows(self, value: str) -> bool:
        return value in self.words or (self.number and value.isdecimal() and int(value) > 0)

    @property
    def expected(self) -> str:
        return " or ".join((*self.words, *(["a whole number above 0"] if self.number else [])))


SWITCH_ON = Option("on", ("on", "off"))


class BasePeer(ABC):
    """The orders that `serve.py` describes, as far as peers obey them alike."""

    name: ClassVar[str]
    known: ClassVar[Mapping[str, Option]]
    tried: ClassVar[str] = ""  # the option that may be `trial`, if one may
    candidates: ClassVar[Mapping[str, Sequence[str]]] = {}  # prefill or decode -> the values that a trial chooses from

    options: Mapping[str, str]
    threads: int
    vocab: int  # tokens

    def open(self, model: str, threads: int, options: Mapping[str, str]) -> dict[str, Any]:
        """Raises ValueError for options that do not exist, and what the library raises for models it cannot load."""
        self.options, self.threads = self._checked(options), threads
        return self.load(model)

    def setup(self, kind: str, context: int, streams: int) -> dict[str, Any]:
        settings = dict(self.options)
        if settings.get(self.tried) == "trial":
            several = [{**settings, self.tried: value} for value in self.candidates[kind]]
            settings = several[0]
            if len(several) > 1:
                settings = min(several, key=lambda one: self._trial(kind, context, streams, one))
        self.prepare(context, streams, settings)
        return {**settings, "threads": self.threads}

    @abstractmethod
    def about(self) -> dict[str, str]: ...

    @abstractmethod
    def load(self, model: str) -> dict[str, Any]:
        """Load the model at this path and set `vocab`; answers what is known of it."""

    @abstractmethod
    def prepare(self, context: int, streams: int, settings: Mapping[str, str]) -> None:
        """Make room for `streams` sequences of `context` tokens each."""

    @abstractmethod
    def prefill(self, span: Timer, prompt: Sequence[int]) -> None: ...

    @abstractmethod
    def fill(self, prompts: Sequence[Sequence[int]]) -> None: ...

    @abstractmethod
    def decode(self, span: Timer, tokens: int) -> None: ...

    def _trial(self, kind: str, context: int, streams: int, settings: Mapping[str, str]) -> float:
        """Seconds of a little of what will be measured."""
        self.prepare(context, streams, settings)
        tokens, steps = _TRIAL[kind]
        room = context - 1  # for all but the token that follows the prompt
        steps = min(steps, room - 1)
        length = max(1, min(tokens // streams, room - steps))
        began = time.perf_counter()
        self.fill([[(7 * i + s) % self.vocab for i in range(length)] for s in range(streams)])
        if kind == "decode":
            began = time.perf_counter()
            self.decode(nullcontext(), steps)
        return time.perf_counter() - began

    def _checked(self, options: Mapping[str, str]) -> dict[str, str]:
        """The options with their defaults. Raises ValueError."""
        for name, value in options.items():
            if name not in self.known:
                raise ValueError(f"{self.name} has no option {name}; there are {', '.join(self.known)}")
            if not self.known[name].allows(value):
                raise ValueError(f"{name} is {value}; expected {self.known[name].expected}")
        return {name: option.default for name, option in self.known.items()} | dict(options)
