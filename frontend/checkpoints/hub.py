"""From what the user typed to a folder or file on this machine, downloading it where it is the id of a hub model."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from mlc.errors import InputError

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)
"""What a compiled model keeps of the texts that lie beside a checkpoint's weights."""

_TEXTS = ["*.json", "*.jinja", "tokenizer*", "*.txt"]
_WEIGHTS = ["*.safetensors", "pytorch_model*.bin"]  # the second where a model lacks the first
_UNWANTED = ["*/*", "consolidated*"]  # the same weights in another layout

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<file>[\w./ -]+\.gguf))?")


def resolve(model: str) -> Path:
    """The folder or file that `model` names.

    `model` is a path, or a hub id (`owner/name`, or `owner/name:file.gguf` for one file of it), which is taken from
    huggingface_hub's cache or downloaded into it; HF_HUB_OFFLINE is honoured. Raises InputError.
    """
    try:
        path = Path(model).expanduser()
        if model and (path.is_dir() or path.is_file()):
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such home
        raise InputError(f"{model[:200]!r} is no usable path: {error}") from None
    match = _HUB_ID.fullmatch(model)
    if match is None or model.startswith((".", "/", "~")) or (model.endswith(".gguf") and not match["file"]):
        raise InputError(f"{model} does not exist{_similar(path)}; expected a folder, a .gguf file or a hub id")
    return _download(match["repo"], match["file"])


def _download(repo: str, file: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    name = f"{repo}:{file}" if file else repo
    try:
        if file:
            return Path(str(hf_hub_download(repo, file)))
        for weights in _WEIGHTS:
            wanted = [*_TEXTS, weights]
            folder = Path(str(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=_UNWANTED)))
            if any(folder.glob(weights)):
                return folder
    except Exception as error:  # the client lets errors of its HTTP library and of the system through
        raise InputError(_reason(name, repo, error)) from error
    raise InputError(
        f"{repo} has neither safetensors files nor a pytorch_model.bin on the hub; if it has a GGUF file, name it: "
        f"{repo}:FILE.gguf (see https://huggingface.co/{repo}/tree/main)"
    )


def _reason(name: str, repo: str, error: Exception) -> str:
    """What went wrong, and what to try."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"{name}: the hub asks you to accept the model's terms at https://huggingface.co/{repo}, then HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        near = _similar(Path(repo))
        return f"{name} is neither a path here nor a model on the hub{near}; check the spelling, or set HF_TOKEN"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{name}: the hub model {repo} has no such file; see https://huggingface.co/{repo}/tree/main"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{name} is neither a path here{_similar(Path(repo))} nor complete in the hub's cache "
            f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids downloading it; unset it, or give a path"
        )
    return (
        f"{name} is no path here{_similar(Path(repo))}, and it could not be downloaded: "
        f"{type(error).__name__}: {str(error)[:200]}; check the network, or give a path"
    )


def _similar(path: Path) -> str:
    """` (did you mean X?)` for the entry of the same folder whose name is most alike."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, 1)
    return f" (did you mean {path.with_name(near[0])}?)" if near else ""
