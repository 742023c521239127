"""Kernels that apply penalties and count tokens, against the definition token by token."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from mlc.backends.cpu.isa import Isa
from mlc.backends.cpu.kernel import Kernel
from mlc.backends.cpu.penalties import penalize, remember
from tests.backends.cpu.conftest import RunKernel

Array = np.ndarray[Any, Any]
VOCAB, ROOM = 99, 48
NUMBERS = np.array(  # repetition, frequency, presence, whether tokens are counted
    [[1.3, 0.4, 0.2, 1], [0.7, 0.0, 0.0, 1], [1.0, -0.3, 1.5, 1], [1.0, 0.0, 0.0, 0], [1.2, 0.1, 0.0, 1]], np.float32
)
LISTED = np.array([17, 1, 47, 9, 0], np.int32)
remember_of = cache(remember)
penalize_all: Kernel = penalize(VOCAB)


def lists(seed: int) -> dict[str, Array]:
    """For each row distinct tokens, some from the prompt, some of the answer, some biased; behind the list garbage."""
    rng, rows = np.random.default_rng(seed), len(LISTED)
    return {
        "penalties": NUMBERS,
        "listed": LISTED,
        "ids": np.stack([rng.permutation(VOCAB)[:ROOM] for _ in range(rows)]).astype(np.int32),
        "counts": rng.integers(-1, 4, (rows, ROOM), np.int32),
        "biases": np.where(rng.random((rows, ROOM)) < 0.5, 0, rng.standard_normal((rows, ROOM))).astype(np.float32),
    }


def test_penalties_are_those_of_the_definition(run_kernel: RunKernel, isa: Isa) -> None:
    given, x = lists(1), (np.random.default_rng(0).standard_normal((len(LISTED), VOCAB)) * 3).astype(np.float32)
    sizes = {"rows": len(LISTED), "room": ROOM}
    outputs = {"logits": (x.shape, np.float32)}
    made = run_kernel(penalize_all, given | {"logits": x}, sizes, outputs=outputs, isa=isa)["logits"]
    for row, (repetition, frequency, presence, _) in enumerate(NUMBERS):
        for i in range(LISTED[row]):
            token, count = given["ids"][row, i], given["counts"][row, i]
            if count >= 0:
                x[row, token] = x[row, token] / repetition if x[row, token] > 0 else x[row, token] * repetition
            if count > 0:
                x[row, token] -= frequency * np.float32(count) + presence
            x[row, token] += given["biases"][row, i]
    np.testing.assert_allclose(made, x, rtol=1e-6, atol=1e-6)  # a product and a sum may be rounded once


@pytest.mark.parametrize("place", ["first", "last", "behind", "elsewhere", "none"])
def test_a_chosen_token_is_counted_once(run_kernel: RunKernel, isa: Isa, place: str) -> None:
    """`behind`: in the garbage that follows the list."""
    given = lists(2)
    rows = range(len(LISTED))
    unlisted = [next(t for t in range(VOCAB) if t not in given["ids"][row]) for row in rows]
    at: dict[str, Array] = {"first": 0 * LISTED, "last": LISTED - 1, "behind": LISTED}
    listed = [int(given["ids"][row, at.get(place, LISTED)[row]]) for row in rows]
    chosen = {"none": [-1] * 5, "elsewhere": unlisted}.get(place, listed)
    outputs = {name: (given[name].shape, given[name].dtype) for name in ("listed", "ids", "counts", "biases")}
    sizes = {"rows": len(LISTED), "room": ROOM}
    read = {"chosen": np.array(chosen, np.int32)}
    made = run_kernel(remember_of(isa), given | read, sizes, outputs=outputs, isa=isa)
    for row, token in enumerate(chosen):
        known = zip(*(given[name][row, : LISTED[row]].tolist() for name in ("ids", "counts", "biases")), strict=True)
        expected = {one: (count, bias) for one, count, bias in known}
        if token >= 0 and NUMBERS[row, 3]:
            count, bias = expected.get(token, (0, 0.0))
            expected[token] = max(count, 0) + 1, bias
        after = zip(
            *(made[name][row, : made["listed"][row]].tolist() for name in ("ids", "counts", "biases")), strict=True
        )
        assert {one: (count, bias) for one, count, bias in after} == expected
        assert made["listed"][row] == len(expected)
