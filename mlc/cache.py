"""The artifact for what the user named: one that exists, or one compiled into a cache addressed by content.

Compiling happens in a spawned process: a crash there is an error message, and the caller never loads the compiler.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from mlc import __version__
from mlc.backends.artifact import MANIFEST, cpu_features, is_artifact
from mlc.backends.native import may_use_tiles
from mlc.errors import CompileError, InputError, MlcError
from mlc.frontend.checkpoints.hub import TEXT_FILES, resolve
from mlc.options import Options

Progress = Callable[[str, float], None]

BUNDLED = Path(__file__).parent / "bundled"


def cache_folder() -> Path:
    """Where compiled models are kept: $MLC_CACHE, or mlc/ in the user's cache folder."""
    base = os.environ.get("MLC_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlc"


def locate(model: str | None) -> tuple[Path, str]:
    """The checkpoint or artifact for `model` (None: the bundled model) and its name. May download."""
    if model is None:
        return BUNDLED, "mlc-tiny"
    path = resolve(model)
    if not Path(model).exists():
        return path, model
    named = path if path.is_dir() or path.suffix == ".gguf" else path.absolute().parent  # not "model.safetensors"
    return path, named.name.removesuffix(".gguf")


def prepare(
    model: str | None, options: Options, progress: Progress, note: Callable[[str], None] = lambda _: None
) -> Path:
    """The artifact for `model`, compiled if need be. `note` is told in a line what was reused or made."""
    path, name = locate(model)
    if is_artifact(path):
        return path
    options.check()
    out = cache_folder() / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'model'}-{key(path, options)}"
    if (out / MANIFEST).is_file():
        note(f"reusing the compiled model in {out}")
        return out
    start = time.perf_counter()
    compile_to(path, name, out, options, progress)
    note(f"compiled {name} in {time.perf_counter() - start:.1f} s into {out}")
    return out


def key(path: Path, options: Options) -> str:
    """What an artifact depends on, hashed: the checkpoint's files, the options, the machine, and our own code."""
    sha = hashlib.sha256(f"{__version__} {sorted(asdict(options).items())}".encode())
    if options.target == "host":
        features = cpu_features()
        sha.update(" ".join(sorted(features)).encode())
        if "amx-tile" in features and not may_use_tiles():
            sha.update(b"without AMX")  # Linux says so to this process, and perhaps not to others
    for file in _files(path):
        stat = file.stat()
        sha.update(f"{file.name} {stat.st_size}".encode())
        with file.open("rb") as stream:
            sha.update(stream.read(1 << 16))
            stream.seek(max(0, stat.st_size - (1 << 16)))
            sha.update(stream.read(1 << 16))
        if stat.st_size > 1 << 17:
            sha.update(f"{stat.st_mtime_ns}".encode())
    package = Path(__file__).parent
    for layer in ("ir", "frontend", "passes", "backends"):
        for source in sorted((package / layer).rglob("*.py")):
            sha.update(source.read_bytes())
    sha.update((package / "compile.py").read_bytes())
    return sha.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """All that a checkpoint is made of: the files of a folder, or a file and what belongs to it."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    beside = [] if path.suffix == ".gguf" else [path.parent / name for name in TEXT_FILES]
    return [path, *(file for file in beside if file.is_file())]


def compile_to(path: Path, name: str, out: Path, options: Options, progress: Progress) -> None:
    """Compile in a spawned process. Raises what the compiler raised, or CompileError where it died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(sender, path, name, out, options), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, *payload = receiver.recv()
            if kind == "progress":
                progress(*payload)
            elif kind == "error":
                raise payload[0]
            else:
                return
    except EOFError:
        process.join()
        raise CompileError(
            f"the compiler process ended with code {process.exitcode} while compiling {name}; "
            "if it was killed, the machine may lack memory"
        ) from None
    finally:
        receiver.close()
        process.terminate()
        process.join()


def _compile(sender: Connection, path: Path, name: str, out: Path, options: Options) -> None:
    """The body of the compile process."""
    from mlc.compile import compile_model

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a half-written folder is removed
    last: tuple[object, ...] = ("done",)
    try:
        compile_model(path, name, out, options, lambda *done: sender.send(("progress", *done)), cache_folder())
    except MlcError as error:
        last = ("error", error)
    except (OSError, MemoryError) as error:
        last = ("error", InputError(f"cannot compile {name}: {error}"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent ends this process as soon as it has the last word
    sender.send(last)
