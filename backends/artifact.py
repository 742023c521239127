"""The artifact: a compiled model as a folder that ordinary tools can inspect.

manifest.json         what it is, for which machine, made by what; digests of the other files
program-NAME.json     the calls of one graph (see `program`)
module-HASH.so        kernels and walker of all programs; a .ll file where no C compiler was at hand
weights.safetensors   packed weights, 64-byte aligned
graph-NAME.ir         the graph the program was lowered from
tokenizer.json, ...   as Hugging Face tools write them
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import msgspec

from mlc.errors import ArtifactError, Corrupt, WrongTarget, WrongVersion

from .program import Program

FORMAT = 5
MANIFEST = "manifest.json"
_OLD_MANIFEST = "manifest.yaml"  # of formats 1 to 4
WEIGHTS = "weights.safetensors"


class Target(msgspec.Struct, frozen=True):
    """The machine the kernels are for: `features` are the CPU features they use, by LLVM's names."""

    name: str
    architecture: str
    features: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True):
    format: int
    name: str  # the model, as the user called it
    model_type: str
    created_by: str  # versions of mlc and tvm
    target: Target
    quantization: str
    kv_type: str  # how keys and values are kept; empty for an encoder
    parameters: int
    context: int  # tokens the model was made for; 0 for an encoder
    vocab: int  # 0 for an encoder
    library: str
    programs: tuple[str, ...]
    digests: dict[str, str]  # file -> sha256; weights are digested by size and header, see `digest`


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def is_artifact(path: Path) -> bool:
    """Whether a compiled model is at `path`. Raises WrongVersion where an mlc before format 5 wrote it."""
    if (path / MANIFEST).is_file():
        return True
    if (path / _OLD_MANIFEST).is_file():
        raise WrongVersion(f"{path} was compiled by an older mlc ({_OLD_MANIFEST}); compile the model again")
    return False


def read_manifest(folder: Path) -> Manifest:
    """Raises ArtifactError where `folder` is no artifact, WrongVersion where another mlc wrote it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}, so it is no compiled model; make one with `mlc compile`")
    raw = path.read_bytes()
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("format")
        if version != FORMAT:
            raise WrongVersion(f"{folder} has artifact format {version}, this mlc reads {FORMAT}; compile it again")
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{path} is damaged ({error}); compile the model again") from None


def read_program(folder: Path, name: str) -> Program:
    """The program `name` of an artifact. Raises Corrupt."""
    path = folder / f"program-{name}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Program)
    except (OSError, msgspec.MsgspecError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); compile the model again") from None


def digest(path: Path) -> str:
    """A file's sha256. Of weights, which may be many gigabytes, that of the size, the first and the last megabyte."""
    sha = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.name != WEIGHTS:
            sha.update(file.read())
        else:
            if hasattr(os, "posix_fadvise"):  # what is read ahead would lie in small pages; see `memory.map_huge`
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            sha.update(str(size).encode())
            sha.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            sha.update(file.read(1 << 20))
    return sha.hexdigest()


def check(folder: Path, manifest: Manifest) -> None:
    """Raises Corrupt where a file does not match its digest, WrongTarget where this CPU lacks what the kernels use."""
    for name, expected in manifest.digests.items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise Corrupt(f"{folder} has no file {name}; compile the model again")
        if digest(path) != expected:
            raise Corrupt(f"{path} does not match its digest; compile the model again")
    target = manifest.target
    here = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    if here != target.architecture:
        raise WrongTarget(f"{folder} was compiled for {target.architecture}, this machine is {here}; compile it again")
    missing = sorted(f for f in set(target.features) - cpu_features() if f in _FLAGS)
    if missing:
        raise WrongTarget(
            f"{folder} was compiled for {target.name} and needs {', '.join(missing)}, which this CPU does not have; "
            "compile it again here, or with --target for this machine"
        )


# LLVM's feature names and the names the Linux kernel gives the same things.
_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512cd": "avx512cd",
    "avx512vnni": "avx512_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "avxvnni": "avx_vnni",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
}


def cpu_features() -> frozenset[str]:
    """Which of the features that kernels may use this machine has, by LLVM's names. Needs no compiler."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset(_FLAGS)  # no way to tell; the kernels will
    flags = {f for line in text.splitlines() if line.startswith(("flags", "Features")) for f in line.split()}
    return frozenset(llvm for llvm, linux in _FLAGS.items() if linux in flags)
