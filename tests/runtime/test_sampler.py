"""The sampler against a plain float64 implementation of the same definition, and against its distributions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mlc.backends.reference.sample import Listed, ReferenceSampling
from mlc.errors import GenerationFailed, InvalidRequest
from mlc.runtime.batch import Batch
from mlc.runtime.request import TokenLogprobs
from mlc.runtime.sampler import Draws, Sampled, Sampler, SamplerState
from mlc.runtime.sampling import SamplingParams

PROMPT = np.array([3, 5, 5, 8], np.int32)
LARGE = 50_000  # tokens: past every shortcut for small vocabularies


def state(params: SamplingParams, *, seed: int = 0, choice: int = 0, stop_ids: tuple[int, ...] = ()) -> SamplerState:
    return SamplerState(params, prompt=PROMPT, seed=seed, choice=choice, stop_ids=stop_ids)


def logits(vocab: int, seed: int = 0, scale: float = 3.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(vocab) * scale).astype(np.float32)


class Given(ReferenceSampling):
    """A model that has returned `logits`, which it samples by the definition."""

    pages = page_size = max_tokens = max_sequences = max_context = 1

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits, self.vocab = logits, logits.shape[-1]

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return self.logits


def results(rows: NDArray[np.float32], states: Sequence[SamplerState]) -> list[Sampled]:
    model = Given(rows)
    return Sampler(model).sample(model.logits, states)


@dataclass(frozen=True)
class Token:
    token: int
    told: TokenLogprobs | None


def sample(x: NDArray[np.float32], *states: SamplerState) -> list[Token]:
    made = list[Token]()
    for (token, *others), logprobs, failure in results(np.tile(x, (len(states), 1)), states):
        if failure is not None:
            raise failure
        assert not others
        made.append(Token(token, logprobs[0] if logprobs is not None else None))
    return made


def drawn(x: NDArray[np.float32], params: SamplingParams, draws: Sequence[float]) -> list[int]:
    """The token at each of `draws` in the distribution that `params` make of `x`."""
    rules = np.tile(np.array(state(params).rule, np.float32), (len(draws), 1))
    rows = np.broadcast_to(x, (len(draws), len(x)))
    tokens: list[int] = Given(rows).sample(rules, np.array(draws), [None] * len(draws)).tolist()
    return tokens


def distribution(x: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """What is left of softmax(x / temperature), by sorting everything in float64."""
    scaled = x.astype(np.float64) / params.temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-x, kind="stable")
    keep = np.ones(len(x), bool)
    if params.top_k:
        keep[order[params.top_k :]] = False
    p = np.where(keep, p, 0.0) / p[keep].sum()
    before = np.concatenate(([0.0], p[order].cumsum()[:-1]))  # mass of all that is more probable
    keep[order[(before >= params.top_p) & (np.arange(len(x)) > 0)]] = False
    keep &= p >= params.min_p * p.max()
    p = np.where(keep, p, 0.0)
    return np.asarray(p / p.sum())


FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=3.0),
    SamplingParams(top_k=40),
    SamplingParams(top_k=LARGE // 4),
    SamplingParams(top_k=10 * LARGE),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.3),
    SamplingParams(top_p=0.999),
    SamplingParams(temperature=2.5, top_p=0.99),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=2.0, min_p=0.3),
    SamplingParams(temperature=1.5, top_k=50, top_p=0.8, min_p=0.02),
    SamplingParams(top_k=10 * LARGE, top_p=0.5),
]


@pytest.mark.parametrize("vocab", [7, 300, LARGE])
@pytest.mark.parametrize("params", FILTERS)
def test_exactly_the_tokens_of_the_definition_can_be_drawn(params: SamplingParams, vocab: int) -> None:
    x = logits(vocab)
    expected = distribution(x, params)
    possible = set(np.flatnonzero(expected).tolist())
    seen = set(drawn(x, params, np.linspace(0.0, 1.0 - 2**-53, 400 if vocab < LARGE else 50).tolist()))
    assert seen <= possible
    if len(possible) <= 20 and expected[expected > 0].min() > 0.01:
        assert seen == possible


@pytest.mark.parametrize("params", FILTERS)
def test_the_share_of_each_token_is_its_probability(params: SamplingParams) -> None:
    """u runs over an even grid, so that the counts differ from the probabilities by less than the ends of intervals."""
    vocab, grid = 300, 20_000
    x = logits(vocab, seed=1)
    counts = np.bincount(drawn(x, params, ((np.arange(grid) + 0.5) / grid).tolist()), minlength=vocab)
    np.testing.assert_allclose(counts / grid, distribution(x, params), atol=1.1 / grid)


def test_the_filters_keep_what_those_of_transformers_keep() -> None:
    x = logits(1000, seed=3)
    tensor, ids = torch.from_numpy(x.copy())[None], torch.zeros((1, 1), dtype=torch.long)
    for warper in (TemperatureLogitsWarper(1.3), TopKLogitsWarper(60), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)):
        tensor = warper(ids, tensor)
    params = SamplingParams(temperature=1.3, top_k=60, top_p=0.8, min_p=0.05)
    np.testing.assert_allclose(distribution(x, params), torch.softmax(tensor, -1)[0].numpy(), atol=1e-6)


def test_the_frequencies_of_a_seeded_run_pass_a_chi_square_test() -> None:
    x, params = logits(50, seed=4, scale=1.0), SamplingParams(temperature=0.8, top_k=20, seed=11)
    one = state(params, seed=11)
    tokens = [sample(x, one)[0].token for _ in range(8000)]
    expected = distribution(x, params) * len(tokens)
    kept = expected > 0
    counts = np.bincount(tokens, minlength=50)
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 43.8  # the 0.1 % point for 19 degrees of freedom


def uniform(seed: int, choice: int, first: int, count: int) -> list[float]:
    out = np.full((count, 2), -1.0)
    Draws(seed, choice).take(first, out[:, 1])
    assert (out[:, 0] == -1).all()
    values: list[float] = out[:, 1].tolist()
    return values


def test_uniform_numbers_are_even_and_depend_on_seed_choice_and_index_alone() -> None:
    values = uniform(7, 0, 0, 10_000)
    assert all(0.0 <= value < 1.0 for value in values)
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 500.0) ** 2 / 500.0).sum() < 43.8
    assert len(set(values)) == len(values)  # no block repeats another
    for first, count in ((777, 1), (3, 200), (64, 64), (63, 2), (128, 0)):
        assert uniform(7, 0, first, count) == values[first : first + count]
    others = [uniform(seed, choice, 5, 1)[0] for seed, choice in ((8, 0), (7, 1), (7 + 2**32, 0), (-7, 0))]
    assert len({values[5], *others}) == 5


def test_greedy_takes_the_most_probable_token_and_the_lower_id_among_equals() -> None:
    x = np.array([1.0, 4.0, 4.0, 2.0], np.float32)
    for params in (SamplingParams(temperature=0), SamplingParams(top_k=1), SamplingParams(top_p=0)):
        assert sample(x, state(params))[0].token == 1


def test_equal_logits_are_cut_by_id_exactly_at_k() -> None:
    for vocab in (10, LARGE):
        x = np.zeros(vocab, np.float32)
        assert set(drawn(x, SamplingParams(top_k=4), np.linspace(0, 0.999, 50).tolist())) == {0, 1, 2, 3}


def test_impossible_tokens_are_never_drawn_not_even_at_the_end_of_the_interval() -> None:
    x = np.full(200, -np.inf, np.float32)
    x[[17, 150]] = 1.0, 2.0
    for params in (SamplingParams(), SamplingParams(top_k=5), SamplingParams(top_p=0.99), SamplingParams(min_p=1e-9)):
        assert set(drawn(x, params, (0.0, 0.3, 0.99, 1.0 - 2**-53, 1.0))) == {17, 150}, params


def test_the_lowest_temperatures_take_the_most_probable_token() -> None:
    x = logits(LARGE)
    x[5] = -3e38
    for params in FILTERS:
        cold = replace(params, temperature=2e-7)
        assert sample(x, state(cold))[0].token == x.argmax()


def penalized(params: SamplingParams, answer: list[int], x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The definition of the penalties, token by token."""
    result = x.astype(np.float64)
    for token in {*PROMPT.tolist(), *answer}:
        r = params.repetition_penalty
        result[token] = result[token] / r if result[token] > 0 else result[token] * r
    for token in set(answer):
        result[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty
    for token, bias in params.logit_bias.items():
        result[token] += bias
    return result


PENALTIES = [
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(presence_penalty=0.7),
    SamplingParams(frequency_penalty=-0.4),
    SamplingParams(logit_bias={2: 5.0, 7: -100.0}),
    SamplingParams(repetition_penalty=0.8, presence_penalty=-0.5, frequency_penalty=0.3, logit_bias={3: 1.5}),
]


@pytest.mark.parametrize("params", PENALTIES)
def test_penalties_follow_their_definition_as_the_answer_grows(params: SamplingParams) -> None:
    one, answer, rng = state(params), list[int](), np.random.default_rng(5)
    for step in range(60):
        x = logits(40, seed=step)
        expected = penalized(params, answer, x)
        Listed(one).adjust(x)
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
        answer.append(int(rng.integers(40)))
        one.record(answer[-1:])


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    x, one = logits(40), state(SamplingParams(repetition_penalty=1.7))
    one.record([9])
    ids = torch.tensor([[*PROMPT.tolist(), 9]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, torch.from_numpy(x.copy())[None])[0].numpy()
    Listed(one).adjust(x)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_penalties_change_what_is_chosen_and_not_the_logits_of_the_model() -> None:
    x = np.array([0.0, 3.0, 2.9, 1.0], np.float32)
    one = state(SamplingParams(temperature=0, frequency_penalty=0.5))
    assert [sample(x, one)[0].token for _ in range(4)] == [1, 2, 1, 2]
    assert x.tolist() == np.array([0.0, 3.0, 2.9, 1.0], np.float32).tolist()


def test_stop_ids_are_impossible_before_the_least_number_of_tokens() -> None:
    x = np.array([0.0, 9.0, 1.0], np.float32)
    one = state(SamplingParams(temperature=0, min_tokens=2), stop_ids=(1,))
    assert [sample(x, one)[0].token for _ in range(3)] == [2, 2, 1]


def test_log_probabilities_are_those_of_the_model_whatever_the_sampling() -> None:
    for vocab in (50, LARGE):
        x = logits(vocab, seed=6)
        expected = torch.log_softmax(torch.from_numpy(x).double(), -1)
        best, ids = torch.topk(expected, 20)
        params = SamplingParams(temperature=0.3, top_k=5, presence_penalty=2.0, logit_bias={3: 100.0}, logprobs=20)
        result = sample(x, state(params))[0]
        assert result.token == 3 and result.told is not None
        assert result.told.logprob == pytest.approx(float(expected[3]), abs=1e-4)
        assert [token for token, _ in result.told.top] == ids.tolist()
        np.testing.assert_allclose([value for _, value in result.told.top], best.numpy(), atol=1e-4)


def test_as_many_alternatives_are_reported_as_asked_for() -> None:
    x = logits(8)
    for count, reported in ((0, 0), (3, 3), (20, 8)):
        told = sample(x, state(SamplingParams(temperature=0, logprobs=count)))[0].told
        assert told is not None and len(told.top) == reported
    assert sample(x, state(SamplingParams(temperature=0)))[0].told is None
    x[2] = -np.inf
    told = sample(x, state(SamplingParams(temperature=0, logprobs=20)))[0].told
    assert told is not None and len(told.top) == 7 and all(math.isfinite(value) for _, value in told.top)


def test_a_row_gives_the_same_token_alone_and_among_others() -> None:
    rows = np.stack([logits(LARGE, seed=i) for i in range(len(FILTERS + PENALTIES))])
    several = [state(params, seed=i) for i, params in enumerate(FILTERS + PENALTIES)]
    alone = [state(params, seed=i) for i, params in enumerate(FILTERS + PENALTIES)]
    for _ in range(3):
        before = rows.copy()
        together = results(rows, several)
        assert together == [results(rows[i : i + 1], [one])[0] for i, one in enumerate(alone)]
        assert rows.tobytes() == before.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_fails_leaves_the_others_alone(bad: float) -> None:
    rows = np.stack([logits(100), logits(100), logits(100)])
    rows[1, 77] = bad
    first, second, third = results(rows, [state(SamplingParams(temperature=0)) for _ in range(3)])
    assert isinstance(second.failure, GenerationFailed) and "not finite" in str(second.failure) and not second.tokens
    assert first == third == Sampled((int(logits(100).argmax()),))


def test_a_request_that_leaves_no_token_possible_fails_with_the_reason() -> None:
    x = np.array([-np.inf, 1.0], np.float32)[None]
    one = state(SamplingParams(temperature=0, min_tokens=1), stop_ids=(1,))
    (result,) = results(x, [one])
    assert isinstance(result.failure, GenerationFailed) and "no token possible" in str(result.failure)


def test_logits_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(GenerationFailed, match="2 sequences sample and the model returned 1"):
        results(np.zeros((1, 5), np.float32), [state(SamplingParams())] * 2)


def out_of_range() -> Iterator[tuple[str, Any]]:
    nan, inf = math.nan, math.inf
    yield from (("temperature", value) for value in (-0.1, nan, inf, "hot", None, True, 1e9, 10**400))
    yield from (("top_k", value) for value in (-1, 0.5, "4", True, 2**40, None))
    yield from (("top_p", value) for value in (-0.1, 1.1, nan, [0.5], "x"))
    yield from (("min_p", value) for value in (-0.1, 1.1, nan, None))
    yield from (("repetition_penalty", value) for value in (0, -1, nan, inf, 11))
    yield from (("presence_penalty", value) for value in (-2.1, 2.1, nan))
    yield from (("frequency_penalty", value) for value in (-2.1, 2.1, inf))
    yield from (("seed", value) for value in (1.5, "7", 2**64, -(2**64), True))
    yield from (("max_tokens", value) for value in (0, -1, 1.5, 2**31, "9", True))
    yield from (("min_tokens", value) for value in (-1, None, 0.5))
    yield from (("stop", value) for value in ("", [""], [3], None, ["x"] * 17, ["x" * 1025], {"a": 1}))
    yield from (("stop_ids", value) for value in ([-1], [1.5], "12", [True], [2**31], 3, list(range(17))))
    yield from (("logprobs", value) for value in (-1, 21, 2.0, True))
    yield from (("ignore_eos", value) for value in (1, "yes", None))
    biases: Any = ({-1: 0.0}, {1: nan}, {1: 101}, {1: "x"}, {"1": 1.0}, [1], {i: 0.0 for i in range(1025)}, {1: True})
    yield from (("logit_bias", value) for value in biases)


@pytest.mark.parametrize(("field", "value"), list(out_of_range()))
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**fields)
    assert caught.value.param == field and len(str(caught.value)) < 300


def test_parameters_that_contradict_each_other_or_the_model_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens is 5; expected at most max_tokens, 4"):
        SamplingParams(min_tokens=5, max_tokens=4)
    for params in (SamplingParams(logit_bias={10: 1.0}), SamplingParams(stop_ids=[10])):
        params.check_vocab(11)
        with pytest.raises(InvalidRequest, match="token ids below 10"):
            params.check_vocab(10)


def test_values_are_normalized() -> None:
    numbers: dict[str, Any] = {"top_k": np.int64(3), "stop_ids": [np.int32(4)]}
    params = SamplingParams(temperature=1, stop="END", logit_bias={5: 1}, **numbers)
    assert (params.temperature, params.top_k, params.stop, params.stop_ids) == (1.0, 3, ("END",), (4,))
    assert type(params.top_k) is int and type(params.stop_ids[0]) is int and type(params.logit_bias[5]) is float
