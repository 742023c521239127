"""The engine: requests in, tokens out, one step at a time. It has no thread; whoever owns it calls `step`."""

from __future__ import annotations

import logging
import math
import secrets
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import count
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlc.errors import GenerationFailed, InvalidRequest, Overloaded, PromptTooLong, RequestError

from .batch import Batch, BatchBuilder, Model
from .choice import Choice
from .kv import PagePool
from .prefix import PrefixTree
from .request import Output, Request, Tokenizer
from .sampler import Sampled, Sampler, SamplerState
from .sampling import SamplingParams
from .scheduler import Scheduler, Work
from .sequence import Sequence as Text
from .settings import EngineSettings, Statistics

CALL_SECONDS = 0.08  # of steps in one call of the model, whose tokens come together; `interrupt` cuts it short

_log = logging.getLogger("mlc.engine")


class Engine:
    """Serves requests with one model.

    The same request gives the same tokens alone and in a batch, after a preemption, and with or without cached
    prefixes, as far as the model gives the same logits. A request that fails ends itself only.

        engine = Engine(model, tokenizer)
        for output in engine.generate("Once upon a time", SamplingParams(max_tokens=100)):
            print(output.text, end="")
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.limits = self.settings.within(model)
        self._model, self._tokenizer = model, tokenizer
        self._eos_ids = frozenset(tokenizer.eos_ids)
        self._pool = PagePool(model.pages, PrefixTree(model.page_size))
        self._scheduler = Scheduler(
            self._pool,
            max_step_tokens=self.limits.step_tokens,
            max_sequences=self.limits.sequences,
            share=self.settings.prefix_cache,
        )
        self._builder = BatchBuilder(
            page_size=model.page_size,
            max_tokens=self.limits.step_tokens,
            max_sequences=self.limits.sequences,
            pages_per_sequence=-(-model.max_context // model.page_size),
        )
        self._sampler = Sampler(model)
        self._arrivals = count()
        self._names = count(1)
        self._choices: dict[Text, Choice] = {}  # those under way
        self._requests: dict[str, set[Choice]] = {}  # the same, by request
        self._ended: list[Output] = []  # ends that happened between two steps
        self._mail: dict[str, deque[Output]] = {}  # outputs of requests that `generate` reads
        self._pace = math.inf, 1  # seconds of the last step in which every sequence decoded, and how many there were
        self._counts = Statistics(pages=model.pages)
        self._finished: Counter[str] = Counter()

    # requests

    def submit(self, request: Request) -> str:
        """Queue `request`; returns its id. Its outputs come from `step`.

        Raises `InvalidRequest`, `PromptTooLong` (it can never fit), or `Overloaded` (the queue is full: try later).
        """
        params = request.params
        params.check_vocab(self._model.vocab)
        tokens = self._prompt(request.tokens)
        if type(request.n) is not int or not 1 <= request.n <= self.settings.max_choices:
            raise InvalidRequest(f"n is {request.n!r}; expected 1 to {self.settings.max_choices}", param="n")
        for param, text in (("salt", request.salt), ("id", request.id or "")):
            if not isinstance(text, str):
                raise InvalidRequest(f"{param} is {text!r}; expected a string", param=param)
        if len(self._scheduler.waiting) + request.n > self.settings.max_queue:
            self._counts.rejected += 1
            raise Overloaded(
                f"{len(self._scheduler.waiting)} answers wait, {request.n} more were asked for, and the queue holds "
                f"{self.settings.max_queue}; try again later, or start the engine with a larger --max-queue"
            )
        name = request.id if request.id is not None else self._fresh_name()
        if name in self._requests:
            raise InvalidRequest(f"a request with the id {name!r} is under way; choose another", param="id")
        self._enqueue(name, request, tokens)
        self._counts.requests += 1
        return name

    def cancel(self, request: str) -> bool:
        """End `request` now: its pages are free on return, its last outputs come with the next step.

        False if it is not under way, because it has just ended, say.
        """
        choices = sorted(self._requests.get(request, ()), key=lambda choice: choice.index)
        for choice in choices:
            self._ended.append(self._retire(choice, choice.end("cancelled", perf_counter())))
        self._ended = self._deliver(self._ended)
        return bool(choices)

    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, *, n: int = 1, salt: str = ""
    ) -> Iterator[Output]:
        """Submit at the first `next`, then step and yield the outputs of this request until it ends.

        Closing the iterator cancels the request. Several such iterators may be read by turns.
        Raises what `submit` raises, and `GenerationFailed` if the engine could not finish an answer.
        """
        tokens = self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        name = self.submit(Request(tokens, params or SamplingParams(), n, salt))
        mail = self._mail[name] = deque()
        try:
            while mail or name in self._requests:
                while mail:
                    output = mail.popleft()
                    if output.error is not None:
                        raise GenerationFailed(output.error)
                    yield output
                self._ended += self._deliver(self._step())
        finally:
            self.cancel(name)
            del self._mail[name]

    # steps

    @property
    def idle(self) -> bool:
        """Whether `step` would have nothing to do and nothing to tell."""
        return not self._choices and not self._ended

    def step(self) -> list[Output]:
        """Advance every running sequence, by one token or by a part of its prompt; returns what became of it."""
        outputs, self._ended = self._ended, []
        return self._deliver(outputs + self._step())

    def interrupt(self, wanted: bool) -> None:
        """Any thread: let the call of the model end with the step it is in, and so each that follows, or no longer.

        Several steps may be one call, in which nobody reads what has arrived.
        """
        self._model.interrupt(wanted)

    def _step(self) -> list[Output]:
        started = perf_counter()
        step = self._scheduler.plan()
        if not step:
            return []
        self._note_started(step, started)
        batch = self._builder.build(step, self._count_steps(step))
        if self.settings.check:
            batch.check(self._model.page_size, self._model.pages)
        steps, choices = 1, [self._choices[work.sequence] for work in step if work.samples]
        try:
            sampled = self._run(choices, batch)
        except Exception as error:
            outputs = self._abandon(step, error)
        else:
            self._scheduler.advance(step)
            steps = max((len(result.tokens) + (result.failure is not None) for result in sampled), default=1)
            now = perf_counter()
            pairs = zip(choices, sampled, strict=True)
            outputs = [output for choice, result in pairs for output in self._accept(choice, result, now)]
        if self.settings.check:
            self.check()
        self._count(step, steps, perf_counter() - started)
        return outputs

    def _count_steps(self, step: Sequence[Work]) -> int:
        """How many steps to make of `step` in one call of the model: as many as take CALL_SECONDS, if all sequences
        decode without needing anything of us between them, and nobody waits who could start. A first token comes alone.
        """
        if not self._scheduler.settled or any(w.sequence.pending > 1 or not w.sequence.answered for w in step):
            return 1
        choices = [self._choices[work.sequence] for work in step]
        if not all(choice.sampler_state.alone for choice in choices):
            return 1
        left = min(choice.sequence.limit - choice.sequence.length for choice in choices)
        pace, sequences = self._pace
        seconds = min(self._counts.last_step_seconds, pace * max(1.0, len(step) / sequences))
        steps = min(self.settings.max_steps, left, int(CALL_SECONDS / max(seconds, 1e-6)))
        return steps if steps > 1 and self._scheduler.reserve(step, steps) else 1

    def _run(self, choices: Sequence[Choice], batch: Batch) -> list[Sampled]:
        """What each choice gets, one token for each step."""
        before, states = perf_counter(), [choice.sampler_state for choice in choices]
        if states and all(state.alone for state in states):
            sampled = self._sampler.decode(batch, states, [choice.stop_ids for choice in choices])
            self._counts.model_seconds += perf_counter() - before
            return sampled
        logits = self._model.run(batch)
        self._counts.model_seconds += perf_counter() - before
        return self._sampler.sample(logits, states)

    def _accept(self, choice: Choice, sampled: Sampled, now: float) -> Iterator[Output]:
        """Add to `choice` the tokens of one step or of several; what a failure follows still counts."""
        tokens, logprobs, failure = sampled
        try:
            if tokens:
                output = choice.accept(tokens, logprobs, now)
                self._counts.completion_tokens += len(output.tokens)
                if len(output.tokens) > 1:  # all but the last have been run
                    self._scheduler.advance([Work(choice.sequence, len(output.tokens) - 1, True)])
                yield output if output.finish_reason is None else self._retire(choice, output)
                if output.finish_reason is not None:
                    return
        except Exception as error:
            failure = error
        if failure is not None:
            end = choice.end("error", now, error=self._explain(choice, failure))
            yield self._retire(choice, end, keep=False)

    def _count(self, step: Sequence[Work], steps: int, seconds: float) -> None:
        counts, tokens = self._counts, sum(work.tokens for work in step)
        counts.steps += steps
        counts.last_step_tokens = tokens
        counts.computed_tokens += steps * tokens
        counts.last_step_seconds = seconds / steps
        if tokens == len(step):
            self._pace = counts.last_step_seconds, tokens
        counts.step_seconds += seconds

    def _abandon(self, step: Sequence[Work], error: Exception) -> list[Output]:
        """The step failed as a whole: its requests end, and nothing that the pages hold is trusted any more."""
        now, outputs = perf_counter(), list[Output]()
        for work in step:
            choice = self._choices[work.sequence]
            end = choice.end("error", now, error=self._explain(choice, error))
            outputs.append(self._retire(choice, end, keep=False))
        self._scheduler.distrust()
        return outputs

    def _explain(self, choice: Choice, error: Exception) -> str:
        """What the sender may read: our own messages; of anything else the kind, since its text may hold secrets."""
        _log.error("request %s, choice %d failed", choice.request, choice.index, exc_info=error)
        if isinstance(error, RequestError):
            return str(error)
        return f"the engine failed to continue this answer ({type(error).__name__}); its log says more"

    # bookkeeping

    def statistics(self) -> Statistics:
        """A snapshot."""
        return msgspec.structs.replace(
            self._counts,
            finished=dict(self._finished),
            preemptions=self._scheduler.preemptions,
            evictions=self._pool.evictions,
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            pages_free=self._pool.available,
            pages_cached=self._pool.idle,
        )

    def check(self) -> None:
        """Prove the laws of the engine's state. Takes time in proportion to the pages: call it when idle."""
        scheduler = self._scheduler
        scheduler.check()
        assert set(scheduler.waiting + scheduler.running) == set(self._choices), "a sequence without its choice"
        assert {c for choices in self._requests.values() for c in choices} == set(self._choices.values())
        assert all(self._requests.values()), "a request without choices is still under way"
        if not self._choices:
            assert self._pool.available == self._pool.pages, "nobody runs and pages are in use"

    def _prompt(self, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
        try:
            if len(tokens) >= self.limits.context:  # before it is copied
                raise PromptTooLong(tokens=len(tokens), limit=self.limits.context)
            array = np.asarray(tokens)
        except (TypeError, ValueError, OverflowError):
            array = np.empty(0, np.object_)
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise InvalidRequest("the prompt is empty or no list of token ids; give it at least one", param="prompt")
        low, high, vocab = int(array.min()), int(array.max()), self._model.vocab
        if low < 0 or high >= vocab:
            wrong = low if low < 0 else high
            raise InvalidRequest(f"the prompt holds the token id {wrong}; expected 0 to {vocab - 1}", param="prompt")
        return array.astype(np.int32)

    def _fresh_name(self) -> str:
        return next(name for i in self._names if (name := f"request-{i}") not in self._requests)

    def _enqueue(self, name: str, request: Request, tokens: NDArray[np.int32]) -> None:
        params = request.params
        stop_ids = frozenset(params.stop_ids) | (frozenset() if params.ignore_eos else self._eos_ids)
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        longest = self.limits.context if params.max_tokens is None else len(tokens) + params.max_tokens
        seen = np.unique(tokens) if params.repetition_penalty != 1.0 else tokens
        submitted, leader = perf_counter(), None
        self._requests[name] = set()
        for index in range(request.n):
            sequence = Text(
                next(self._arrivals), tokens, min(longest, self.limits.context), salt=request.salt, leader=leader
            )
            if leader is None and self.settings.prefix_cache:
                leader = sequence
            state = SamplerState(params, prompt=seen, seed=seed, choice=index, stop_ids=stop_ids)
            decoder = self._tokenizer.stream_decoder(continues=request.continues)
            choice = Choice(name, index, sequence, state, decoder, stop_ids, submitted)
            self._choices[sequence] = choice
            self._requests[name].add(choice)
            self._scheduler.add(sequence)

    def _note_started(self, step: Sequence[Work], now: float) -> None:
        for work in step:
            choice = self._choices[work.sequence]
            if choice.started is None:
                choice.started = now
                self._counts.prompt_tokens += work.sequence.prompt
                self._counts.cached_tokens += work.sequence.reused or 0

    def _retire(self, choice: Choice, last: Output, *, keep: bool = True) -> Output:
        """`choice` ends with the output `last`, which is returned."""
        self._scheduler.drop(choice.sequence, keep=keep)
        del self._choices[choice.sequence]
        choices = self._requests[choice.request]
        choices.remove(choice)
        if not choices:
            del self._requests[choice.request]
        self._finished[last.finish_reason or ""] += 1
        return last

    def _deliver(self, outputs: list[Output]) -> list[Output]:
        """Put the outputs that a `generate` waits for into its mail; returns the others."""
        if not self._mail:
            return outputs
        others = list[Output]()
        for output in outputs:
            self._mail.get(output.request, others).append(output)
        return others
