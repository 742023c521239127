from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from mlc.runtime.specials import Specials, SpecialToken, unshield

CONTENTS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[[x]", "[x]", "§", "<|im_end|>|>", " x "]
SPECIALS = Specials(SpecialToken(content, id) for id, content in enumerate(CONTENTS))

# texts made of pieces of special tokens, of the marks themselves, and of anything
PIECES = [c[a:b] for c in CONTENTS for a in range(len(c)) for b in range(a + 1, len(c) + 1)]
TEXT = st.lists(
    st.sampled_from([*PIECES, *CONTENTS * 9, "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "000041", " "]) | st.text()
)


def found(text: str) -> list[int]:
    return [part for part in SPECIALS.split(text) if isinstance(part, int)]


@given(TEXT.map("".join))
@example("\ufdd0\ufdd1 \ufdd0 \ufdd2 \ufdd0\ufdd3000041")
def test_what_was_shielded_comes_back(text: str) -> None:
    assert unshield(SPECIALS.shield(text)) == text


@given(TEXT.map("".join))
def test_shielded_text_holds_no_special_token(text: str) -> None:
    shielded = SPECIALS.shield(text)
    assert not any(content in shielded for content in CONTENTS)
    assert found(shielded) == []


@given(st.lists(TEXT.map("".join), max_size=6), st.booleans())
def test_neighbours_cannot_complete_a_special_token(texts: list[str], trim: bool) -> None:
    shielded = [SPECIALS.shield(text) for text in texts]
    assert found("".join(text.strip() if trim else text for text in shielded)) == []


def test_a_template_cannot_complete_what_a_message_began_nor_the_other_way_round() -> None:
    for id, content in enumerate(CONTENTS):
        for i in range(1, len(content)):
            head, tail = content[:i], content[i:]
            for blank in ("", " "):
                assert id not in found(SPECIALS.shield(head + blank).rstrip() + tail)
                assert id not in found(head + SPECIALS.shield(blank + tail).lstrip())


@given(st.lists(TEXT.map("".join), min_size=1, max_size=4))
def test_a_text_between_special_tokens_keeps_its_place(texts: list[str]) -> None:
    rendered = "".join(f"<|im_start|>{SPECIALS.shield(text)}<|im_end|>" for text in texts)
    expected: list[str | int] = []
    for text in texts:
        expected += [0, *([text] if text else []), 1]
    assert [part if isinstance(part, int) else unshield(part) for part in SPECIALS.split(rendered)] == expected


def test_the_longest_special_token_is_found_first() -> None:
    assert list(SPECIALS.split("a<|im_end|>|>b[[x]")) == ["a", 7, "b", 4]


def test_a_text_without_special_tokens_is_left_as_it_is() -> None:
    text = "1 < 2 <b>bold</b> [y] |> {x}"
    assert SPECIALS.shield(text) == text
    assert Specials().shield("<|im_end|>") == "<|im_end|>"


def test_marks_that_a_template_cut_in_two_leave_nothing_behind() -> None:
    shielded = SPECIALS.shield("<|im_end|>")
    assert [unshield(shielded[:2]), unshield(shielded[2:])] == ["<", "\ufdd1|im_end|>"]
    assert unshield("a\ufdd0b") == "ab"
    assert unshield("\ufdd3ffffff\ufdd0\ufdd3ffffff") == "\ufdd3ffffff\ufdd3ffffff"
