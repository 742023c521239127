from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from mlc.errors import InputError
from mlc.frontend.checkpoints.hub import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache with two models, laid out as huggingface_hub does."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    for repo, files in {
        "maker/model": {"config.json": b"{}", "model.safetensors": b"x", "pytorch_model.bin": b"x"},
        "maker/ggufs": {"README.md": b"", "small-Q4_0.gguf": b"GGUF"},
    }.items():
        root = folder / f"models--{repo.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        (root / "blobs").mkdir()
        (root / "snapshots" / COMMIT).mkdir(parents=True)
        for name, content in files.items():
            (root / "blobs" / name).write_bytes(content)
            (root / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{name}")
    return folder


def test_paths_are_themselves(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path / "artifact")) == tmp_path / "artifact"
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


def test_a_cached_hub_model_is_found_offline(cache: Path) -> None:
    folder = resolve("maker/model")
    assert folder == cache / "models--maker--model" / "snapshots" / COMMIT
    assert json.loads((folder / "config.json").read_text()) == {}


def test_one_gguf_file_of_a_cached_hub_model_is_found_offline() -> None:
    assert resolve("maker/ggufs:small-Q4_0.gguf").read_bytes() == b"GGUF"


def test_a_hub_model_without_weights_that_mlc_reads_says_how_to_name_its_gguf_file() -> None:
    with pytest.raises(InputError, match=r"maker/ggufs:FILE\.gguf"):
        resolve("maker/ggufs")


@pytest.mark.parametrize("model", ["maker/absent", "absent", "maker/ggufs:absent.gguf"])
def test_a_model_that_is_not_cached_says_that_offline_forbids_the_download(model: str) -> None:
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE forbids downloading it; unset it, or give a path"):
        resolve(model)


@pytest.mark.parametrize("model", ["./absent", "/absent/model", "~/absent", "m0del.gguf", "a/b/c", "", "a b", "x\0y"])
def test_what_is_neither_path_nor_hub_id_is_refused_without_asking_the_hub(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(InputError, match=r"does not exist|no usable path"):
        resolve(model)


def test_absurdly_long_names_are_refused() -> None:
    with pytest.raises(InputError, match="no usable path"):
        resolve("x" * 100_000)


def test_a_typo_in_a_path_gets_a_proposal(tmp_path: Path) -> None:
    (tmp_path / "llama-3.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"did you mean .*llama-3\.gguf\?"):
        resolve(str(tmp_path / "lama-3.gguf"))


def test_what_the_hub_answers_becomes_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    for kind, advice in (
        (errors.GatedRepoError, "accept the model's terms at https://huggingface.co/maker/model"),
        (errors.RepositoryNotFoundError, "neither a path here nor a model on the hub"),
        (errors.RemoteEntryNotFoundError, "has no such file"),
    ):

        def refuse(*_: object, kind: type[Exception] = kind, **__: object) -> str:
            raise kind.__new__(kind)  # its constructor wants a response of the client's HTTP library

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(InputError, match=advice):
            resolve("maker/model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 // 0)
    with pytest.raises(InputError, match="could not be downloaded: ZeroDivisionError"):
        resolve("maker/model")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_asked_for_only_where_there_is_no_safetensors(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = ["config.json", "chat_template.jinja", "tokenizer.model", "merges.txt"]
    unwanted = ["a.pt", "training_args.bin", "original/params.json", "consolidated.safetensors"]
    asked: list[str] = []

    def snapshot(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        every = [*texts, weights, *unwanted]
        found = list(filter_repo_objects(every, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        asked.extend(allow_patterns)
        for name in found:
            (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("maker/model") == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted([*texts, weights])
    assert any(pattern.endswith(".bin") for pattern in asked) == weights.endswith(".bin")
