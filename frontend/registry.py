"""From a config's `model_type` to the file in `models/` that defines it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mlc.errors import BadConfig, UnsupportedModel

from . import models
from .config import Fields


def model_types() -> list[str]:
    """Every architecture there is, by `model_type`."""
    return sorted(m.name for m in pkgutil.iter_modules(models.__path__))


def find(raw: Mapping[str, Any], source: str) -> tuple[ModuleType, Any]:
    """The defining module and its config, for the parsed config.json `raw` read from `source`.

    The module offers `config(fields)` and `build(config, weights, ...) -> Graph`. Raises UnsupportedModel, BadConfig.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise BadConfig(f"{source}: the key 'model_type' is missing or no string, so the architecture is unknown")
    if kind not in model_types():
        raise UnsupportedModel(
            f"{source}: model_type {kind!r} is not supported; mlc has {', '.join(model_types())}. "
            "CONTRIBUTING.md tells how to add one"
        )
    module = importlib.import_module(f"{models.__name__}.{kind}")
    return module, module.config(Fields(raw, source))
