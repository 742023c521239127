"""Text of tokens by and by is the text of all of them, wherever characters are cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

import mlc
from mlc.runtime.detokenize import StreamDecoder
from mlc.runtime.tokenizer import Tokenizer

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


@pytest.mark.parametrize("skip", [True, False])
def test_a_stream_takes_many_tokens_at_once_and_ids_that_nobody_knows(skip: bool) -> None:
    tokenizer = Tokenizer.open(Path(mlc.__file__).parent / "bundled")
    rng, special = random.Random(6), sorted(tokenizer.specials.ids())
    for _ in range(200):
        ids = [rng.choice((rng.randrange(2000), rng.choice(special), 10**9)) for _ in range(20)]
        decoder, text, left = tokenizer.stream_decoder(skip_special=skip), "", ids
        while left:
            count = rng.randrange(1, 9)
            text += decoder.push(left[:count])
            left = left[count:]
        assert text + decoder.flush() == tokenizer.decode(ids, skip_special=skip), ids
