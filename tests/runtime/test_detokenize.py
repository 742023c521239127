"""Text of tokens by and by is the text of all of them, wherever characters are cut."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mlc.runtime.detokenize import StreamDecoder

PIECES = [b"", b"a", b" b", b"\n", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"\xf0\x9f", b"\x98\x80", b"\xff"]


def spell(ids: Sequence[int]) -> bytes:
    return b"".join(PIECES[id] for id in ids)


@pytest.mark.parametrize("strips", [False, True])
def test_pieces_of_bytes_become_the_text_of_all(strips: bool) -> None:
    rng = random.Random(0)
    for _ in range(500):
        ids = rng.choices(range(len(PIECES)), k=rng.randrange(12))
        decoder, text, left = StreamDecoder(spell, strips), "", ids
        while left:
            count = rng.randrange(1, 4)
            text += decoder.push(left[:count])
            left = left[count:]
        text += decoder.flush()
        whole = b"".join(PIECES[id] for id in ids).decode("utf-8", "replace")
        assert text == (whole.removeprefix(" ") if strips else whole), ids
