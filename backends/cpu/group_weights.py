"""Where the weights of a tile come from, a group at a time: as packed in memory, or unpacked into scratch before.

A tile has `width` row blocks side by side. A group of k gives, for each quad (four neighbours in k) and each block, one
vector of `lanes` rows times four bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from mlc.ir.types import SUPER_GROUP, Format

from ..layouts import packed_parts
from .emit import bits, const, f32, let, load, prefetch, splat, store, vector, widen
from .isa import Isa
from .kernel import Expr, Frame, Pointer

_DTYPES = {"f16": "float16", "f32": "float32", "i8": "uint8"}  # of a packed scale


def scale_pointers(format: Format) -> list[Pointer]:
    """w_scale and perhaps w_bias: the packed parts of a weight other than its numbers."""
    return [Pointer(f"w_{name}", _DTYPES[format.scale]) for name in packed_parts(format) if name != "q"]


def load_scale(f: Frame, part: str, format: Format, rows: int, group: Expr, row: Expr, lanes: int) -> Expr:
    """Part `scale` or `bias` of group number `group` as float32, for `lanes` rows of its block from `row` on.

    A row block has `rows` rows; groups are counted through all of them.
    """
    if format.scale != "i8":
        return widen(load(f[f"w_{part}"], group * rows + row, lanes), _DTYPES[format.scale], lanes)
    groups, count = SUPER_GROUP // format.group, 1 if format.symmetric else 2
    number = 0 if part == "scale" else 1
    start = let(group // groups * (rows * count * (2 + groups)))
    above = load(f["w_scale"], start + (rows * number + row) * 2, lanes * 2)
    below = load(f["w_scale"], start + (rows * 2 * count + (group % groups * count + number) * rows + row), lanes)
    whole, half = bits(vector("int8", lanes), below), bits(vector("float16", lanes), above)
    return widen(whole, "int8", lanes) * widen(half, "float16", lanes)


def zero_point(format: Format, bytes: str) -> int:
    """What the stored integers exceed the meant ones by; `bytes` is the layout's field of that name."""
    if format.bits < 8:
        return format.zero
    if bytes == "s":
        return 0 if format.symmetric else -128
    return 128 if format.symmetric else 0


