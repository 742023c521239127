from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, pre_tokenizers

from mlc.errors import BadCheckpoint, InputError, InvalidRequest, UnsupportedModel
from mlc.frontend.checkpoints.gguf import Gguf
from mlc.frontend.checkpoints.gguf_tokenizer import WORDS, write_tokenizer
from mlc.runtime.tokenizer import Tokenizer

VOCABULARIES = {
    name: f"llama.cpp-vocabs/ggml-vocab-{name}.gguf" for name in ("llama-spm", "phi-3", "gpt-2", "deepseek-coder")
} | {"stories260k": "stories260k/stories260K-f32.gguf"}

TEXTS = [
    "", " ", "  ", "Hello world", " Hello  world ", "\n\n\t x", "naïve café — 你好世界 🦙👩\u200d👩\u200d👧",
    "3.14159 ½", "1000000", "a" * 50, "def f(x):\n    return x**2  # ok\n", "<s></s><|endoftext|><|im_end|>",
    "▁x<0x0A>", "e\u0301\u200d\u0000", "\u017f's I'LL it\u017f",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tokenizer files written for a GGUF vocabulary."""
    written: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in written:
            written[name] = tmp_path_factory.mktemp(name)
            write_tokenizer(Gguf(assets / VOCABULARIES[name]).metadata(), written[name])
        return written[name]

    return write


@pytest.fixture(scope="module")
def opened(folder: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    known: dict[str, Tokenizer] = {}
    return lambda name: known[name] if name in known else known.setdefault(name, Tokenizer.open(folder(name)))


# ids


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "deepseek-coder"])
def test_ids_are_those_of_llama_cpp(name: str, assets: Path, opened: Callable[[str], Tokenizer]) -> None:
    path = assets / VOCABULARIES[name]
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(id) for id in line.split()] for line in path.with_suffix(".gguf.out").read_text().split("\n")]
    tokenizer = opened(name)
    assert len(texts) == len(expected) == 47
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, bos=False) == ids, text


def merge_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """SentencePiece's BPE as llama.cpp does it: merge the neighbours whose piece scores best, the leftmost first."""
    parts: list[str | None] = list(text)
    after, before = list(range(1, len(text) + 1)), list(range(-1, len(text) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def push(left: int, right: int) -> None:
        if left >= 0 and right < len(parts):
            piece = f"{parts[left]}{parts[right]}"
            if piece in scores:
                heapq.heappush(queue, (-scores[piece], left, right, piece))

    for i in range(len(text) - 1):
        push(i, i + 1)
    while queue:
        _, left, right, piece = heapq.heappop(queue)
        if parts[left] is None or parts[right] is None or f"{parts[left]}{parts[right]}" != piece:
            continue
        parts[left], parts[right] = piece, None
        after[left] = after[right]
        if after[right] < len(parts):
            before[after[right]] = left
        push(before[left], left)
        push(left, after[left])
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("name", ["llama-spm", "stories260k"])
def test_sentencepiece_merges_happen_in_the_order_of_their_scores(
    name: str, assets: Path, opened: Callable[[str], Tokenizer]
) -> None:
    metadata = Gguf(assets / VOCABULARIES[name]).metadata()
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = {t: s for t, s, k in zip(tokens, metadata["tokenizer.ggml.scores"], kinds, strict=True) if k == 1}
    ids = {t: i for i, t in enumerate(tokens)}
    tokenizer = opened(name)
    rng = random.Random(0)
    words = [*(assets / "text/cs336/tinystories_sample.txt").read_text().split(), "  ", "    ", "\n", "é", "🦙"]
    for _ in range(300):
        text = rng.choice(["", " "]).join(rng.choice(words) for _ in range(rng.randrange(1, 12)))
        expected = []
        for piece in merge_by_score("▁" + text.replace(" ", "▁"), scores):
            expected += [ids[piece]] if piece in scores else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        assert tokenizer.encode(text, bos=False) == expected, text


def cut(expressions: tuple[str, ...], text: str) -> list[str]:
    steps = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions]
    return [text[a:b] for _, (a, b) in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def test_words_are_cut_as_transformers_cuts_them() -> None:
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    qwen2 = Qwen2Tokenizer(vocab={"a": 0}, merges=[])._tokenizer.pre_tokenizer
    llama3 = pre_tokenizers.Split(Regex(TikTokenConverter(vocab_file=None).pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    smollm = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    for name, theirs in {"qwen2": qwen2, "llama-bpe": llama3, "gpt-2": byte_level, "smollm": smollm}.items():
        for text in TEXTS:
            assert cut(WORDS[name], text) == [text[a:b] for _, (a, b) in theirs.pre_tokenize_str(text)], (name, text)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_user_text_never_becomes_a_special_token(name: str, opened: Callable[[str], Tokenizer]) -> None:
    tokenizer = opened(name)
    specials = [tokenizer.token_bytes(id).decode() for id in sorted(tokenizer.specials.ids())]
    assert specials
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choice([*specials[:40], " ", "x", "<", "|>"]) for _ in range(rng.randrange(1, 8)))
        assert not tokenizer.specials.ids() & set(tokenizer.encode(text, bos=False)), text
        assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


def reference(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_rendered_text_is_tokenized_as_the_library_does(
    name: str, folder: Callable[[str], Path], opened: Callable[[str], Tokenizer]
) -> None:
    theirs, ours = reference(folder(name)), opened(name)
    specials = [ours.token_bytes(id).decode() for id in sorted(ours.specials.ids())][:10]
    rng = random.Random(2)
    for _ in range(200):
        text = "".join(rng.choice([*specials, *TEXTS]) for _ in range(rng.randrange(1, 8)))
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True, bos=False) == expected, text


def test_blanks_that_belong_to_special_tokens_go_with_them(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    backend = reference(folder("llama-spm"))
    backend.normalizer = None  # the form that newer Llama tokenizers have
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([
        AddedToken("<|l|>", lstrip=True), AddedToken("<|r|>", rstrip=True), AddedToken("<|l|><|r|>"), AddedToken("<|"),
        AddedToken("<|both|>", lstrip=True, rstrip=True), AddedToken("word", single_word=True),
    ])  # fmt: skip
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    parts = ["<|l|>", "<|r|>", "<|both|>", "word", "<|", "|>", " ", "  ", "\n", "x", "hello", "a word", "sword", "é"]
    rng = random.Random(3)
    for _ in range(500):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 9)))
        expected = backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, special=True) == expected, text


def test_a_prompt_begins_with_one_bos(opened: Callable[[str], Tokenizer]) -> None:
    llama, gpt2 = opened("llama-spm"), opened("gpt-2")
    assert llama.add_bos and llama.bos_id == 1 and llama.bos_token == "<s>"
    assert llama.encode("hi") == [1, *llama.encode("hi", bos=False)]
    assert llama.encode_chat("<s>hi") == llama.encode_chat("hi") == [1, *llama.encode("hi", bos=False)]
    assert llama.encode("<s>hi", special=True) == llama.encode_chat("hi")
    assert not gpt2.add_bos and gpt2.encode("hi") == gpt2.encode("hi", bos=False)
    assert gpt2.encode("hi", bos=True)[0] == gpt2.bos_id == 50256


def test_lone_surrogates_are_refused(opened: Callable[[str], Tokenizer]) -> None:
    for encode in (opened("gpt-2").encode, opened("gpt-2").encode_chat):
        with pytest.raises(InvalidRequest, match="lone surrogate at character 2"):
            encode("ab\ud800")


# bytes and text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(name: str, opened: Callable[[str], Tokenizer]) -> None:
    tokenizer = opened(name)
    for text in TEXTS:
        if "▁" in text or "</s>" in text:  # to SentencePiece the one is a blank; phi-3 puts a blank after the other
            continue
        data = b"".join(tokenizer.token_bytes(id) for id in tokenizer.encode(text, bos=False))
        blank = " " if tokenizer.add_bos and name != "deepseek-coder" and text else ""  # SentencePiece begins with one
        assert data == (blank + text).encode()
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(10**9) == b""


@cache
def all_ids(tokenizer: Tokenizer) -> range:
    return range(1 + max(tokenizer._backend.get_vocab(with_added_tokens=True).values()))


def random_ids(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    ids = all_ids(tokenizer)
    kinds = [ids, ids[:300], sorted(tokenizer.specials.ids())]
    return [rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(12))]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_stream_gives_the_text_that_decode_gives(name: str, opened: Callable[[str], Tokenizer]) -> None:
    tokenizer = opened(name)
    rng = random.Random(4)
    for _ in range(500):
        ids, skip = random_ids(tokenizer, rng), rng.random() < 0.5
        if rng.random() < 0.2:
            ids.insert(rng.randrange(len(ids) + 1), len(all_ids(tokenizer)) + rng.randrange(9))  # a model may have more
        decoder, size = tokenizer.stream_decoder(skip_special=skip), rng.choice((1, 1, 3, 12))
        pieces = [decoder.push(ids[i : i + size]) for i in range(0, len(ids), size)]
        assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special=skip), ids


