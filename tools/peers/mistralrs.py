"""mistral.rs on a GGUF file, or on a checkpoint folder: texts of an exact number of tokens, streams in one batch.

Options (`--vs-set`): isq off or a type into which it quantizes weights as it loads them (off is the default), kv f16 or
f32 (f16 is its own choice).
"""

from __future__ import annotations

import os
import string
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, ClassVar

from .base import BasePeer, Option, Timer

os.environ |= {"HF_HUB_OFFLINE": "1", "RUST_LOG": "error"}  # read when the library is loaded
import mistralrs

_TEMPLATE = "{{ messages[0]['content'] }}"  # a chat is its first message and nothing else
_IDS = 1 << 24  # above every vocabulary
_STREAMS = 16
_CACHED = 2 * _STREAMS  # texts whose keys and values are kept: what a round needs, and what it leaves
_BLOCKER = "1" * 16  # read while the texts of a batch are handed over
_SAME = 0.01  # seconds by which clocks of a batch may differ
_TRIES = 8
_UNTIMED = nullcontext()


class Peer(BasePeer):
    name = "mistralrs"
    known: ClassVar = {
        "isq": Option("off", ("off", "q4_0", "q4_1", "q8_0", "q4k", "q5k", "q6k", "afq4", "afq8", "hqq4", "hqq8")),
        "kv": Option("f16", ("f16", "f32")),
    }

    def about(self) -> dict[str, str]:
        return {"name": "mistral.rs", "version": f"mistralrs {version('mistralrs')}"}

    def load(self, model: str) -> dict[str, Any]:
        path = Path(model)
        if path.suffix == ".gguf":
            which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        elif (path / "config.json").is_file():
            which = mistralrs.Which.Plain(model_id=model)
        else:
            raise ValueError(f"{model} is neither a GGUF file nor a folder with a config.json; see docs/PERFORMANCE.md")
        for variable in ("CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[variable] = str(self.threads)
        os.environ["MISTRALRS_CPU_KV_F32"] = str(int(self.options["kv"] == "f32"))
        with NamedTemporaryFile("w", suffix=".jinja") as template:
            template.write(_TEMPLATE)
            template.flush()
            self.runner = mistralrs.Runner(
                which,
                max_seqs=_STREAMS + 1,
                prefix_cache_n=_CACHED,
                token_source="none",
                jinja_explicit=template.name,
                in_situ_quant=None if self.options["isq"] == "off" else self.options["isq"],
            )
        self.heads = cycle(string.ascii_letters)  # more than texts are kept, so no text begins like one of those
        self.vocab = bisect_left(range(_IDS), True, key=lambda token: not self.runner.detokenize_text([token], False))
        return {"vocab": self.vocab}

    def prepare(self, context: int, streams: int, settings: Mapping[str, str]) -> None:
        """Nothing: the cache grows by itself. Raises ValueError for more streams than texts that can be kept."""
        if streams > _STREAMS:
            raise ValueError(f"mistral.rs can be timed with at most {_STREAMS} streams, not {streams}")

    def prefill(self, span: Timer, prompt: Sequence[int]) -> None:
        self._write([self._text(prompt, len(prompt))], len(prompt), 1, reading=span)

    def fill(self, prompts: Sequence[Sequence[int]]) -> None:
        """All but the last token, which is another one in each `decode`: a text that is kept as a whole is read again.

        One after the other, because it cannot read several texts of more tokens at once where the head is quantized.
        """
        self.depth = len(prompts[0])
        self.texts = [self._text(prompt, self.depth - 1) for prompt in prompts]
        self.endings = [cycle(self._endings(text)) for text in self.texts]
        for text in self.texts:
            if text:
                self._write([text], self.depth - 1, 1)

    def decode(self, span: Timer, tokens: int) -> None:
        for _ in range(_TRIES):
            texts = [text + next(endings) for text, endings in zip(self.texts, self.endings, strict=True)]
            if self._write(texts, self.depth, tokens + 1, writing=span) and self._began(texts, tokens + 1):
                return
        raise RuntimeError(
            f"mistral.rs did not begin {len(texts)} answers together, or their first tokens have no text, so that it "
            f"does not tell when they are there ({_TRIES} tries); choose another --depth"
        )

    def _text(self, tokens: Sequence[int], wanted: int) -> str:
        """A text of exactly so many tokens (not these: no ids can be handed over). Raises RuntimeError.

        Numbers on lines: a letter that follows is joined to blanks and letters, but not to digits or the end of a line.
        """
        words = "\n".join((next(self.heads), *map(str, tokens)))
        text = words[: bisect_left(range(len(words)), wanted, key=lambda end: self._count(words[:end]))]
        if self._count(text) != wanted:
            raise RuntimeError(f"mistral.rs makes {self._count(text)} tokens of a text that should have {wanted}")
        return text

    def _endings(self, text: str) -> list[str]:
        """Letters that are one token more after this text, and change no other. Raises RuntimeError."""
        ids = self._ids(text)
        found = [letter for letter in string.ascii_letters if self._ids(text + letter)[:-1] == ids]
        if not found:
            raise RuntimeError(f"mistral.rs joins each letter to a text of {len(ids)} tokens")
        return found

    def _ids(self, text: str) -> list[int]:
        return self.runner.tokenize_text(text, True, None)  # type: ignore[no-any-return]

    def _count(self, text: str) -> int:
        """Tokens."""
        return len(self._ids(text))

    def _write(
        self,
        texts: Sequence[str],
        length: int,
        tokens: int,
        *,
        reading: Timer = _UNTIMED,
        writing: Timer = _UNTIMED,
    ) -> bool:
        """Answer each text of that length. `reading` ends with the first token of each, `writing` with the last.

        Returns whether they were one batch: what waits when a step ends is read together, so before several texts comes
        a short one.
        """
        blocker = self._request(_BLOCKER, 1) if len(texts) > 1 else iter(())
        with reading:
            streams = [self._request(text, tokens) for text in texts]
            pieces = [[next(stream)] for stream in streams]
        with writing:
            for written, stream in zip(pieces, streams, strict=True):
                written += stream
        list(blocker)
        self.written = ["".join(piece.choices[0].delta.content or "" for piece in written) for written in pieces]
        self.pieces = [len(written) for written in pieces]
        told = [written[-1].usage for written in pieces]
        if {(usage.prompt_tokens, usage.completion_tokens) for usage in told} != {(length, tokens)}:
            raise RuntimeError(f"mistral.rs did not read {length} tokens, or did not write {tokens}")
        read: list[float] = [usage.total_prompt_time_sec for usage in told]
        return max(read) - min(read) <= _SAME

    def _began(self, texts: Sequence[str], tokens: int) -> bool:
        """Whether the first token of each answer came by itself: one without text, or with a part of a character, comes
        with the next.
        """
        return all(
            pieces == tokens or len(list(self._request(text, 2))) == 2
            for text, pieces in zip(texts, self.pieces, strict=True)
        )

    def _request(self, text: str, tokens: int) -> Iterator[Any]:
        """The pieces of an answer of exactly that many tokens, as they come."""
        return self.runner.send_chat_completion_request(  # type: ignore[no-any-return]
            mistralrs.ChatCompletionRequest(
                model="default", messages=text, max_tokens=tokens, temperature=0.0, ignore_eos=True, stream=True
            )
        )
