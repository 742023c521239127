"""Types: what is known about a value before it has one.

A dimension is an integer or an affine form of symbols (`n`, `2*h+1`), known at run time. A tensor's dtype is a number
type (`f32`) or a quantized format (`q4_g32`); its layout names how the bits lie in memory once a target has packed it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlc.errors import TypeMismatch

NUMBER_BITS = {"f32": 32, "f16": 16, "bf16": 16, "i32": 32, "i8": 8, "u8": 8}
SUPER_GROUP = 256  # numbers of a row that share the f16 factor of their int8 scales


@dataclass(frozen=True, slots=True)
class Affine:
    """sum(coefficient * symbol) + constant. Terms are sorted by symbol and have no zero coefficient."""

    terms: tuple[tuple[str, int], ...]
    constant: int = 0

    def __add__(self, other: Dim) -> Dim:
        other = other if isinstance(other, Affine) else Affine((), other)
        totals = dict(self.terms)
        for symbol, coefficient in other.terms:
            totals[symbol] = totals.get(symbol, 0) + coefficient
        terms = tuple(sorted((s, c) for s, c in totals.items() if c))
        constant = self.constant + other.constant
        return Affine(terms, constant) if terms else constant

    __radd__ = __add__

    def __mul__(self, factor: int) -> Dim:
        if factor == 0:
            return 0
        return Affine(tuple((s, c * factor) for s, c in self.terms), self.constant * factor)

    __rmul__ = __mul__

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __str__(self) -> str:
        parts = [s if c == 1 else f"{c}*{s}" for s, c in self.terms]
        text = "+".join([*parts, str(self.constant)] if self.constant else parts)
        return text.replace("+-", "-")


Dim = int | Affine
_SYMBOL = re.compile(r"[a-z][a-z0-9_]*")


def sym(name: str) -> Affine:
    """The symbolic dimension `name`, a lower-case letter first. Symbols are equal by name."""
    assert _SYMBOL.fullmatch(name), f"{name!r} is no name of a dimension"
    return Affine(((name, 1),))


_TERM = re.compile(r"([+-]?)(?:([0-9]{1,30})\*)?([a-z][a-z0-9_]*)|([+-]?[0-9]{1,30})")


def parse_dim(text: str) -> Dim:
    """The inverse of `str`. Raises TypeMismatch where the text is no affine form."""
    total: Dim = 0
    end = 0
    for match in _TERM.finditer(text):
        if match.start() != end or (end and not (match[1] or (match[4] or "")[:1] in ("+", "-"))):
            break
        end = match.end()
        total = total + (int(match[4]) if match[4] else int(match[1] + (match[2] or "1")) * sym(match[3]))
    if end != len(text) or not text:
        raise TypeMismatch(f"{text!r} is no dimension; expected an integer or a form such as n or 2*h+1")
    return total


@dataclass(frozen=True, slots=True)
class Format:
    """How a quantized tensor stores its last axis: `bits` per number, one scale for each `group` of them.

    Symmetric: w = scale * (q - zero) with q in 0..15 and zero 8 (4 bits), q in 0..63 and zero 32 (6 bits), q in
    -128..127 and zero 0 (8 bits). Asymmetric: w = scale * q + bias with unsigned q.
    Scale and bias are stored as `scale`. With i8 they have two levels, as in ggml's K-quants: the stored int8 times an
    f16 for each 256 numbers of a row, `super_scale` or `super_bias`.
    Text: q4_g32, q4a_g32 (asymmetric), q8_g16_f32 (f32 scales; f16 is not written), q6_g16_i8.
    """

    bits: int
    group: int = 32
    symmetric: bool = True
    scale: str = "f16"

    def __str__(self) -> str:
        text = f"q{self.bits}{'' if self.symmetric else 'a'}_g{self.group}"
        return text if self.scale == "f16" else f"{text}_{self.scale}"

    @property
    def zero(self) -> int:
        """The stored number that stands for 0; asymmetric formats have a bias instead."""
        return 1 << (self.bits - 1) if self.symmetric and self.bits < 8 else 0

    @property
    def parts(self) -> dict[str, tuple[str, int]]:
        """By name, what makes up a tensor: its dtype, and how many numbers of a row share one of it.

        `q` has a byte for each number before it is packed.
        """
        names = ("scale",) if self.symmetric else ("scale", "bias")
        found = {"q": ("i8" if self.symmetric and self.bits == 8 else "u8", 1)}
        found |= {name: (self.scale, self.group) for name in names}
        if self.scale == "i8":
            found |= {f"super_{name}": ("f16", SUPER_GROUP) for name in names}
        return found

    @property
    def width_unit(self) -> int:
        """Rows are a multiple of so many numbers."""
        return max(numbers for _, numbers in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        shared = [NUMBER_BITS[dtype] / numbers for part, (dtype, numbers) in self.parts.items() if part != "q"]
        return self.bits + sum(shared)


_FORMAT = re.compile(r"q(4|6|8)(a?)_g([1-9][0-9]{0,8})(?:_(f32|i8))?")


def parse_format(dtype: str) -> Format | None:
    """The quantized format a dtype names, or None for a number type."""
    match = _FORMAT.fullmatch(dtype)
    if not match:
        return None
    format = Format(int(match[1]), int(match[3]), not match[2], match[4] or "f16")
    return format if format.scale != "i8" or SUPER_GROUP % format.group == 0 else None


FLOATS = ("f32", "f16", "bf16")
ACTIVATION = re.compile(r"a8_g([1-9][0-9]{0,8})")  # rows of int8 with an f32 scale and an i32 sum for each group


def is_dtype(text: str) -> bool:
    return text in NUMBER_BITS or parse_format(text) is not None or ACTIVATION.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dtype[shape]`, or `dtype@layout[shape]` once packed for a target."""

    shape: tuple[Dim, ...]
    dtype: str
    layout: str = ""

    @property
    def format(self) -> Format | None:
        return parse_format(self.dtype)

    @property
    def is_weight(self) -> bool:
        """Floats or a quantized format: what a product or a table may be made of."""
        return self.dtype in FLOATS or self.format is not None

    @property
    def is_plain(self) -> bool:
        """A number type, unpacked: what may be cut and moved at will."""
        return self.dtype in NUMBER_BITS and not self.layout

    def bytes(self, **sizes: int) -> float:
        """Bytes in memory, the symbols being `sizes`."""
        count = 1
        for dim in self.shape:
            count *= dim if isinstance(dim, int) else dim.constant + sum(c * sizes[s] for s, c in dim.terms)
        if self.format:
            return count * self.format.bits_per_weight / 8
        if match := ACTIVATION.fullmatch(self.dtype):
            return count * (1 + 8 / int(match[1]))
        return count * NUMBER_BITS[self.dtype] / 8

    def __str__(self) -> str:
        layout = f"@{self.layout}" if self.layout else ""
        return f"{self.dtype}{layout}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class State:
    """A run-time object threaded through the graph, such as the paged KV cache. A version is written at most once.

    `dtype` is how its numbers are stored: a number type, or q8: bytes with one f32 scale for each token and head. An op
    that reads keys of q8 rounds its queries to bytes in the same way, and so the weights of its values (a softmax,
    times the values' scales), 256 tokens with one scale.
    """

    kind: str
    dtype: str

    def __str__(self) -> str:
        return f"state<{self.kind}, {self.dtype}>"


Type = Tensor | State

_TENSOR = re.compile(r"(\w+)(?:@(\w+))?\[([^\]]*)\]")
_STATE = re.compile(r"state<(\w+), (\w+)>")


def parse_type(text: str) -> Type:
    """The inverse of `str`. Raises TypeMismatch."""
    if match := _STATE.fullmatch(text):
        if match[2] not in NUMBER_BITS and match[2] != "q8":
            raise TypeMismatch(f"unknown dtype {match[2]!r}")
        return State(match[1], match[2])
    if match := _TENSOR.fullmatch(text):
        if not is_dtype(match[1]):
            raise TypeMismatch(f"unknown dtype {match[1]!r}")
        dims = tuple(parse_dim(d) for d in match[3].split(", ")) if match[3] else ()
        return Tensor(dims, match[1], match[2] or "")
    raise TypeMismatch(f"{text!r} is no type; expected one such as f32[n, 64], q4_g32[64, 64] or state<kv, f16>")
