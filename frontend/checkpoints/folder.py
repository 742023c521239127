"""Opens whatever the user has, and proves that it holds what the model needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from mlc.errors import BadCheckpoint, UnsupportedModel

from .gguf_names import GgufModel
from .reader import Checkpoint, TensorInfo, listed
from .safetensors import INDEX, SINGLE, Safetensors

__all__ = ["Checkpoint", "TensorInfo", "check", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with safetensors, a .safetensors file, or a .gguf file. Raises BadCheckpoint, UnsupportedModel."""
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise BadCheckpoint(f"{path} does not exist")
    if (path / SINGLE).is_file() or (path / INDEX).is_file():
        return Safetensors.open(path)
    found = sorted(p.name for p in path.iterdir())
    if ggufs := [name for name in found if name.endswith(".gguf")]:
        if len(ggufs) == 1:
            return GgufModel(path / ggufs[0])
        raise BadCheckpoint(f"{path} has several GGUF files; name one of {listed(ggufs)}")
    if pickles := [name for name in found if name.endswith((".bin", ".pt", ".pth"))]:
        raise UnsupportedModel(
            f"{path} has its weights in {listed(pickles)}, and reading such a file can run code; convert it to "
            "safetensors once: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) in transformers"
        )
    raise BadCheckpoint(
        f"{path} has no weights: expected {SINGLE}, {INDEX} or a .gguf file, found {listed(found) or 'nothing'}"
    )


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return GgufModel(path)
    if path.suffix == ".safetensors":
        return Safetensors.open(path)
    raise BadCheckpoint(f"{path} is no checkpoint; expected a folder, a .gguf file or a .safetensors file")


def check(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
    """Raise one BadCheckpoint that names all missing, unexpected and wrongly shaped tensors, if there are any.

    `optional` tensors may be absent, and may be there without being expected.
    """
    tensors = checkpoint.tensors()
    missing = sorted(expected.keys() - tensors.keys() - set(optional))
    extra = sorted(tensors.keys() - expected.keys() - set(optional))
    shapes = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in tensors and tensors[name].shape != tuple(shape)
    ]
    problems = [
        f"{len(names)} tensors {what}: {listed(names)}"
        for what, names in (("are missing", missing), ("are unexpected", extra), ("have the wrong shape", shapes))
        if names
    ]
    if problems:
        raise BadCheckpoint(
            f"{checkpoint.path} does not fit its config:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
