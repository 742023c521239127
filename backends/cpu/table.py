"""The op table that the native walker reads: one row of int64 words per call. Knows nothing of TVM."""

from __future__ import annotations

from collections.abc import Sequence

ENTRY = "mlc_run"  # (table, sizes, sync, first, last, threads)
HEAD = 5  # int64 words before the pointers


def row(
    kernel: int, grain: int, guard: tuple[int, int, int], pointers: Sequence[int], sizes: Sequence[int], stride: int
) -> list[int]:
    """One row: `[kernel, grain, slot, low, high, pointers..., size slots...]`, padded to `stride` words.

    The call is made when low <= sizes[slot] <= high, so that kernels for one token, few and many stand side by side in
    one table. Pointers are addresses; size slots are indices into the step's sizes.
    """
    words = [kernel, grain, *guard, *pointers, *sizes]
    return words + [0] * (stride - len(words))
