"""Text about a compiled model: its kernel calls, and the assembly of a kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlc.errors import InputError

_NOISE = re.compile(r"\s+\.(cfi_|loc\b|p2align|file)|\.L(tmp|func_)\w*:|\s*#")


class Call(Protocol):
    """A kernel call of a program, as an artifact has it."""

    @property
    def op(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def pointers(self) -> Sequence[Any]: ...  # each has kind, name, offset
    @property
    def guard(self) -> Any: ...  # size, low, high, or None


@dataclass(frozen=True, slots=True)
class KernelUse:
    """A kernel of a program, and who calls it."""

    name: str
    ops: tuple[str, ...]
    calls: int
    when: str


def call_lines(calls: Sequence[Call]) -> list[str]:
    """One line for each call: `3 linear: kernel(what it points at) if n = 1`."""
    width = len(str(len(calls) - 1))
    return [
        f"{i:>{width}} {c.op}: {c.kernel}({', '.join(map(_pointer, c.pointers))})"
        + ("" if c.guard is None else f" if {condition(c)}")
        for i, c in enumerate(calls)
    ]


def kernel_uses(names: Sequence[str], calls: Sequence[Call]) -> list[KernelUse]:
    """Every kernel, in the order of `names`."""
    by_kernel: dict[str, list[Call]] = {name: [] for name in names}
    for call in calls:
        by_kernel[call.kernel].append(call)
    return [
        KernelUse(
            name,
            tuple(dict.fromkeys(c.op for c in made)),
            len(made),
            " or ".join(dict.fromkeys(condition(c) for c in made)),
        )
        for name, made in by_kernel.items()
    ]


def condition(call: Call) -> str:
    """When a call is made: `always`, or the range of a size, such as `2 <= n <= 16`."""
    if call.guard is None:
        return "always"
    size = "*".join(call.guard.size) or "1"
    if call.guard.low == call.guard.high:
        return f"{size} = {call.guard.low}"
    if call.guard.high == (1 << 31) - 1:
        return f"{size} >= {call.guard.low}"
    return f"{call.guard.low} <= {size} <= {call.guard.high}"


def _pointer(ref: Any) -> str:
    return f"{ref.kind}+{ref.offset}" if ref.kind == "arena" else " ".join(filter(None, (ref.kind, ref.name)))


def function(assembly: str, name: str) -> str:
    """The instructions of one function in an assembly text, without what is there for debuggers and linkers.

    Raises InputError where there is none of that name.
    """
    match = re.search(rf"^{re.escape(name)}:.*?^\.Lfunc_end", assembly, re.MULTILINE | re.DOTALL)
    if match is None:
        raise InputError(f"the assembly has no function {name!r}")
    used = set(re.findall(r"[ \t](\.LBB\w+)", match[0]))
    lines = [line for line in match[0].splitlines()[:-1] if not _NOISE.match(line)]
    return "".join(f"{line}\n" for line in lines if not line.startswith(".LBB") or line.rstrip(":") in used)
