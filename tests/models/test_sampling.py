"""A compiled model samples by the definition, and several steps in one native call give what single steps give."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mlc.backends.cpu.sync import MADE
from mlc.backends.reference.sample import distribution
from mlc.runtime.engine import Engine
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.settings import EngineSettings

PROMPT = [int(x) for x in np.random.default_rng(8).integers(0, 211, 41)]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=100),
    SamplingParams(temperature=1.0, max_tokens=90, seed=1),
    SamplingParams(temperature=2.0, top_p=0.9, max_tokens=100, seed=2),
    SamplingParams(temperature=3.0, top_k=20, min_p=0.1, max_tokens=70, seed=3),
    SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.2, max_tokens=50, seed=4),
    SamplingParams(temperature=0.0, frequency_penalty=0.3, presence_penalty=0.1, logit_bias={7: 2.0}, max_tokens=80),
    SamplingParams(temperature=1.0, repetition_penalty=1.1, min_tokens=5, logprobs=2, max_tokens=40, seed=5),
]
REQUESTS = [Request(PROMPT[i : 20 + 5 * i], params, id=str(i)) for i, params in enumerate(PARAMS)]


@pytest.fixture(scope="module")
def artifact(checkpoint, compiled):
    return compiled(checkpoint("qwen3").folder)


def answers(model, tokenizer, requests, **settings) -> dict[tuple[str, int], list[int]]:
    """The tokens of each request and choice."""
    engine = Engine(model, tokenizer, EngineSettings(check=True, **settings))
    for request in requests:
        engine.submit(request)
    tokens = {(request.id, choice): list[int]() for request in requests for choice in range(request.n)}
    while not engine.idle:
        for output in engine.step():
            assert output.error is None
            tokens[output.request, output.choice] += output.tokens
    return tokens


def each_alone(model, tokenizer, requests, **settings) -> dict[tuple[str, int], list[int]]:
    return {k: v for one in requests for k, v in answers(model, tokenizer, [one], **settings).items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_several_steps_in_one_call_give_the_tokens_of_single_steps(artifact, runner, no_text, threads, monkeypatch):
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)
    alone = each_alone(runner(artifact).model, no_text, REQUESTS, max_steps=1)
    assert len({tuple(tokens[:30]) for tokens in alone.values()}) == len(REQUESTS)
    model = runner(artifact, threads=threads).model
    for steps in (1, 7, 32):
        assert each_alone(model, no_text, REQUESTS, max_steps=steps) == alone
        assert answers(model, no_text, REQUESTS[:6], max_steps=steps) == {key: alone[key] for key in list(alone)[:6]}
        assert answers(model, no_text, REQUESTS, max_steps=steps) == alone
    small = runner(artifact, threads=threads, max_context=160, kv_tokens=256).model
    assert answers(small, no_text, REQUESTS, max_steps=32) == alone, "preempted"


@pytest.mark.parametrize("variant", ["qwen3", "mistral_window"])
def test_several_steps_go_on_where_a_context_is_split_or_shared(
    checkpoint, compiled, runner, no_text, variant, monkeypatch
):
    """Sequences reach the next span of attention within a call."""
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)
    folder = compiled(checkpoint(variant).folder)
    greedy, drawn = (SamplingParams(max_tokens=40, ignore_eos=True, temperature=t, seed=5) for t in (0.0, 2.0))
    long = [int(x) for x in np.random.default_rng(3).integers(0, 211, 300)]
    requests = [
        Request(long[:size], params, id=str(size))
        for size, params in ((240, greedy), (256, drawn), (270, drawn), (290, greedy))
    ]
    requests.append(Request(long, drawn, n=3, id="three"))
    alone = each_alone(runner(folder).model, no_text, requests, max_steps=1)
    for threads in (1, 2):
        model = runner(folder, threads=threads).model
        assert each_alone(model, no_text, requests, max_steps=40) == alone
        assert answers(model, no_text, requests, max_steps=40) == alone


@pytest.mark.parametrize("length", [20, 256])
def test_several_steps_are_one_native_call(artifact, runner, no_text, monkeypatch, length):
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)
    model = runner(artifact, threads=2).model
    prompt = (10 * PROMPT)[:length]
    native, steps = model.executor.native, []

    def watched(*arguments):
        native(*arguments)
        steps.append(int(model.executor._progress[MADE]))

    model.executor.native = watched
    requests = [
        Request(prompt, SamplingParams(temperature=0.0, max_tokens=41, ignore_eos=True), id=str(i)) for i in (0, 1)
    ]
    answers(model, no_text, requests, max_steps=16)
    assert steps[-3:] == [16, 16, 8] and sum(steps) in (41, 42), "the two prompts may take a step each"


def test_an_interrupt_ends_a_native_call_with_the_step_it_is_in(artifact, runner, no_text, monkeypatch):
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)
    for threads in (1, 2):
        model = runner(artifact, threads=threads).model
        executor, native, made = model.executor, model.executor.native, list[int]()

        def watched(*arguments, native=native, executor=executor, made=made):
            native(*arguments)
            made.append(int(executor._progress[MADE]))

        executor.native = watched
        request = Request(PROMPT[:20], SamplingParams(temperature=0.0, max_tokens=130, ignore_eos=True), id="0")
        whole = answers(model, no_text, [request])
        assert made[-1] > 100, "all but the first tokens are one call"
        late = 0
        for _ in range(200):
            del made[:]
            seen = list[int]()
            interrupter = threading.Thread(target=_interrupt_amid, args=(model, seen))
            interrupter.start()
            assert answers(model, no_text, [request]) == whole
            interrupter.join()
            model.interrupt(False)
            cut = next((steps for steps in made if steps >= seen[0]), None)
            late += cut is not None and seen[0] <= cut <= seen[1] + 1 and cut < 100
            if late:
                break
        assert late, "no call ended with the step in which it was interrupted"
        model.interrupt(True)
        del made[:]
        assert answers(model, no_text, [request]) == whole and set(made) == {1}
        model.interrupt(False)


def _interrupt_amid(model, seen):
    """Interrupt once several steps of a call are made; `seen` gets how many there were before and after."""
    progress, end = model.executor._progress, time.monotonic() + 5
    while not (before := int(progress[MADE])) > 3 and time.monotonic() < end:
        pass
    model.interrupt(True)
    seen += before, int(progress[MADE])


def test_a_compiled_model_draws_by_the_definition(artifact, runner):
    one = runner(artifact)
    logits = one.logits(PROMPT, 41)[-8:].copy()
    batch_logits = one.model._logits[: 8 * one.model.vocab].reshape(8, -1)
    batch_logits[:] = logits
    one.model.symbols["r"] = 8
    rules = np.tile(np.array([1 / 2.0, 50, 0.9, 0.01], np.float32), (8, 1))
    for u in np.random.default_rng(0).random((50, 8)):
        for x, token, share in zip(logits, one.model.sample(rules, u, [None] * 8).tolist(), u.tolist(), strict=True):
            p = distribution(x, *rules[0].tolist())
            assert p[token] > 0 and abs(p.cumsum()[token] - p[token] / 2 - share) <= p[token] / 2 + 1e-5
