"""Which of several kernels to use that all give the same bits: the compiler of a model may ask the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .kernel import Kernel


@dataclass(frozen=True, slots=True)
class Trial:
    """A small piece of the work that the candidates are for, which tells how fast each is.

    `kernels` are the candidates for this piece, in their order; `bytes` says how much memory is behind each pointer.
    """

    kernels: Sequence[Kernel]
    bytes: Mapping[str, int]
    sizes: Mapping[str, int]


Choose = Callable[[Sequence[Kernel], Trial], Kernel]
"""One of the kernels; the first is the fastest in most cases."""


def usual(kernels: Sequence[Kernel], trial: Trial) -> Kernel:
    """The choice for a machine that is not here."""
    return kernels[0]