@pytest.mark.parametrize("name", VOCABULARIES)
def test_decode_agrees_with_the_library_wherever_the_bytes_are_text(
    name: str, folder: Callable[[str], Path], opened: Callable[[str], Tokenizer]
) -> None:
    theirs, ours = reference(folder(name)), opened(name)
    rng = random.Random(5)
    compared = 0
    for _ in range(500):
        ids, skip = random_ids(ours, rng), rng.random() < 0.5
        text = ours.decode(ids, skip_special=skip)
        if "\ufffd" not in text or name in ("gpt-2", "deepseek-coder"):  # the library spoils whole runs of byte tokens
            assert text == theirs.decode(ids, skip_special_tokens=skip), ids
            compared += 1
    assert compared > 100


def test_a_character_comes_when_its_last_byte_is_there(opened: Callable[[str], Tokenizer]) -> None:
    tokenizer = opened("stories260k")
    ids = tokenizer.encode("🦙!", bos=False)
    decoder = tokenizer.stream_decoder()
    assert [decoder.push([id]) for id in ids] == ["", "", "", "", "🦙", "!"]
    assert decoder.flush() == ""
    decoder = tokenizer.stream_decoder()
    assert [decoder.push([id]) for id in ids[:3]] == ["", "", ""]
    assert decoder.flush() == "\ufffd"


