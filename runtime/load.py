"""Opening a compiled model for generation: the engine of one process, the prompts of the same or another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mlc.backends.artifact import MANIFEST, read_manifest
from mlc.errors import BadCheckpoint, InvalidRequest

from .chat import ChatTemplate
from .engine import Engine
from .process import EngineSpec
from .prompts import Prompts
from .sampling import SamplingParams
from .settings import EngineSettings
from .tokenizer import Tokenizer, read_object

GENERATION_CONFIG = "generation_config.json"
_PREFERENCES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def load_engine(
    artifact: Path,
    *,
    tokenizer: Tokenizer | None = None,
    threads: int | None = None,
    max_context: int | None = None,
    kv_tokens: int | None = None,
    settings: EngineSettings | None = None,
) -> Engine:
    """The engine of the compiled model in the folder `artifact`; call it on the thread that will step it.

    `tokenizer` is the model's, which is opened where it is not given: half a second, and 80 MB for 150 000 tokens.
    Raises `ArtifactError` and its kinds, `BadConfig`, `BadCheckpoint` (its tokenizer).
    """
    from mlc.backends.module import open_module  # takes 44 MB and 0.3 s, which the HTTP process does without

    model = open_module(artifact, threads=threads, max_context=max_context, kv_tokens=kv_tokens)
    return Engine(model, tokenizer or Tokenizer.open(artifact), settings)


def engine_spec(artifact: Path, **options: Any) -> EngineSpec:
    """How a new process makes that engine; the options are those of `load_engine`."""
    return EngineSpec(f"{__name__}:{load_engine.__name__}", {"artifact": artifact.resolve(), **options})


def load_prompts(artifact: Path, tokenizer: Tokenizer | None = None) -> Prompts:
    """Tokenizer, chat template and sampling defaults of the model in the folder `artifact`. Raises `BadCheckpoint`.

    `tokenizer` is the model's, which is opened where it is not given.
    """
    tokenizer = tokenizer or Tokenizer.open(artifact)
    return Prompts(tokenizer, ChatTemplate.open(artifact, tokenizer), sampling_defaults(artifact))


def sampling_defaults(artifact: Path) -> dict[str, Any]:
    """Fields of `SamplingParams` that the model's makers recommend, from its generation_config.json.

    Raises `BadCheckpoint` for values that no sampler can take.
    """
    config = read_object(artifact / GENERATION_CONFIG)
    if config.get("do_sample") is False:
        return {"temperature": 0.0}
    defaults = {name: config[name] for name in _PREFERENCES if config.get(name) is not None}
    try:
        SamplingParams(**defaults)
    except InvalidRequest as error:
        raise BadCheckpoint(f"{artifact / GENERATION_CONFIG}: {error}") from None
    return defaults


def model_card(artifact: Path) -> tuple[str, int, str]:
    """The model's name, when it was compiled (seconds since 1970), and a fingerprint that changes with it."""
    manifest, path = read_manifest(artifact), artifact / MANIFEST
    return manifest.name, int(path.stat().st_mtime), "mlc-" + hashlib.sha256(path.read_bytes()).hexdigest()[:12]
