"""Opens whatever the user has, and proves that it holds what the model needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from mlc.errors import BadCheckpoint, UnsupportedModel

from .gguf_names import GgufModel
from .pytorch import PYTORCH
from .pytorch_pickle import CONVERT
from .reader import Checkpoint, TensorInfo, listed
from .safetensors import SAFETENSORS
from .shards import Shards

__all__ = ["Checkpoint", "TensorInfo", "check", "open_checkpoint"]

_PICKLES = (".bin", ".pt", ".pth")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file of a format that mlc reads, or a folder: safetensors, else GGUF, else PyTorch's pickles.

    Raises BadCheckpoint, UnsupportedModel.
    """
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise BadCheckpoint(f"{path} does not exist")
    if SAFETENSORS.found_in(path):
        return Shards.open(path, SAFETENSORS)
    found = sorted(p.name for p in path.iterdir())
    if ggufs := [name for name in found if name.endswith(".gguf")]:
        if len(ggufs) == 1:
            return GgufModel(path / ggufs[0])
        raise BadCheckpoint(f"{path} has several GGUF files; name one of {listed(ggufs)}")
    if PYTORCH.found_in(path):
        return Shards.open(path, PYTORCH)
    if pickles := [name for name in found if name.endswith(_PICKLES)]:
        raise UnsupportedModel(
            f"{path} has its weights in {listed(pickles)}; of PyTorch's files, mlc reads those that transformers "
            f"writes: {PYTORCH.single}, or {PYTORCH.index} and its shards. Rename it, or {CONVERT}"
        )
    expected = f"{SAFETENSORS.single}, {SAFETENSORS.index}, a .gguf file, {PYTORCH.single} or {PYTORCH.index}"
    raise BadCheckpoint(f"{path} has no weights: expected {expected}, found {listed(found) or 'nothing'}")


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return GgufModel(path)
    if path.suffix == ".safetensors":
        return Shards.open(path, SAFETENSORS)
    if path.suffix in _PICKLES:
        return Shards.open(path, PYTORCH)
    raise BadCheckpoint(f"{path} is no checkpoint; expected a folder, or a .gguf, .safetensors or .bin file")


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
