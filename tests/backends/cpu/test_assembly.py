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
@pytest.mark.parametrize(("format", "at_once"), [("q4_g32", 1), ("q8_g16_f32", 1), ("q6_g128", 2)])
def test_tile_registers_are_used_as_named_and_their_sums_are_all_that_takes_memory(
    format: str, at_once: int, cpu: str
) -> None:
    parsed, isa = parse_format(format), replace(ISAS["avx512_amx"], mcpu=cpu)
    assert parsed
    text = listing(linear_quantized(64, 1024, parsed, isa, "matrix"), isa)
    tiles = [
        (name, re.findall(r"%tmm(\d)", rest)) for name, rest in re.findall(r"\s(ldtile\w+|tile\w+|tdp\w+)(.*)", text)
    ]
    product = [("tileloadd", ["1"]), ("tileloadd", ["2"]), ("tdpbsud", ["2", "1", "0"])]
    group = [("tilezero", ["0"]), *product * at_once, ("tilestored", ["0"])]
    assert tiles == [("ldtilecfg", []), *group, ("tilerelease", [])]
    (loop,) = (loop for loop in innermost_loops(text) if any("tdpbsud" in line for line in loop))
    assert sum("tile" in line or "tdp" in line for line in loop) == len(group), "shapes are given once"
    stack = [line for line in loop if _STACK.search(line)]
    sums = [int(m[1]) for line in stack if (m := re.search(r"vcvtdq2ps\s(\d+)\(%rsp\)", line))]
    assert len(sums) == 16 and all(at % 64 == 0 for at in sums) and "andq\t$-64, %rsp" in text, (
        "cache lines are not split"
    )
    assert len(stack) - len(sums) <= 1, "no spills; the sums are stored once"


@pytest.mark.parametrize(
    ("triple", "more", "expected", "named"),
    [
        ("x86_64-unknown-linux-gnu", {*ISAS["avx512_amx"].features, "avxvnni"}, "avx512_vnni", ["avx512_amx"]),
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
    assert (host_isa().name, named_isas()) == (expected, named)
