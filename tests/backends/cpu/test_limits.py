"""The kernels that measure the machine do all the work they are credited with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlc.backends.cpu import limits
from mlc.backends.cpu.isa import Isa

Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]


def test_every_byte_of_the_pool_is_read(run_kernel: Run, isa: Isa) -> None:
    slices = 2
    pool = np.random.default_rng(0).integers(-(2**31), 2**31, slices * limits.SLICE // 4, np.int32)
    shape = {"out": ((slices * isa.lanes,), np.int32)}
    out = run_kernel(limits.read(isa), {"pool": pool}, {"items": slices}, outputs=shape, isa=isa)["out"]
    sums = out.reshape(slices, -1).sum(axis=1, dtype=np.int32)
    assert (sums == pool.reshape(slices, -1).sum(axis=1, dtype=np.int32)).all()


@pytest.mark.parametrize("pairs", [1, 8])
def test_products_of_bytes_are_as_many_as_are_counted(run_kernel: Run, isa: Isa, pairs: int) -> None:
    """Of ones, the sum of the products is their number; each is one multiplication and one addition."""
    items, ones = 3, np.ones(limits.OPERANDS, np.int8)
    kernel, shape = limits.multiply_bytes(isa, pairs), {"out": ((items * isa.lanes,), np.int32)}
    out = run_kernel(kernel, {"operands": ones}, {"items": items}, outputs=shape, isa=isa)["out"]
    tile = limits.byte_operations(isa) // (2 * limits.STEPS * 8 * 4 * isa.lanes)
    begun = tile * isa.lanes  # sums begin with an operand each
    assert (out.reshape(items, -1).sum(axis=1) - begun == limits.byte_operations(isa) // 2).all()


def test_products_of_floats_are_as_many_as_are_counted(run_kernel: Run, isa: Isa) -> None:
    items, ones = 3, np.ones(limits.OPERANDS // 4, np.float32)
    shape = {"out": ((items * isa.lanes,), np.float32)}
    out = run_kernel(limits.multiply_floats(isa), {"operands": ones}, {"items": items}, outputs=shape, isa=isa)["out"]
    begun = 12 * isa.lanes
    assert (out.reshape(items, -1).sum(axis=1) - begun == limits.float_operations(isa) // 2).all()
