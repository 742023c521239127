"""Kernels to a file that loads without the compiler."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ..cpu.isa import Isa, host_isa
from ..cpu.kernel import Kernel
from .build import build


def build_library(kernels: Sequence[Kernel], isa: Isa, path: Path) -> Path:
    """Write `path`-HASH.so; where the machine has no C compiler to link with, a .ll, which is compiled when loaded.

    The hash is of the contents: the system's loader takes two libraries of one path for the same one.
    """
    executable = build(kernels, isa)
    compilers = ("cc", "gcc", "clang", "g++", "c++") if isa.architecture == host_isa().architecture else _cross(isa)
    linker = next((found for name in compilers if (found := shutil.which(name))), None)
    if linker is None:
        text = path.with_suffix(".ll")
        executable.mod.write_to_file(str(text), "ll")
        # LLVM prints private functions with an export mark that its own parser refuses.
        text.write_text(text.read_text().replace("private dllexport ", "private "))
        return _name_by_content(text)
    library = path.with_suffix(".so")
    executable.export_library(str(library), cc=linker)
    return _name_by_content(library)


def _name_by_content(path: Path) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return path.rename(path.with_stem(f"{path.stem}-{digest}"))


def _cross(isa: Isa) -> tuple[str, ...]:
    """Linkers for another architecture."""
    return (f"{isa.architecture}-linux-gnu-gcc",)


def versions() -> str:
    """What compiled a library."""
    return f"tvm {version('apache-tvm')}"
