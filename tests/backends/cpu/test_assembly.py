"""What the compiler made of the inner loops, for every instruction set, and which of them a machine gets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tvm

from mlc.backends.cpu import isa as isa_module
from mlc.backends.cpu.isa import ISAS, host_isa, named_isas
from mlc.backends.cpu.linear import Family
from mlc.backends.cpu.linear_quantized import linear_quantized
from mlc.backends.tvm.listing import listing
from mlc.ir.types import parse_format

# The byte product, and how many stack accesses to one of them an inner loop with many may have.
PRODUCTS = {
    "avx512_vnni": (r"vpdpbusd\s.*%zmm", 0.0),
    "avx512_amx": (r"vpdpbusd\s.*%zmm", 0.0),  # of the rows that fill no tile
    "avx512": (r"vpmaddubsw\s.*%zmm", 0.0),
    "avx_vnni": (r"vpdpbusd\s.*%ymm", 0.8),
    "avx2": (r"vpmaddubsw\s.*%ymm", 0.4),
    "neon": (r"sdot\s+v\d+\.4s", 0.25),
    "neon_i8mm": (r"smmla\s+v\d+\.4s", 0.0),
    "x86_64": (r"pm(addwd|ull?w|uludq)\s.*%xmm", 0.9),
    "aarch64": (r"mla\s+v\d+\.4s", 0.25),
}
# More of them, where more than the sums of a tile is kept: what three vectors make up to a fourth, scales and offsets.
MORE = {"q6_g32": 0.7, "q6_g16_i8": 1.5, "q4a_g32_i8": 0.5}
FEW = 16  # stack accesses that any inner loop may have
FAMILIES: tuple[Family, ...] = ("vector", "small", "matrix")

_LABEL = re.compile(r"(\.LBB\w+):")
_BRANCH = re.compile(r"\s(?:j\w+|b\S*|t?bn?z|cbn?z)\s.*?(\.LBB\w+)")
_STACK = re.compile(r"\(%rsp\)|\(%rbp\)|\[sp\b|\[x29\b")
_CALL = re.compile(r"\s(?:call\w*|blr?)\s")


def innermost_loops(text: str) -> Iterator[list[str]]:
    """The lines of each loop that holds no other."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*[.#/](?!LBB)|\.Ltmp|\.Lfunc", line)]
    labels = {m[1]: i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    loops = [
        (labels[m[1]], i)
        for i, line in enumerate(lines)
        if (m := _BRANCH.search(line)) and labels.get(m[1], len(lines)) <= i
    ]
    for first, last in loops:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            yield lines[first : last + 1]


@pytest.mark.parametrize("format", ["q4_g32", "q8_g32", *MORE])
@pytest.mark.parametrize("name", ISAS)
def test_inner_loops_are_byte_products_with_few_spills_and_no_calls(name: str, format: str) -> None:
    parsed, isa = parse_format(format), ISAS[name]
    assert parsed
    pattern, bound = PRODUCTS[name]
    bound += MORE.get(format, 0.0)
    for family in FAMILIES:
        single = family == "vector" and isa.pairs  # one row has no pair
        product = re.compile(PRODUCTS["neon"][0] if single else pattern)
        text = listing(linear_quantized(64, 1024, parsed, isa, family), isa)
        loops = [
            (count, loop)
            for loop in innermost_loops(text)
            if (count := sum(bool(product.search(line)) for line in loop)) >= 8
        ]
        assert loops, f"{family}: no inner loop with {pattern}"
        for count, loop in loops:
            spills = sum(bool(_STACK.search(line)) for line in loop)
            assert spills <= max(FEW, bound * count), f"{family}: {spills} stack accesses to {count} products"
            calls = [line.split()[-1] for line in loop if _CALL.search(line)]
            if name == "x86_64":  # without f16c a float16 scale is widened by the compiler's library
                calls = [callee for callee in calls if not callee.startswith("__extendhfsf2")]
            assert not calls, f"{family}: calls {calls}"


@pytest.mark.parametrize("cpu", [ISAS["avx512_amx"].mcpu, "sapphirerapids", "znver4"])  # their schedulers differ
@pytest.mark.parametrize(("format", "parts"), [("q4_g32", 1), ("q8_g16_f32", 1), ("q6_g128", 2)])
def test_tile_registers_are_used_as_named_and_their_sums_are_all_that_takes_memory(
    format: str, parts: int, cpu: str
) -> None:
    parsed, isa = parse_format(format), replace(ISAS["avx512_amx"], mcpu=cpu)
    assert parsed
    text = listing(linear_quantized(64, 1024, parsed, isa, "matrix"), isa)
    tiles = [
        (name, re.findall(r"%tmm(\d)", rest)) for name, rest in re.findall(r"\s(ldtile\w+|tile\w+|tdp\w+)(.*)", text)
    ]
    expected = []
    for g in range(8):  # groups whose products are made together
        total = str(g % 4)
        expected.append(("tilezero", [total]))
        for x, w in (("46", "57")[(g * parts + part) % 2] for part in range(parts)):
            expected += [("tileloadd", [x]), ("tileloadd", [w]), ("tdpbsud", [w, x, total])]
        expected.append(("tilestored", [total]))
    assert tiles == [("ldtilecfg", []), *expected, ("tilerelease", [])]
    (loop,) = (loop for loop in innermost_loops(text) if sum("vcvtdq2ps" in line for line in loop) == 16)
    assert not any("tile" in line or "tdp" in line for line in loop), "products of other groups are made before"
    assert sum(bool(re.search(r"vcvtdq2ps\s-?\d*\(", line)) for line in loop) == 16, "each sum is read once, there"
    assert not any(_STACK.search(line) for line in loop), "no spills"
    assert "andq\t$-64, %rsp" in text, "cache lines are not split"


@pytest.mark.parametrize(
    ("triple", "more", "expected", "named"),
    [
        ("x86_64-unknown-linux-gnu", {*ISAS["avx512_amx"].features, "avxvnni"}, "avx512_amx", []),
        ("x86_64-unknown-linux-gnu", {*ISAS["avx512"].features, "amx-tile", "amx-int8"}, "avx512", []),
        ("x86_64-unknown-linux-gnu", {*ISAS["avx_vnni"].features}, "avx_vnni", []),
        ("x86_64-unknown-linux-gnu", {"sse2"}, "x86_64", []),
        ("aarch64-unknown-linux-gnu", {"neon", "dotprod", "fullfp16", "i8mm", "sve2"}, "neon", ["neon_i8mm"]),
        ("arm64-apple-darwin", {"neon", "dotprod", "fullfp16"}, "neon", []),
        ("aarch64-unknown-linux-gnu", {"neon"}, "aarch64", []),
    ],
)
def test_a_machine_gets_the_best_that_its_features_allow(
    monkeypatch: pytest.MonkeyPatch, triple: str, more: set[str], expected: str, named: list[str]
) -> None:
    monkeypatch.setattr(tvm.target.codegen, "llvm_get_system_triple", lambda: triple)
    monkeypatch.setattr(isa_module, "host_features", lambda: frozenset(more))
    monkeypatch.setattr(isa_module, "may_use_tiles", lambda: True)
    assert (host_isa().name, named_isas()) == (expected, named)


def test_a_process_that_linux_gives_no_tile_registers_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm.target.codegen, "llvm_get_system_triple", lambda: "x86_64-unknown-linux-gnu")
    monkeypatch.setattr(isa_module, "host_features", lambda: frozenset(ISAS["avx512_amx"].features))
    monkeypatch.setattr(isa_module, "may_use_tiles", lambda: False)
    assert (host_isa().name, named_isas()) == ("avx512_vnni", [])
