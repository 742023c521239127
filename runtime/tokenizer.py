"""Text to token ids and back.

A tokenizer is read from the files that a Hugging Face checkpoint has: tokenizer.json, tokenizer_config.json,
special_tokens_map.json, generation_config.json. Text is never scanned for special tokens unless the caller says so
(see `specials`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mlc.errors import BadCheckpoint, InvalidRequest

from .detokenize import Spelling, StreamDecoder
from .specials import Specials, SpecialToken, unshield

__all__ = ["StreamDecoder", "Tokenizer"]

_MAX_FILE = 256 << 20  # bytes; the largest known have 35 MB


class Tokenizer:
    """Thread-safe and immutable. Use `Tokenizer.open`."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any], source: str) -> None:
        """`settings` has the keys of tokenizer_config.json. Raises BadCheckpoint, UnsupportedModel."""
        self.source = source
        backend.no_padding()
        backend.no_truncation()
        _mark_special(backend, settings)
        backend.encode_special_tokens = True  # special tokens in text are text; `specials` finds the others
        self._backend = backend
        self._spelling = Spelling(backend.decoder, source)
        self.specials = Specials(
            SpecialToken(token.content, id, token.lstrip, token.rstrip, token.single_word)
            for id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._bytes: dict[int, bytes] = {}  # of the tokens that were asked for
        self.bos_token, self.bos_id = self._named(settings, "bos_token")
        self.eos_token, self.eos_id = self._named(settings, "eos_token")
        self.add_bos = self._adds_bos(settings)
        self.eos_ids = frozenset(self._end_ids(settings))

    @staticmethod
    def open(folder: Path) -> Tokenizer:
        """The tokenizer in `folder`. Raises BadCheckpoint, UnsupportedModel."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            found = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).is_file()]
            hint = f", only {', '.join(found)}" if found else ""
            raise BadCheckpoint(
                f"{folder} has no tokenizer.json{hint}; make one with "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in transformers"
            )
        settings = read_object(folder / "special_tokens_map.json") | read_object(folder / "tokenizer_config.json")
        ends = (read_object(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json"))
        settings["eos_token_id"] = next((end for end in ends if end is not None), None)
        return Tokenizer(_load(path), settings, str(folder))

    def encode(self, text: str, special: bool = False, *, bos: bool | None = None) -> list[int]:
        """The ids of `text`; those of special tokens in it only if `special`.

        `bos`: begin with `bos_id`; None: as the model wants its texts to begin (`add_bos`). Raises InvalidRequest
        where the text is no valid Unicode.
        """
        _check_text(text)
        ids = self._encode_with_specials(text) if special else self._ids(text, first=True)
        return self._begun(ids, self.add_bos if bos is None else bos)

    def encode_chat(self, text: str) -> list[int]:
        """The ids of a text that a chat template rendered, special tokens included, with one `bos_id` if `add_bos`."""
        _check_text(text)
        return self._begun(self._encode_with_specials(text), self.add_bos)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids that the tokenizer lacks are nothing."""
        data = b"".join(self._piece(id, skip_special) for id in ids).decode("utf-8", "replace")
        return data[1:] if self._spelling.strips_blank and data.startswith(" ") else data

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes of one token, of special tokens too; empty for an id that the tokenizer lacks."""
        known = self._bytes.get(id)
        if known is not None:
            return known
        token = self._backend.id_to_token(id) if 0 <= id < 1 << 32 else None
        if token is None:
            return b""
        return self._bytes.setdefault(id, self._spelling.bytes(token))

    def stream_decoder(self, *, skip_special: bool = True, continues: bool = False) -> StreamDecoder:
        """A decoder for ids that arrive one by one.

        `continues`: they continue a text, so that a blank at their start is kept where `decode` would drop it.
        """
        strips = self._spelling.strips_blank and not continues
        return StreamDecoder(self._shown if skip_special else self._exact, strips)

    def _piece(self, id: int, skip_special: bool) -> bytes:
        return b"" if skip_special and id in self._special_ids else self.token_bytes(id)

    def _begun(self, ids: list[int], bos: bool) -> list[int]:
        if not bos or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def _encode_with_specials(self, text: str) -> list[int]:
        ids: list[int] = []
        start = True
        for part in self.specials.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._ids(unshield(part), first=start)
            start = False
        return ids

    def _ids(self, text: str, *, first: bool) -> list[int]:
        """The ids of ordinary text. `first`: it is what a text begins with, which some tokenizers mark by a blank."""
        backend = self._backend if first else self._later
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _later(self) -> tokenizers.Tokenizer:
        """The same tokenizer for text that follows a special token: without the blank that only begins a text."""
        own = self._backend.pre_tokenizer
        spec = None if own is None else json.loads(own.__getstate__())
        if not _set_never(spec):
            return self._backend
        whole = json.loads(self._backend.to_str())
        later = tokenizers.Tokenizer.from_str(json.dumps(whole | {"pre_tokenizer": spec}))
        later.encode_special_tokens = True
        return later

    @cached_property
    def _shown(self) -> _Spelled:
        return _Spelled(self._backend.get_vocab_size(), lambda id: self._piece(id, True))

    @cached_property
    def _exact(self) -> _Spelled:
        return _Spelled(self._backend.get_vocab_size(), self.token_bytes)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return self.specials.ids()

    def _named(self, settings: Mapping[str, Any], name: str) -> tuple[str, int | None]:
        """The content and id of a token that the settings name; ("", None) where they do not."""
        content = token_content(settings.get(name), f"{self.source}: {name}")
        if content is None:
            return "", None
        id = self._backend.token_to_id(content)
        if id is None:
            raise BadCheckpoint(f"{self.source}: {name} is {content!r}, which the vocabulary lacks")
        return content, id

    def _adds_bos(self, settings: Mapping[str, Any]) -> bool:
        if self.bos_id is None:
            return False
        if isinstance(chosen := settings.get("add_bos_token"), bool):
            return chosen
        ids: list[int] = self._backend.encode("", add_special_tokens=True).ids
        return ids[:1] == [self.bos_id]

    def _end_ids(self, settings: Mapping[str, Any]) -> list[int]:
        ids = settings.get("eos_token_id")
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(id) is int and id >= 0 for id in ids):
            raise BadCheckpoint(f"{self.source}: eos_token_id must be a token id or a list of them, got {ids!r}")
        return ids + ([] if self.eos_id is None else [self.eos_id])


class _Spelled:
    """The bytes of every token, each made when it is first wanted."""

    def __init__(self, count: int, make: Callable[[int], bytes]) -> None:
        self._pieces: list[bytes | None] = [None] * count  # a list: looking up costs less than the hash of a dict
        self._make = make

    def __call__(self, ids: Sequence[int]) -> bytes:
        """The bytes of the tokens `ids`, 0 or more each, put together."""
        try:
            return b"".join(map(self._pieces.__getitem__, ids))  # type: ignore[arg-type]
        except (TypeError, IndexError):
            return b"".join(map(self._piece, ids))

    def _piece(self, id: int) -> bytes:
        if id >= len(self._pieces):
            return self._make(id)
        piece = self._pieces[id]
        if piece is None:
            piece = self._pieces[id] = self._make(id)
        return piece


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty where there is no such file. Raises BadCheckpoint."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_FILE:
            raise BadCheckpoint(f"{path} has {path.stat().st_size} bytes; at most {_MAX_FILE} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def token_content(value: Any, place: str) -> str | None:
    """The text of a token in a config: a string, or an object with `content`. Raises BadCheckpoint."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise BadCheckpoint(f"{place} must be a string or an object with content, got {str(value)[:60]!r}")
    return value or None


def _load(path: Path) -> tokenizers.Tokenizer:
    if path.stat().st_size > _MAX_FILE:
        raise BadCheckpoint(f"{path} has {path.stat().st_size} bytes; at most {_MAX_FILE} are read")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise BadCheckpoint(f"{path} is no tokenizer: {str(error)[:300]}; download it again") from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a Rust panic, which is no Exception
            raise BadCheckpoint(f"{path} is no tokenizer: {str(error)[:300]}; download it again") from None
        raise


def _mark_special(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Tokens that only tokenizer_config.json calls special are special too. Raises BadCheckpoint."""
    contents = [token_content(settings.get(name), name) for name in ("bos_token", "eos_token")]
    table = settings.get("added_tokens_decoder")
    added = dict[int, tokenizers.AddedToken]()
    for id, entry in table.items() if isinstance(table, dict) else ():
        if not str(id).isdecimal() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise BadCheckpoint(f"tokenizer_config.json: added_tokens_decoder has the entry {str(id)[:60]!r}: no token")
        flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        added[int(id)] = tokenizers.AddedToken(entry["content"], **flags)
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for _, token in sorted(added.items()):
        if token.content in known or (not token.special and backend.token_to_id(token.content) is not None):
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        known.add(token.content)
    missing = [c for c in contents if c is not None and c not in known and backend.token_to_id(c) is not None]
    backend.add_special_tokens([tokenizers.AddedToken(c, special=True, normalized=False) for c in missing])


def _set_never(node: Any) -> bool:
    """Replace every prepend_scheme `first` in a pre-tokenizer's spec by `never`; tells whether there was one."""
    if isinstance(node, list):
        return any([_set_never(item) for item in node])
    if not isinstance(node, dict):
        return False
    found = node.get("prepend_scheme") == "first"
    if found:
        node["prepend_scheme"] = "never"
    return any([found, *map(_set_never, node.values())])


def _check_text(text: str) -> None:
    """Raises InvalidRequest for lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the text has a lone surrogate at character {error.start}; send valid Unicode") from None
