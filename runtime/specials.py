"""Special tokens in text: where they are, and how text of a user is kept from becoming one.

A chat template writes special tokens as text (`<|im_end|>`), so what it rendered is cut at them, and each becomes its
id. A message may hold the same text, and must not end the user's turn by it. `shield` therefore puts a mark wherever a
special token begins in a message, and at the message's ends where they could complete one together with a neighbour;
the template runs on the shielded messages, so that no special token is found in them afterwards; `unshield` then takes
the marks out, and the text is tokenized as ordinary text. Marks are noncharacters of Unicode, which no text may use for
anything else; one that does use them comes back unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

_ESCAPE = "\ufdd0"
_BREAK = f"{_ESCAPE}\ufdd1"  # stands for nothing
_LITERAL = f"{_ESCAPE}\ufdd2"  # stands for _ESCAPE
_CODE = f"{_ESCAPE}\ufdd3"  # and six hex digits: stands for that character
_MARKS = re.compile(f"{_ESCAPE}(?:\ufdd1|(\ufdd2)|\ufdd3(0[0-9a-f]{{5}}|10[0-9a-f]{{4}}))?")


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token, and which blanks beside it belong to it."""

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False  # only where no letter, digit or underscore touches it


class Specials:
    """The special tokens of one tokenizer. Immutable."""

    def __init__(self, tokens: Iterable[SpecialToken] = ()) -> None:
        self._tokens = {token.content: token for token in tokens if token.content}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._contents = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._pattern = re.compile(self._contents)

    def ids(self) -> frozenset[int]:
        return frozenset(token.id for token in self._tokens.values())

    def split(self, text: str) -> Iterator[str | int]:
        """The ids of the special tokens in `text` and the non-empty texts between them, in order.

        The leftmost is found first and the longest of those, as the tokenizers library does.
        """
        end = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match[0]]
            start, stop = match.span()
            if start < end or (token.single_word and _touches_word(text, start, stop)):
                continue
            if token.lstrip:
                start = max(end, len(text[:start].rstrip()))
            if start > end:
                yield text[end:start]
            yield token.id
            end = len(text) - len(text[stop:].lstrip()) if token.rstrip else stop
        if end < len(text):
            yield text[end:]

    def shield(self, text: str) -> str:
        """`text` with marks, so that `split` finds no special token in it, wherever a template puts it."""
        text = text.replace(_ESCAPE, _LITERAL)
        text = self._singles.sub(lambda match: f"{_CODE}{ord(match[0]):06x}", text)
        text = self._starts.sub(rf"\g<0>{_BREAK}", text)
        for end in (len(text), len(text.rstrip())):  # templates often trim what they are given
            if self._is_part(text[max(0, end - self._longest) : end], self._beginnings, from_end=True):
                text = text[:end] + _BREAK + text[end:]
        for start in (len(text) - len(text.lstrip()), 0):
            if self._is_part(text[start : start + self._longest], self._endings, from_end=False):
                text = text[:start] + _BREAK + text[start:]
        return text

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """The first character of every special token, overlapping ones too."""
        return re.compile(rf"(?={self._contents}).", re.DOTALL)

    @cached_property
    def _singles(self) -> re.Pattern[str]:
        """The special tokens of one character, in which no mark fits."""
        return re.compile("|".join(re.escape(c) for c in self._tokens if len(c) == 1) or r"(?!)")

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(c[:i] for c in self._tokens for i in range(1, len(c)))

    @cached_property
    def _endings(self) -> frozenset[str]:
        return frozenset(c[i:] for c in self._tokens for i in range(1, len(c)))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._tokens), default=0)

    def _is_part(self, text: str, parts: frozenset[str], *, from_end: bool) -> bool:
        """Whether `text` begins, or ends, with one of `parts`."""
        return any((text[-n:] if from_end else text[:n]) in parts for n in range(1, len(text) + 1))


def unshield(text: str) -> str:
    """The text that was shielded. Marks that a template cut in two are dropped."""
    if _ESCAPE not in text:
        return text
    return _MARKS.sub(lambda m: _ESCAPE if m[1] else chr(int(m[2], 16)) if m[2] else "", text)


def unescape_marks(text: str) -> str:
    """JSON text in ASCII with the marks themselves instead of their escapes, so that `unshield` finds them."""
    return re.sub(r"\\(?:ufdd([0-3])|.)", lambda m: chr(0xFDD0 + int(m[1])) if m[1] else m[0], text)


def _touches_word(text: str, start: int, stop: int) -> bool:
    return bool(re.match(r"\w", text[max(0, start - 1) : start]) or re.match(r"\w", text[stop : stop + 1]))
