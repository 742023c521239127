"""What a topic makes: a question and its answer; and the little language that question patterns are written in."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """One question and its answer; `short` is the answer when the system message asks for few words."""

    user: str
    answer: str
    short: str = ""


Topic = Callable[[random.Random], list[Exchange]]


def pick(rng: random.Random, pattern: str) -> str:
    """One reading of `pattern`: `a|b` is a choice, parentheses group, `(|x)` is optional; blanks are tidied."""
    while match := re.search(r"\(([^()]*)\)", pattern):
        # a top-level choice would cut through an open group, so groups are resolved first, innermost first
        pattern = pattern[: match.start()] + rng.choice(match[1].split("|")) + pattern[match.end() :]
    text = " ".join(rng.choice(pattern.split("|")).split())
    return upper_first(text)


def fill(pattern: str, fields: dict[str, str]) -> str:
    """`pattern` with every key of `fields` replaced by its value, in one pass."""
    return re.sub("|".join(fields), lambda match: fields[match[0]], pattern)


def upper_first(text: str) -> str:
    """`text` with a capital letter in front; the rest stays as it is, unlike with `str.capitalize`."""
    return text[0].upper() + text[1:]
