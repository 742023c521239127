"""What differs between two graphs, as text.

Values are numbered in order of definition, so one inserted node renumbers all that follow. Lines are therefore compared
twice: first without values, to find which value of one text is which of the other; then with the first text renumbered
so. What is shown are the lines as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

_VALUE = re.compile(r"%\d+")
_OPERANDS = re.compile(r"(?<= = )(\w+)\([^)]*\)")


def unified(a: str, b: str, names: tuple[str, str], *, context: int = 3) -> Iterator[str]:
    """The lines of a unified diff of two IR texts, without newlines. Nothing where the graphs are equal."""
    left, right = a.splitlines(), b.splitlines()
    same = _correspondence(left, right)
    renumbered = [_VALUE.sub(lambda m: same.get(m[0], f"{m[0]}'"), line) for line in left]
    groups = list(SequenceMatcher(a=renumbered, b=right, autojunk=False).get_grouped_opcodes(context))
    if groups:
        yield f"--- {names[0]}"
        yield f"+++ {names[1]}"
    for group in groups:
        (_, a1, _, b1, _), (_, _, a2, _, b2) = group[0], group[-1]
        yield f"@@ -{_range(a1, a2)} +{_range(b1, b2)} @@"
        for kind, i1, i2, j1, j2 in group:
            if kind == "equal":
                yield from (f" {line}" for line in right[j1:j2])
                continue
            yield from (f"-{line}" for line in left[i1:i2])
            yield from (f"+{line}" for line in right[j1:j2])


def _correspondence(left: Sequence[str], right: Sequence[str]) -> Mapping[str, str]:
    """Which value of `right` each value of `left` is: their lines look alike, or stand in each other's place."""
    bare = [[_VALUE.sub("%", _OPERANDS.sub(r"\1()", line)) for line in lines] for lines in (left, right)]
    same: dict[str, str] = {}
    for _, i1, i2, j1, j2 in SequenceMatcher(a=bare[0], b=bare[1], autojunk=False).get_opcodes():
        if i2 - i1 != j2 - j1:
            continue
        for one, other in zip(left[i1:i2], right[j1:j2], strict=True):
            ours, theirs = _results(one), _results(other)
            if _VALUE.sub("%", ours) == _VALUE.sub("%", theirs):  # of the same types
                same.update(zip(_VALUE.findall(ours), _VALUE.findall(theirs), strict=True))
    return same


def _results(line: str) -> str:
    """The part of a line that defines values."""
    return line.partition(" = ")[0] if " = " in line else ""


def _range(start: int, stop: int) -> str:
    """First line, counted from 1, and number of lines."""
    return f"{start + 1 if stop > start else start},{stop - start}"