class GroupWeights(Protocol):
    """The weights of one tile.

    The quads of a group come in `steps` equal parts. The numbers of a step's quads count from its first one, which is
    `step` quads after that of the step before; with 4 bits they name a second run behind the group's half.
    """

    @property
    def steps(self) -> int: ...
    @property
    def step(self) -> int: ...
    def fetch(self, number: Expr) -> None:
        """Ask for what will be read after group `number`."""

    def quads(self, number: Expr, step: Expr) -> Iterator[tuple[int, list[Expr]]]:
        """(number of the quad, its vector in each block)."""

    def scales(self, number: Expr) -> tuple[list[Expr], list[Expr]]:
        """(scales, offsets) of each block as float32 vectors; no offsets where they are zero."""


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights [.., k] of `format` as `backends.layouts` packs them; `bytes` is the layout's field of that name."""

    k: int
    format: Format
    isa: Isa
    bytes: str

    @property
    def groups(self) -> int:
        return self.k // self.format.group

    @property
    def stored(self) -> int:
        """Vectors in memory to a group of a row block."""
        return self.format.group * self.format.bits // 32

    @property
    def together(self) -> int:
        """Vectors in memory that are taken apart together: three hold four of 6 bits."""
        return 3 if self.format.bits == 6 else 1

    @property
    def cells(self) -> int:
        """Of so many vectors each, in a step."""
        return min(self.stored // self.together, {4: 4, 6: 2, 8: 8}[self.format.bits])

    @property
    def step(self) -> int:
        return self.cells * (4 if self.format.bits == 6 else 1)

    @property
    def steps(self) -> int:
        return self.stored // (self.cells * self.together)

    def quads(self, cell: int) -> tuple[int, ...]:
        """The numbers of the quads in a cell of a step."""
        if self.format.bits == 6:
            return tuple(range(4 * cell, 4 * cell + 4))
        return (cell, self.stored + cell) if self.format.bits == 4 else (cell,)

    def unpack(self, cell: Iterable[Expr]) -> Iterator[Expr]:
        """The vectors of those quads. As few as possible are in registers at a time."""
        width, bits = self.isa.lanes * 4, self.format.bits
        low = splat(const((1 << bits) - 1, "uint8"), width)
        rest: Expr = None
        for v in cell:
            if bits == 6:
                top = v & splat(const(0xC0, "uint8"), width)
                rest = let(shift_down(top if rest is None else rest | top, 2, width))
            elif bits == 4:
                rest = shift_down(v, 4, width) & low
            yield v if bits == 8 else let(v & low)
        if bits < 8:
            yield let(rest)

    @property
    def zero(self) -> int:
        return zero_point(self.format, self.bytes)

    def bind(self, f: Frame, blocks: Sequence[Expr], ahead: int) -> BoundPacked:
        """Row blocks `blocks`, fetched `ahead` bytes before they are needed; 0: as the machine does by itself."""
        starts = [let(block.astype("int64") * self.groups) for block in blocks]
        return BoundPacked(self, f, starts, ahead)


@dataclass(frozen=True, slots=True)
class BoundPacked:
    packed: PackedWeights
    f: Frame
    starts: list[Expr]  # the first group of each block
    ahead: int

    @property
    def steps(self) -> int:
        return self.packed.steps

    @property
    def step(self) -> int:
        return self.packed.step

    def fetch(self, number: Expr) -> None:
        p = self.packed
        size = p.stored * p.isa.lanes * 4  # bytes of a group
        if self.ahead:
            for start in self.starts:
                for line in range(0, size, 64):
                    prefetch(self.f["w"], (start + number) * size + (self.ahead + line))

    def quads(self, number: Expr, step: Expr) -> Iterator[tuple[int, list[Expr]]]:
        p = self.packed
        for j in range(p.cells):
            first = [(start + number) * p.stored + (step * p.cells + j) * p.together for start in self.starts]
            vectors = zip(*(p.unpack(self._cell(at)) for at in first), strict=True)
            for quad, found in zip(p.quads(j), vectors, strict=True):
                yield quad, list(found)

    def _cell(self, first: Expr) -> Iterator[Expr]:
        """The vectors from number `first` on."""
        width = self.packed.isa.lanes * 4
        for i in range(self.packed.together):
            yield let(load(self.f["w"], (first + i) * width, width))

    def scales(self, number: Expr) -> tuple[list[Expr], list[Expr]]:
        p, lanes = self.packed, self.packed.isa.lanes
        groups = [let(start + number) for start in self.starts]

        def part(name: str) -> list[Expr]:
            return [let(load_scale(self.f, name, p.format, lanes, g, const(0), lanes)) for g in groups]

        scales = part("scale")
        if p.format.symmetric and not p.zero:
            return scales, []
        offsets = [s * splat(f32(-p.zero), lanes) for s in scales] if p.zero else []
        if not p.format.symmetric:
            biases = part("bias")
            offsets = [b + o for b, o in zip(biases, offsets, strict=True)] if offsets else biases
        return scales, [let(o) for o in offsets]


def shift_down(v: Expr, count: int, width: int) -> Expr:
    """`width` bytes, each moved down by `count` bits. The top of a byte gets the bits that its neighbour loses."""
    shifted = bits(f"uint16x{width // 2}", v) >> splat(const(count, "uint16"), width // 2)
    return bits(f"uint8x{width}", shifted)


@dataclass(frozen=True, slots=True)
class UnpackedWeights:
    """Scratch that holds `width` row blocks as bytes, with their scales: for tiles that read them many times.

    By group: scales [width][lanes] f32, offsets likewise, then the quads, [group / 4][width][lanes * 4].
    """

    packed: PackedWeights
    width: int

    @property
    def vector(self) -> int:
        """Bytes."""
        return self.packed.isa.lanes * 4

    @property
    def quad_bytes(self) -> int:
        return self.width * self.vector

    @property
    def group_bytes(self) -> int:
        return self.quad_bytes * (2 + self.packed.format.group // 4)

    @property
    def bytes(self) -> int:
        """Of scratch for a thread."""
        return self.packed.groups * self.group_bytes

    def fill(self, f: Frame, block: Expr, width: int) -> None:
        """Unpack row blocks `block` .. + width."""
        p, out = self.packed, f["scratch"]
        source = p.bind(f, [block + b for b in range(width)], 0)
        start = let(f.thread.astype("int64") * self.bytes)

        def put(at: Expr, vectors: list[Expr]) -> None:
            for b, v in enumerate(vectors):
                store(out, at + b * self.vector, bits(f"uint8x{self.vector}", v), self.vector)

        with T.serial(0, p.groups) as number:
            at = let(start + number * self.group_bytes)
            scales, offsets = source.scales(number)
            put(at, scales)
            put(at + self.quad_bytes, offsets)
            with T.serial(0, p.steps) as step:
                first = let(at + (step * p.step + 2) * self.quad_bytes)
                for quad, vectors in source.quads(number, step):
                    put(first + quad * self.quad_bytes, vectors)

    def bind(self, f: Frame, width: int) -> BoundUnpacked:
        return BoundUnpacked(self, f, let(f.thread.astype("int64") * self.bytes), width)


@dataclass(frozen=True, slots=True)
class BoundUnpacked:
    unpacked: UnpackedWeights
    f: Frame
    start: Expr
    width: int

    @property
    def steps(self) -> int:
        return self.unpacked.packed.steps

    @property
    def step(self) -> int:
        return self.unpacked.packed.step

    def fetch(self, number: Expr) -> None:
        """It is in the cache."""

    @property
    def quad_bytes(self) -> int:
        return self.unpacked.quad_bytes

    def quad_at(self, number: Expr, quad: Expr) -> Expr:
        """Where quad `quad` of the group begins in scratch; the scales and offsets are numbers -2 and -1."""
        return self.start + number * self.unpacked.group_bytes + (quad + 2) * self.quad_bytes

    def _vectors(self, number: Expr, quad: Expr) -> list[Expr]:
        vector, at = self.unpacked.vector, self.quad_at(number, quad)
        return [load(self.f["scratch"], at + b * vector, vector) for b in range(self.width)]

    def quads(self, number: Expr, step: Expr) -> Iterator[tuple[int, list[Expr]]]:
        p = self.unpacked.packed
        for quad in sorted(quad for j in range(p.cells) for quad in p.quads(j)):
            yield quad, [let(v) for v in self._vectors(number, step * p.step + quad)]

    def scales(self, number: Expr) -> tuple[list[Expr], list[Expr]]:
        p = self.unpacked.packed
        scales, offsets = (
            [let(bits(f"float32x{p.isa.lanes}", v)) for v in self._vectors(number, const(i))] for i in (-2, -1)
        )
        return scales, [] if p.format.symmetric and not p.zero else offsets
