"""The target a user names, as an instruction set."""

from __future__ import annotations

from mlc.errors import TargetUnavailable

from ..artifact import Target
from .isa import ISAS, Isa, host_isa


def find_isa(name: str) -> Isa:
    """`host` or the name of an instruction set. Raises TargetUnavailable."""
    if name == "host":
        return host_isa()
    if name not in ISAS:
        raise TargetUnavailable(f"--target {name!r} is unknown; mlc has host, {', '.join(ISAS)}")
    return ISAS[name]


def describe(isa: Isa) -> Target:
    """What the artifact says about the machine it is for."""
    return Target(name=isa.name, architecture=isa.architecture, features=tuple(isa.features))
