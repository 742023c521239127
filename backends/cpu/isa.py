"""Instruction sets: how wide a vector is, and how small integers are multiplied.

An `Isa` is a parameter of every kernel. Kernels differ between instruction sets in the lanes of a vector, in how many
registers a tile may fill, and in the product of 8-bit integers; everything else LLVM does from one source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import tvm
from tvm import tirx
from tvm.target.codegen import llvm_get_system_cpu

from mlc.errors import TargetUnavailable

from ..native import may_use_tiles
from .emit import bits, const, intrinsic, let, load, pin, splat

Expr = Any  # a TIR expression


@dataclass(frozen=True, slots=True)
class Isa:
    """One instruction set.

    `lanes` float32 make one vector, and `registers` vectors stay in registers. `features` are LLVM's names of what the
    code needs beyond the architecture's baseline. `dot` names the instruction that multiplies bytes and adds in fours;
    with `pairs` there is one more, which takes two rows of each operand (`dots.PairedDots`), with `tiles` one for
    sixteen (`amx`).
    """

    name: str
    triple: str
    mcpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    dot: Literal["vnni", "avx_vnni", "maddubs", "neon", "portable"]
    pairs: bool = False
    tiles: bool = False

    @property
    def architecture(self) -> str:
        """x86_64 or aarch64."""
        return self.triple.split("-")[0]

    @property
    def signed_bytes(self) -> bool:
        """Whether 8-bit weights are kept signed; the other way is unsigned, with 128 added."""
        return self.dot != "vnni" and self.dot != "avx_vnni"

    @property
    def float_rows(self) -> int:
        """Rows of a float weight in a row block: enough accumulators to hide the latency of an fma."""
        return max(16, 2 * self.lanes)

    def repeat_four(self, buffer: Expr, start: Expr, quad: int) -> Expr:
        """Bytes `start + 4 * quad` .. + 3 of an int8 buffer, repeated through a vector; `start` is a multiple of 16."""
        if self.dot == "neon":  # sdot takes any quarter of a register it can load whole
            sixteen = bits("int32x4", load(buffer, start + quad // 4 * 16, 16))
            return let(bits("int8x16", tirx.Shuffle([sixteen], [quad % 4] * 4)))
        four = bits("int32", load(buffer, start + quad * 4, 4))
        return let(bits(f"int8x{self.lanes * 4}", splat(four, self.lanes)))

    def target(self) -> tvm.target.Target:
        spec: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu, "mtriple": self.triple}
        if self.features:
            spec["mattr"] = [f"+{feature}" for feature in self.features]
        if self.tiles:  # LLVM's last scheduler puts free registers in place of others: tile registers without a shape
            spec["cl-opt"] = ["-disable-post-ra:bool=1"]
        return tvm.target.Target(spec)


class Dot:
    """A sum of byte products, one int32 lane per four neighbouring bytes.

    Weights of 4, 6 and 7 bits are unsigned; those of 8 are as `Isa.signed_bytes` says. Activations are -127..127.
    Integers are exact, so the order of `add` calls is free.
    """

    def __init__(self, isa: Isa, start: Expr | None, *, weight_bits: int) -> None:
        """`start` is an int32 vector to add to, or None for zero."""
        self.isa, self.weight_bits = isa, weight_bits
        self._total = start
        self._pairs: Expr | None = None  # maddubs: int16 sums not yet in `_total`
        self._pending = 0

    def add(self, weights: Expr, values: Expr) -> None:
        """Add the products of `weights` (uint8 vector of `4 * lanes`) and `values` (int8, as long)."""
        isa = self.isa
        if isa.dot == "maddubs":
            self._add_maddubs(weights, values)
            return
        lanes = f"int32x{isa.lanes}"
        total = splat(const(0), isa.lanes) if self._total is None else self._total
        if isa.dot in ("vnni", "avx_vnni"):
            total = pin(intrinsic(lanes, f"llvm.x86.avx512.vpdpbusd.{isa.lanes * 32}", total, weights, values))
        elif isa.dot == "neon":
            total = intrinsic(lanes, "llvm.aarch64.neon.sdot", total, bits("int8x16", weights), values)
        else:
            words, factors = bits(lanes, weights), bits(lanes, values)
            for i in range(4):
                total = total + _signed_byte(words, i, isa.lanes) * _signed_byte(factors, i, isa.lanes)
        self._total = let(total)

    def total(self) -> Expr:
        """The int32 vector."""
        if self._pairs is not None:
            self._flush()
        assert self._total is not None, "nothing was added"
        return self._total

    def _add_maddubs(self, weights: Expr, values: Expr) -> None:
        """AVX2 and AVX-512 without VNNI: unsigned times signed bytes, added in pairs to int16, then to int32.

        Eight pair sums of 4-bit weights stay below 8 * 2 * 15 * 127 = 30480, two of 6 bits below 2 * 2 * 63 * 127 =
        32004, so they may be added as int16. Bytes need a factor of at most 128 on the unsigned side: the weight's
        absolute value, its sign going to the activation.
        """
        isa = self.isa
        pairs = (
            f"int16x{isa.lanes * 2}",
            {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[isa.lanes],
        )
        if self.weight_bits == 8:
            dtype = f"int8x{isa.lanes * 4}"
            signed = bits(dtype, weights)
            if isa.lanes == 8:
                values = intrinsic(dtype, "llvm.x86.avx2.psign.b", values, signed)
            else:
                zero = splat(const(0, "int8"), isa.lanes * 4)
                values = tirx.Select(signed < zero, zero - values, values)
            weights = intrinsic(dtype, "llvm.abs", signed, const(0, "bool"))
        product = intrinsic(*pairs, weights, values)
        if self.weight_bits == 8:
            self._pairs = let(product)
        else:
            self._pairs = let(pin(product if self._pairs is None else self._pairs + product))
        self._pending += 1
        if self._pending == {4: 8, 6: 2, 7: 1, 8: 1}[self.weight_bits]:
            self._flush()

    def _flush(self) -> None:
        isa = self.isa
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[isa.lanes]
        fours = intrinsic(f"int32x{isa.lanes}", name, self._pairs, splat(const(1, "int16"), isa.lanes * 2))
        self._total = let(pin(fours if self._total is None else self._total + fours))
        self._pairs, self._pending = None, 0


def _signed_byte(words: Expr, i: int, lanes: int) -> Expr:
    """Byte `i` of each int32, sign-extended."""
    up = words if i == 3 else words << splat(const(24 - 8 * i), lanes)
    return up >> splat(const(24), lanes)


_X86, _ARM = "x86_64-linux-gnu", "aarch64-linux-gnu"
_AVX2 = ("avx2", "fma", "f16c", "bmi", "bmi2", "popcnt")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
_VNNI = (*_AVX512, "avx512vnni")
_AMX = (*_VNNI, "amx-tile", "amx-int8")
_NEON = ("dotprod", "fullfp16")

ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512_amx", _X86, "cascadelake", _AMX, lanes=16, registers=32, dot="vnni", tiles=True),
        Isa("avx512_vnni", _X86, "cascadelake", _VNNI, lanes=16, registers=32, dot="vnni"),
        Isa("avx512", _X86, "skylake-avx512", _AVX512, lanes=16, registers=32, dot="maddubs"),
        Isa("avx_vnni", _X86, "alderlake", (*_AVX2, "avxvnni"), lanes=8, registers=16, dot="avx_vnni"),
        Isa("avx2", _X86, "haswell", _AVX2, lanes=8, registers=16, dot="maddubs"),
        Isa("neon", _ARM, "neoverse-n1", _NEON, lanes=4, registers=32, dot="neon"),
        # Behind neon: rearranging the operands of smmla costs what it saves. CPU models with i8mm imply SVE too.
        Isa("neon_i8mm", _ARM, "neoverse-n1", (*_NEON, "i8mm"), lanes=4, registers=32, dot="neon", pairs=True),
        Isa("x86_64", _X86, "x86-64", (), lanes=4, registers=16, dot="portable"),
        Isa("aarch64", _ARM, "generic", (), lanes=4, registers=32, dot="portable"),
    )
}
"""Every instruction set by name, the best of each architecture first."""


def host_features() -> frozenset[str]:
    """LLVM's names of what this machine's CPU can do."""
    found = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return frozenset(str(name) for name, present in found.items() if present)


def host_isa() -> Isa:
    """The best instruction set of this machine, tuned for its CPU model.

    Raises TargetUnavailable for an architecture that is neither x86_64 nor aarch64.
    """
    triple = str(tvm.target.codegen.llvm_get_system_triple())
    architecture = {"arm64": "aarch64"}.get(triple.split("-")[0], triple.split("-")[0])
    for isa in _present():
        if isa.architecture == architecture:
            return replace(isa, mcpu=str(llvm_get_system_cpu()))
    raise TargetUnavailable(
        f"this machine is a {architecture}; mlc has CPU kernels for x86_64 and aarch64. Name a target to compile for: "
        + ", ".join(ISAS)
    )


def named_isas() -> list[str]:
    """What this machine has beyond its best instruction set, and uses when it is named."""
    host = frozenset(host_isa().features)
    return [isa.name for isa in _present() if host < frozenset(isa.features)]


def _present() -> Iterator[Isa]:
    """Those whose features this machine has; Linux must also let this process use the tile registers of AMX."""
    features = host_features()
    for isa in ISAS.values():
        if features.issuperset(isa.features) and (not isa.tiles or may_use_tiles()):
            yield isa
