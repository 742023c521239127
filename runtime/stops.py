"""Stop strings in a stream of text: nothing that may yet turn out to begin one is let through."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one text as it grows, in pieces of any size; what it says does not depend on where they are cut.

    The string that is complete first ends the text, the longest if several are complete at the same character. Each
    string is followed by its Knuth-Morris-Pratt automaton: constant work per character, however the strings repeat.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(sorted(stops, key=len, reverse=True))
        self.any = bool(stops)
        self._fallbacks = tuple(_fallbacks(stop) for stop in self._stops)
        self._matched = [0] * len(self._stops)  # characters of each stop string that the text ends with
        self._held = ""
        self.found: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """Add `text`; return what can be shown now. Once `found` is set, nothing more is."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        start = len(self._held) - len(text)
        for end, char in enumerate(text, start + 1):
            for i, stop in enumerate(self._stops):
                if self._step(i, char) == len(stop):
                    self.found = stop
                    shown, self._held = self._held[: end - len(stop)], ""
                    return shown
        keep = max(self._matched)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """The text has ended otherwise: return what was held back."""
        shown, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return shown

    def _step(self, i: int, char: str) -> int:
        stop, matched = self._stops[i], self._matched[i]
        while matched and stop[matched] != char:
            matched = self._fallbacks[i][matched - 1]
        self._matched[i] = matched = matched + (stop[matched] == char)
        return matched


def _fallbacks(stop: str) -> list[int]:
    """`result[i]`: the longest proper prefix of `stop` that `stop[: i + 1]` ends with, in characters."""
    result, length = [0] * len(stop), 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = result[length - 1]
        length += stop[i] == stop[length]
        result[i] = length
    return result
