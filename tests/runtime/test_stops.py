"""Stop strings: against the plain definition on the whole text, whatever the pieces it comes in."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mlc.runtime.stops import StopStrings


def stopped(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: grow the text by characters until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def streamed(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    matcher = StopStrings(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.flush()], matcher.found


few = st.text("ab", max_size=6)


@given(st.lists(few, max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_streaming_shows_what_the_definition_shows_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    shown, found = streamed(pieces, stops)
    assert ("".join(shown), found) == stopped("".join(pieces), stops)


@given(st.lists(few, max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_more_is_held_back_than_what_may_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher, text, shown = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        shown += matcher.push(piece)
        if matcher.found is not None:
            return
        held = text[len(shown) :]
        begins = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert len(held) == max(begins, default=0)


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    assert streamed(["The answer", " is 42<", "|e", "nd|", "> and more"], ["<|end|>"]) == (
        ["The answer", " is 42", "", "", "", ""],
        "<|end|>",
    )


def test_a_false_start_is_shown_as_soon_as_it_is_one() -> None:
    assert streamed(["a<", "|e", "x"], ["<|end|>"]) == (["a", "", "<|ex", ""], None)


def test_the_string_that_is_complete_first_wins_and_the_longest_among_equals() -> None:
    assert streamed(["xabc"], ["abc", "b"]) == (["xa", ""], "b")
    assert streamed(["xabc"], ["c", "abc", "bc"]) == (["x", ""], "abc")


def test_nothing_is_shown_after_the_end() -> None:
    matcher = StopStrings(["."])
    assert (matcher.push("a.b"), matcher.push("c"), matcher.flush()) == ("a", "", "")


def test_long_repetitive_stop_strings_cost_constant_time_per_character() -> None:
    stops = ["a" * 1000 + c for c in "bcdefghijklmnopq"]
    begin = time.perf_counter()
    shown, found = streamed(["a" * 20_000], stops)
    assert time.perf_counter() - begin < 5.0  # a naive search takes minutes
    assert found is None and "".join(shown) == "a" * 20_000