def test_the_blank_that_begins_a_text_is_kept_where_a_text_continues(opened: Callable[[str], Tokenizer]) -> None:
    tokenizer = opened("llama-spm")
    ids = tokenizer.encode("there was", bos=False)
    for continues, text in ((False, "there was"), (True, " there was")):
        decoder = tokenizer.stream_decoder(continues=continues)
        assert decoder.push(ids) == text


# files


def test_ends_and_names_come_from_all_files(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder("gpt-2") / "tokenizer.json").read_bytes())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "!", "bos_token": {"content": "#"}}))
    added = {"50257": {"content": "<|new|>", "special": True}, "50258": {"content": "<tool>", "special": False}}
    config = {"eos_token": {"content": "<|endoftext|>"}, "added_tokens_decoder": added, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.eos_ids == {50256, 7} and tokenizer.eos_id == 50256
    assert tokenizer.bos_token == "#" and tokenizer.encode("<|new|>")[0] == tokenizer.bos_id
    assert tokenizer.specials.ids() == {tokenizer.bos_id, 50256, 50257}
    assert len(all_ids(tokenizer)) == 50259
    assert tokenizer.encode("<tool>#", bos=False) == [50258, *tokenizer.encode("#", bos=False)]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert Tokenizer.open(tmp_path).eos_ids == {50256, 1, 2}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenizer_config.json", {"eos_token": "<absent>"}, "eos_token is '<absent>', which the vocabulary lacks"),
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token must be a string"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "no token"),
        ("tokenizer_config.json", [], "must hold a JSON object"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id must be a token id"),
        ("generation_config.json", {"eos_token_id": [1, -1]}, "eos_token_id must be a token id"),
        ("special_tokens_map.json", "{", "not readable JSON"),
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer.json", "", "is no tokenizer"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, folder: Callable[[str], Path], name: str, value: Any, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder("stories260k") / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(BadCheckpoint, match=message):
        Tokenizer.open(tmp_path)


def test_a_folder_without_tokenizer_json_is_told_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"only tokenizer\.model; make one with"):
        Tokenizer.open(tmp_path)


def test_an_unknown_decoder_is_named(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    spec = json.loads((folder("stories260k") / "tokenizer.json").read_text())
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        Tokenizer.open(tmp_path)


def test_damaged_tokenizer_files_give_named_errors(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    good = (folder("stories260k") / "tokenizer.json").read_bytes()
    rng = random.Random(6)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice([rng.randrange(len(data)), rng.randrange(2000)])
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        (tmp_path / "tokenizer.json").write_bytes(data)
        try:
            Tokenizer.open(tmp_path).decode(Tokenizer.open(tmp_path).encode("hello wörld"))
        except InputError:
            refused += 1
    assert refused > 30


# what GGUF metadata may get wrong


def metadata(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "a", "b", "ab", "▁"],
        "tokenizer.ggml.scores": np.array([0, 0, -1, -2, -3, -4], np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 1, 1, 1, 1], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
    }
    return base | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def wrong() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    yield metadata(model="t5"), UnsupportedModel, "kind 't5'; mlc reads llama"
    yield metadata(model=None), BadCheckpoint, "lacks the metadata tokenizer.ggml.model"
    yield metadata(model="gpt2", pre="new"), UnsupportedModel, "'new'.*mlc knows default, gpt-2"
    yield metadata(model="gpt2"), BadCheckpoint, "tokenizer.ggml.merges"
    yield metadata(model="gpt2", merges=["ab"]), BadCheckpoint, "merge 'ab'"
    yield metadata(model="gpt2", merges=["a x"]), BadCheckpoint, "merges that do not fit"
    yield metadata(tokens=["a", "a"]), BadCheckpoint, "expected 2 numbers|twice"
    yield metadata(tokens=["<unk>", "<s>", "a", "a", "ab", "▁"]), BadCheckpoint, "'a' twice"
    yield metadata(tokens=[]), BadCheckpoint, "0 tokens"
    yield metadata(tokens=["x" * 5000] * 6), BadCheckpoint, "the longest of 5000"
    yield metadata(scores=np.zeros(5)), BadCheckpoint, "scores is wrong; expected 6 numbers"
    yield metadata(scores=np.full(6, np.nan)), BadCheckpoint, "scores is wrong"
    yield metadata(scores="x"), BadCheckpoint, "scores is wrong"
    yield metadata(bos_token_id=6), BadCheckpoint, "bos_token_id is wrong; expected an id below 6"
    yield metadata(add_bos_token=1), BadCheckpoint, "add_bos_token is wrong"


@pytest.mark.parametrize(("table", "kind", "message"), list(wrong()))
def test_wrong_metadata_is_named(tmp_path: Path, table: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        write_tokenizer(table, tmp_path)


def test_llama_3_takes_a_word_that_is_a_token_whole(tmp_path: Path) -> None:
    words = {
        "tokens": ["a", "b", "ab", "aba"],
        "scores": None,
        "token_type": None,
        "merges": ["a b"],
        "bos_token_id": None,
    }
    for pre, ids in {"llama-bpe": [3], "qwen2": [2, 0]}.items():
        write_tokenizer({k: v for k, v in metadata(model="gpt2", pre=pre, **words).items() if v is not None}, tmp_path)
        assert Tokenizer.open(tmp_path).encode("aba") == ids


def test_flags_of_the_metadata_reach_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(metadata(add_bos_token=False, add_space_prefix=False, eos_token_id=3, eot_token_id=1), tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.encode("ab") == [4] and tokenizer.eos_ids == {1, 3}
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"
    write_tokenizer(metadata(), tmp_path)
    assert Tokenizer.open(tmp_path).encode("ab") == [1, 5, 4]
