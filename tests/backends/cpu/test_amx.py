"""Products by AMX's tile registers, run by the CPU or by `amx.c`, and what Linux says to their use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlc.backends.cpu.isa import Isa, host_features
from mlc.backends.cpu.linear_quantized import linear_quantized, tilings
from mlc.backends.native import request_tiles
from mlc.errors import WrongTarget
from mlc.ir.types import parse_format
from tests.backends.cpu.conftest import Emulated, RunKernel
from tests.backends.cpu.test_linear import (
    dequantized_rows,
    extreme_weights,
    quantized_operands,
    quantized_rows,
    relative_error,
    weights,
)

N, ROWS = 37, (16, 31, 40)  # three row blocks, the last with 5 rows; none, 15 and 8 rows beside full tiles
FORMATS = (  # every kind of packing, every depth of a tile: 16, 32 and 64 numbers, once and twice
    "q8_g16_f32", "q8_g32", "q8a_g32", "q8_g64", "q8a_g64_i8", "q4_g32", "q4a_g32_i8", "q4_g64", "q4a_g128",
    "q6_g16_i8", "q6_g32", "q6a_g32_f32", "q6_g128",
)  # fmt: skip
Array = np.ndarray[Any, Any]


@pytest.fixture
def amx(runnable: list[Isa]) -> Isa:
    found = [isa for isa in runnable if isa.tiles]
    if not found:
        pytest.skip(f"avx512_amx needs an x86-64 machine with Linux and {Emulated.COMPILER}")
    return found[0]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_multiplied_as_float64_does_with_the_bits_of_one_row(
    run_kernel: RunKernel, emulated: Emulated | None, amx: Isa, format: str
) -> None:
    parsed = parse_format(format)
    assert parsed
    k = 3 * parsed.width_unit
    w = weights(N, k, parsed)
    extreme_weights(w, k)
    values = np.random.default_rng(k).standard_normal((max(ROWS), k))
    values[:4], values[4:8] = 1, -1
    x = quantized_rows(values, parsed.group)
    expected = dequantized_rows(x) @ w.dequantize().astype(np.float64).T
    operands = quantized_operands(w, amx)
    single = linear_quantized(N, k, parsed, amx, "vector")
    many, *others = (linear_quantized(N, k, parsed, amx, "matrix", tiling=t) for t in tilings(amx, parsed, "matrix"))

    def run(kernel: Any, rows: int) -> Array:
        inputs = {name: part[:rows] for name, part in x.items()} | operands
        return run_kernel(kernel, inputs, {"rows": rows}, outputs={"y": ((rows, N), np.float32)}, isa=amx)["y"]

    first = run(single, max(ROWS))
    assert relative_error(first, expected) < 1e-5
    for rows in ROWS:
        done = emulated.products() if emulated else 0
        assert run(many, rows).tobytes() == first[:rows].tobytes(), rows
        if emulated:
            at_once = min(parsed.group, 64)
            tiles = rows // 16 * -(-N // 16)
            assert emulated.products() - done == 2 * tiles * k // at_once, "run with one thread, and with two"
    for kernel in others:
        assert run(kernel, max(ROWS)).tobytes() == first.tobytes(), kernel.name


def test_linux_lets_a_process_use_tiles_or_says_why_not() -> None:
    if "amx-tile" in host_features():
        request_tiles()
        return
    with pytest.raises(WrongTarget, match=r"tile registers.*; compile the model with --target avx512_vnni"):
        request_tiles()
