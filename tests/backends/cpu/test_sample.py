"""Kernels that choose tokens, against the definition in float64: what is kept, with what share, at every edge."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from mlc.backends.cpu.isa import Isa, host_isa
from mlc.backends.cpu.kernel import Kernel
from mlc.backends.cpu.sample import advance, draw, kept_masses, most_probable, row_peaks, tally
from mlc.backends.cpu.sync import STOPS
from mlc.backends.cpu.threshold import histogram, threshold
from mlc.backends.cpu.vocabulary import BLOCK, PART, STRIPS, Bins, blocks, parts
from mlc.backends.reference.sample import distribution, sample
from tests.backends.cpu.conftest import RunKernel

Array = np.ndarray[Any, Any]
SMALL, LARGE = 300, PART + BLOCK + 79  # a remainder of every kind
VOCABS = (SMALL, 1, BLOCK, LARGE, BLOCK + 1)
RULES = [  # temperature, top_k, top_p, min_p
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.0, 40, 1.0, 0.0),
    (1.0, 5000, 1.0, 0.0),
    (1.0, 5000, 0.9, 0.0),
    (1.0, 0, 0.9, 0.0),
    (2.5, 0, 0.999, 0.0),
    (100.0, 0, 0.5, 0.0),
    (0.3, 0, 0.3, 0.0),
    (1.0, 0, 1.0, 0.05),
    (2.0, 60, 0.8, 0.02),
    (0.6, 20, 0.95, 0.0),
    (1e-6, 3, 0.5, 0.0),
]


def rule(temperature: float, top_k: int, top_p: float, min_p: float) -> tuple[float, ...]:
    return (1 / temperature if temperature else 0.0, top_k, top_p, min_p)


class Kernels:
    """The kernels in the order of a step."""

    def __init__(self, run_kernel: RunKernel, vocab: int, isa: Isa) -> None:
        self.run_kernel, self.vocab, self.isa = run_kernel, vocab, isa
        self.list = (
            row_peaks(vocab, isa),
            most_probable(vocab),
            histogram(vocab, isa),
            threshold(vocab, isa),
            kept_masses(vocab, isa),
            draw(vocab, isa),
        )

    def __call__(self, logits: Array, rules: Array, draws: Array) -> Array:
        tokens = self.run(logits, rules, draws)["tokens"]
        assert isinstance(tokens, np.ndarray)
        return tokens

    def run(self, logits: Array, rules: Array, draws: Array) -> dict[str, Array | str]:
        """All that they write."""
        r = len(logits)
        memory: dict[str, Array | str] = {"logits": logits, "rules": rules, "draws": np.stack((draws - 1, draws))}
        memory["progress"] = np.array([0, 0, 1], np.int32)  # the second step
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "peaks": ((r, blocks(self.vocab)), np.float32),
            "peak": ((r,), np.float32),
            "tokens": ((r,), np.int32),
            "bins": ((r, parts(self.vocab), Bins.of(self.vocab).count), np.int64),
            "least": ((r,), np.float32),
            "last": ((r,), np.int32),
            "masses": ((r, blocks(self.vocab)), np.float32),
            "strips": ((r, blocks(self.vocab), STRIPS), np.float32),
        }
        for kernel in self.list:
            names = [p.name for p in kernel.pointers]
            changed = {"draw": ["tokens"], "threshold": ["bins"]}.get(kernel.name.partition("_")[0], [])
            outputs = {name: shapes[name] for name in names if name in shapes and name not in memory}
            outputs |= {name: shapes[name] for name in changed}
            given = {name: memory[name] for name in names if name in memory}
            memory |= self.run_kernel(kernel, given, {"rows": r}, outputs=outputs, isa=self.isa)
        return memory


MakeKernels = Callable[..., Kernels]


@pytest.fixture(scope="module")
def kernels(run_kernel: RunKernel) -> MakeKernels:
    """Those of a vocabulary and an instruction set (this machine's), compiled once."""
    made = cache(lambda vocab, isa: Kernels(run_kernel, vocab, isa))
    return lambda vocab, isa=None: made(vocab, isa or host_isa())


def check(kernels: Kernels, logits: Array, rules: list[tuple[float, ...]], draws: Array) -> None:
    """The tokens left are those that the definition leaves; the drawn one's interval of their cumulative sum holds the
    draw.
    """
    made, ids = kernels.run(logits, np.array(rules, np.float32), draws), np.arange(kernels.vocab)
    found = zip(*(np.asarray(made[name]).tolist() for name in ("tokens", "least", "last")), strict=True)
    for x, (factor, *limits), u, (token, least, last) in zip(logits, rules, draws, found, strict=True):
        if factor == 0:
            assert token == x.argmax()
            continue
        p = distribution(x, factor, *limits)
        above = p.cumsum()[token]
        assert p[token] > 0 and above - p[token] - 2e-6 <= u <= above + 2e-6, (factor, limits, u)
        wanted = distribution(x, factor, limits[0], limits[1], 0.0)
        wrong = ((x > least) | ((x == least) & (ids <= last))) != (wanted > 0)
        everything = distribution(x, factor, 0, 1.0, 0.0)
        assert everything[wrong].sum() < 2e-6, f"{factor}, {limits}: {wrong.sum()} tokens are left or not by mistake"
        assert limits[1] < 1 or not wrong.any() or not everything[wrong].any(), "top_k alone is exact"


@pytest.mark.parametrize("vocab", VOCABS)
def test_tokens_are_those_of_the_definition(kernels: MakeKernels, isa: Isa, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for scale in (0.5, 4.0):
        logits = (rng.standard_normal((len(RULES), vocab)) * scale).astype(np.float32)
        for _ in range(3):
            check(kernels(vocab, isa), logits, [rule(*r) for r in RULES], rng.random(len(RULES)))


def test_the_share_of_each_token_is_its_probability(kernels: MakeKernels) -> None:
    """u runs over an even grid, so that counts differ from probabilities by less than the ends of intervals."""
    grid = 2000
    x = (np.random.default_rng(1).standard_normal(SMALL) * 3).astype(np.float32)
    for one in RULES[1:]:
        rows, draws = np.broadcast_to(x, (grid, SMALL)), (np.arange(grid) + 0.5) / grid
        tokens = kernels(SMALL)(rows, np.broadcast_to(np.array(rule(*one), np.float32), (grid, 4)), draws)
        shares = np.bincount(tokens, minlength=SMALL) / grid
        np.testing.assert_allclose(shares, distribution(x, *rule(*one)), atol=1.1 / grid)


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_equal_logits_are_cut_by_id(kernels: MakeKernels, vocab: int) -> None:
    grid = 60
    for limits, left in (((4, 1.0), 4), ((0, 0.35), -(-35 * vocab // 100)), ((5, 0.5), 3)):
        rows = np.zeros((grid, vocab), np.float32)
        rows[:, ::2] = -0.0
        rules = np.broadcast_to(np.array(rule(1.0, *limits, 0.0), np.float32), (grid, 4))
        draws = np.linspace(0.0, 1.0 - 2**-53, grid)
        tokens = kernels(vocab)(rows, rules, draws)
        assert tokens.min() == 0 and tokens.max() == left - 1
        np.testing.assert_allclose(tokens, np.floor(draws * left), atol=1)


def test_impossible_tokens_are_never_drawn(kernels: MakeKernels) -> None:
    x = np.full(LARGE, -np.inf, np.float32)
    x[[17, BLOCK + 5]] = 1.0, 2.0
    draws = np.array([0.0, 0.3, 0.99, 1.0 - 2**-53, 1.0])
    for limits in ((0, 1.0, 0.0), (5, 1.0, 0.0), (500, 1.0, 0.0), (0, 0.99, 0.0), (0, 1.0, 1e-9), (3, 0.9999, 0.0)):
        rules = np.broadcast_to(np.array(rule(1.0, *limits), np.float32), (5, 4))
        assert set(kernels(LARGE)(np.broadcast_to(x, (5, LARGE)), rules, draws).tolist()) == {17, BLOCK + 5}


def test_rows_that_cannot_be_sampled_say_why(kernels: MakeKernels, isa: Isa) -> None:
    logits = np.random.default_rng(0).standard_normal((7, LARGE)).astype(np.float32)
    logits[0, -1] = np.nan
    logits[1, 5] = np.inf
    logits[2] = -np.inf
    logits[3, 1] = -np.inf
    logits[4, 9] = np.float32(np.nan) * np.float32(-1)
    logits[5, :] = -3e38
    for factor in (0.0, 1.0):
        rules, draws = np.tile(np.array([factor, 0, 0.9, 0], np.float32), (7, 1)), np.full(7, 0.5)
        tokens = kernels(LARGE, isa)(logits, rules, draws)
        assert tokens[[0, 1, 2, 4]].tolist() == [-1, -1, -2, -1] and (tokens[[3, 5, 6]] >= 0).all()
        assert sample(logits, rules, draws)[[0, 1, 2, 4]].tolist() == [-1, -1, -2, -1]


def test_a_row_gives_the_same_token_alone_and_among_others(kernels: MakeKernels) -> None:
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((len(RULES), LARGE)) * 2).astype(np.float32)
    rules, draws = np.array([rule(*r) for r in RULES], np.float32), rng.random(len(RULES))
    together = kernels(LARGE)(logits, rules, draws).tolist()
    assert together == [
        int(kernels(LARGE)(logits[i : i + 1], rules[i : i + 1], draws[i : i + 1])[0]) for i in range(len(RULES))
    ]


@pytest.mark.parametrize("left", [1, 0])
def test_the_next_step_of_sequences_that_decode(run_kernel: RunKernel, left: int) -> None:
    """Members may stand in another order than rows."""
    page, stride = 4, 3
    tables = np.arange(6, dtype=np.int32).reshape(2, stride)[:, ::-1].copy()
    given = {
        "tokens": np.array([1, 2], np.int32),
        "positions": np.array([6, 7], np.int32),
        "slots": np.array([6, 7], np.int32),
        "members": np.array([[1, 7, 3], [0, 6, 9]], np.int32),
    }
    outputs = {name: (array.shape, array.dtype) for name, array in given.items()}
    read = {"chosen": np.array([11, 12], np.int32), "tables": tables, "progress": np.array([0, left, 1], np.int32)}
    sizes = {"rows": 2, "stride": stride}
    after = run_kernel(advance(page), given | read, sizes, outputs=outputs, isa=host_isa())
    if not left:
        assert all(np.array_equal(after[name], array) for name, array in given.items())
        return
    assert after["tokens"].tolist() == [11, 12] and after["positions"].tolist() == [7, 8]
    assert after["slots"].tolist() == [1 * page + 3, 3 * page + 0]
    assert after["members"].tolist() == [[1, 8, 3], [0, 7, 9]]


@pytest.mark.parametrize(
    ("chosen", "before", "after"),
    [  # repeats, steps left, steps made, whether to end now
        ([5, 6], (3, 4, 1, 0), [2, 3, 2, 0]),
        ([5, 6], (0, 4, 1, 0), [0, 3, 2, 0]),
        ([5, 6], (0, 1, 3, 0), [0, 0, 4, 0]),
        ([5, 64], (3, 4, 1, 0), [0, 0, 2, 0]),  # a stop of the row
        ([64, 6], (3, 4, 1, 0), [2, 3, 2, 0]),  # of another one
        ([-2, 6], (3, 4, 1, 0), [0, 0, 2, 0]),
        ([5, 6], (3, 4, 1, 1), [0, 0, 2, 1]),
    ],
)
def test_no_step_follows_a_stop_or_an_interrupt(
    run_kernel: RunKernel, isa: Isa, tallies: dict[Isa, Kernel], chosen: list[int], before: Any, after: list[int]
) -> None:
    stops = np.full((2, STOPS), -1, np.int32)
    stops[0, :2], stops[1] = (7, 8), np.arange(STOPS)[::-1] + 63
    history = np.zeros((5, 2), np.int32)
    given = {"chosen": np.array(chosen, np.int32), "stops": stops, "progress": np.array(before, np.int32)}
    outputs: dict[str, Any] = {"progress": ((4,), np.int32), "history": ((5, 2), np.int32)}
    kernel = tallies.setdefault(isa, tally(isa))
    made = run_kernel(kernel, given | {"history": history}, {"rows": 2}, outputs=outputs, isa=isa)
    assert made["progress"].tolist() == after
    history[before[2]] = chosen
    assert np.array_equal(made["history"], history)


@pytest.fixture(scope="module")
def tallies() -> dict[Isa, Kernel]:
    return {}
