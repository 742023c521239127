"""How tokens spell bytes, and how bytes that arrive token by token become text."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from mlc.errors import UnsupportedModel

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """The decoder of a tokenizer, as a rule for single tokens: what bytes a token's name stands for.

    Understood are byte-level BPE (each character of a name is a byte) and SentencePiece (`▁` is a blank, `<0x0A>` a
    byte), in the forms that tokenizer.json has for them.
    """

    def __init__(self, decoder: Any, source: str) -> None:
        """`decoder` is a decoder of the tokenizers library, or None. Raises UnsupportedModel."""
        self.byte_level = self.byte_fallback = self.strips_blank = False
        self.replaced: list[tuple[str, str]] = []
        state = None if decoder is None else json.loads(decoder.__getstate__())
        for step in [] if state is None else state["decoders"] if state["type"] == "Sequence" else [state]:
            if not self._understands(step):
                raise UnsupportedModel(
                    f"{source}: tokenizer.json has the decoder {json.dumps(step)[:120]}, which mlc does not know; "
                    "it knows byte-level BPE and SentencePiece with byte fallback"
                )

    def bytes(self, token: str) -> bytes:
        """The bytes of the token called `token`."""
        if self.byte_level:
            table = byte_of_character()
            codes = [table.get(character) for character in token]
            return bytes(c for c in codes if c is not None) if None not in codes else token.encode()
        if self.byte_fallback and (match := _BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token.encode()

    def _understands(self, step: Mapping[str, Any]) -> bool:
        match step:
            case {"type": "ByteLevel"}:
                self.byte_level = True
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                self.replaced.append((old, new))
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                self.strips_blank = True
            case {"type": "Metaspace", "replacement": str(blank), "prepend_scheme": scheme}:
                self.replaced.append((blank, " "))
                self.strips_blank = scheme != "never"
            case _:
                return False
        return True


@cache
def byte_of_character() -> Mapping[str, int]:
    """The printable character by which GPT-2's byte-level BPE writes each byte (its encoder.py, bytes_to_unicode)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


class StreamDecoder:
    """Text of tokens that arrive by and by; a character is given out when its last byte is there.

    What `push` and `flush` return, put together, is what the tokenizer's `decode` makes of all tokens at once.
    """

    def __init__(self, spell: Callable[[Sequence[int]], bytes], strips_blank: bool) -> None:
        """`spell` gives the bytes of tokens; `strips_blank`: the text loses one blank at its start."""
        self._spell, self._strips = spell, strips_blank
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._whole = True  # no character is unfinished

    def push(self, ids: Sequence[int]) -> str:
        """The characters that the tokens `ids` complete; of one token often none, sometimes several."""
        data = self._spell(ids)
        if self._whole and data.isascii():
            return self._given(data.decode()) if self._strips else data.decode()
        text = self._decoder.decode(data)
        self._whole = not self._decoder.getstate()[0]
        return self._given(text)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for the bytes of an unfinished character."""
        return self._given(self._decoder.decode(b"", final=True))

    def _given(self, text: str) -> str:
        if not self._strips or not text:
            return text
        self._strips = False
        return text.removeprefix(" ")
