"""Two honest stand-ins: a pretended device for the scheduler, and a small model for the engine.

Tests import from here as `tests.runtime.conftest`: pytest has loaded it under that name before it loads them.
"""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc.backends.reference.sample import ReferenceSampling
from mlc.runtime.batch import Batch, BatchBuilder
from mlc.runtime.engine import Engine
from mlc.runtime.kv import PagePool
from mlc.runtime.prefix import PrefixTree
from mlc.runtime.request import Output, Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.scheduler import Scheduler, Work
from mlc.runtime.sequence import Sequence as Text
from mlc.runtime.settings import EngineSettings

VOCAB, EOS = 257, 256
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SEEDED = replace(GREEDY, temperature=0.9, top_p=0.95, seed=7)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: a good hash of each number."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def logits_after(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """What the model says after the tokens whose k, v are `keys`: a hash of them all, in their order."""
    places = np.arange(1, len(keys) + 1).astype(np.uint64)
    prefix = mixed(keys * places).sum(dtype=np.uint64)
    scores = mixed(np.arange(VOCAB).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(prefix))
    return (scores >> np.uint64(40)).astype(np.float32) / np.float32(2**24) * 8


def keys_of(tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.uint64]:
    return mixed(tokens.astype(np.uint64) * np.uint64(0x10001) + positions.astype(np.uint64) + np.uint64(1))


class HashModel(ReferenceSampling):
    """A model without weights. Its pages start as garbage; it keeps one key per slot, as a real one keeps k and v."""

    vocab = VOCAB

    def __init__(self, pages: int = 64, *, page_size: int = 4, max_tokens: int = 32, max_sequences: int = 8) -> None:
        self.pages, self.page_size, self.max_context = pages, page_size, 128
        self.max_tokens, self.max_sequences = max_tokens, max_sequences
        self.cache = np.random.default_rng(0).integers(0, 2**63, pages * page_size).astype(np.uint64)
        self.sizes = list[int]()  # tokens of each step
        self.fails: Any = None  # called with the batch and the logits before they are returned

    def run(self, batch: Batch) -> NDArray[np.float32]:
        batch.check(self.page_size, self.pages)
        self.sizes.append(len(batch.tokens))
        self.cache[batch.slots] = keys_of(batch.tokens, batch.positions)
        logits = np.empty((len(batch.rows), VOCAB), np.float32)
        for r, row in enumerate(batch.rows.tolist()):
            s = int(np.searchsorted(batch.starts, row, side="right")) - 1
            positions = np.arange(batch.positions[row] + 1)
            slots = batch.tables[s, positions // self.page_size] * self.page_size + positions % self.page_size
            logits[r] = logits_after(self.cache[slots])
        if self.fails is not None:
            self.fails(batch, logits)
        self.logits = logits
        return logits


class ByteTokenizer:
    """A token is a byte; 256 ends the text."""

    eos_ids = (EOS,)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def stream_decoder(self, *, continues: bool = False) -> ByteDecoder:
        return ByteDecoder()


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[int]) -> str:
        return self._decoder.decode(bytes(token for token in tokens if token < 256))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class Collected:
    """All outputs of a run, by request and choice."""

    def __init__(self) -> None:
        self.outputs: dict[tuple[str, int], list[Output]] = {}

    def add(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.outputs.setdefault((output.request, output.choice), []).append(output)

    def tokens(self, request: str, choice: int = 0) -> list[int]:
        return [token for output in self.outputs[request, choice] for token in output.tokens]

    def text(self, request: str, choice: int = 0) -> str:
        return "".join(output.text for output in self.outputs[request, choice])

    def last(self, request: str, choice: int = 0) -> Output:
        *before, last = self.outputs[request, choice]
        assert last.finish_reason is not None and all(output.finish_reason is None for output in before)
        return last


def engine(model: HashModel | None = None, **settings: Any) -> Engine:
    """Each step is a call of its own, so that tests know how many there are, unless `max_steps` says otherwise."""
    return Engine(model or HashModel(), ByteTokenizer(), EngineSettings(**{"check": True, "max_steps": 1} | settings))


def finish(one: Engine, collected: Collected | None = None) -> Collected:
    collected = collected or Collected()
    while not one.idle:
        collected.add(one.step())
    one.check()
    return collected


def run(one: Engine, *requests: Request) -> Collected:
    for request in requests:
        one.submit(request)
    return finish(one)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def expected(tokens: Sequence[int], count: int) -> list[int]:
    """Greedy decoding by the model's definition, without pages."""
    text = list(tokens)
    for _ in range(count):
        array = np.array(text, np.int32)
        text.append(int(logits_after(keys_of(array, np.arange(len(text), dtype=np.int32))).argmax()))
    return text[len(tokens) :]


SIZE = 4  # tokens of a page
CONTEXT = 64  # tokens of a sequence


class World:
    """Runs a scheduler before a device that remembers, for each slot, the whole text up to the token written there."""

    def __init__(self, *, pages: int = 40, max_step_tokens: int = 24, max_sequences: int = 6, share: bool = True):
        self.pool = PagePool(pages, PrefixTree(SIZE))
        self.scheduler = Scheduler(self.pool, max_step_tokens=max_step_tokens, max_sequences=max_sequences, share=share)
        self.builder = BatchBuilder(
            page_size=SIZE,
            max_tokens=max_step_tokens,
            max_sequences=max_sequences,
            pages_per_sequence=-(-CONTEXT // SIZE),
        )
        self.texts: dict[Text, tuple[str, list[int]]] = {}  # by those under way: salt and tokens
        self.memory: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.arrivals = 0
        self.plans: list[list[Work]] = []
        self.stalled = 0

    def add(self, tokens: list[int], *, answer: int = 4, salt: str = "", leader: Text | None = None) -> Text:
        most = min(CONTEXT, self.pool.pages * SIZE)
        tokens = tokens[: most - 1]  # the engine refuses what is longer
        limit = min(len(tokens) + answer, most)
        sequence = Text(self.arrivals, tokens, limit, salt=salt, leader=leader)
        self.arrivals += 1
        self.texts[sequence] = (salt, list(tokens))
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Text) -> None:
        del self.texts[sequence]
        self.scheduler.drop(sequence)
        self.scheduler.check()

    def step(self) -> list[Work]:
        before = list(self.scheduler.running)
        plan = self.scheduler.plan()
        self.scheduler.check()
        self.check_plan(plan, before)
        if plan:
            batch = self.builder.build(plan)
            batch.check(SIZE, self.pool.pages)
            self.run(plan, batch)
            self.scheduler.advance(plan)
            for work in plan:
                if work.samples:
                    self.sample(work.sequence)
        self.scheduler.check()
        self.plans.append(plan)
        return plan

    def sample(self, sequence: Text) -> None:
        _, tokens = self.texts[sequence]
        tokens.append(len(tokens) % 3)  # few different tokens, so that answers share pages too
        sequence.append(tokens[-1])
        if sequence.full:
            del self.texts[sequence]
            self.scheduler.drop(sequence)

    def run(self, plan: list[Work], batch: Batch) -> None:
        starts = batch.starts.tolist()
        for row, slot in enumerate(batch.slots.tolist()):
            s = next(s for s in range(len(plan)) if starts[s] <= row < starts[s + 1])
            salt, tokens = self.texts[plan[s].sequence]
            position = int(batch.positions[row])
            assert batch.tokens[row] == tokens[position], "another token runs than the text has there"
            self.memory[slot] = (salt, tuple(tokens[: position + 1]))
        for s, work in enumerate(plan):
            salt, tokens = self.texts[work.sequence]
            for position in range(int(batch.lengths[s])):
                slot = int(batch.tables[s, position // SIZE]) * SIZE + position % SIZE
                assert self.memory.get(slot) == (salt, tuple(tokens[: position + 1])), "a token sees another's k, v"

    def check_plan(self, plan: list[Work], before: list[Text]) -> None:
        scheduler = self.scheduler
        assert sum(work.tokens for work in plan) <= scheduler.max_step_tokens
        assert len({work.sequence for work in plan}) == len(plan) <= scheduler.max_sequences
        for sequence, tokens, samples in plan:
            assert sequence in scheduler.running and 0 < tokens <= sequence.pending
            assert samples == (tokens == sequence.pending)
        later = [work.sequence.pending > 1 or work.sequence not in before for work in plan]
        assert later == sorted(later), "those that decode come first"
        assert not before or before[0] in scheduler.running, "the oldest lost its pages"
        admitted = [sequence for sequence in scheduler.running if sequence not in before]
        ready = [sequence for sequence in scheduler.waiting if sequence.ready]
        assert all(new.arrival < old.arrival for new in admitted for old in ready), "someone jumped the queue"
        # A preemption may leave one step without work; two in a row would be a standstill.
        self.stalled = 0 if plan or not self.texts else self.stalled + 1
        assert self.stalled < 2, "nobody advances"

    def finish(self) -> None:
        for _ in range(10_000):
            if not self.texts:
                break
            self.step()
        assert not self.texts and self.pool.available == self.pool.pages, "pages are in use and nobody runs"


def fuzz(world: World, seed: int, requests: int) -> None:
    rng = random.Random(seed)
    stems = [[rng.randrange(3) for _ in range(40)] for _ in range(3)]
    left = requests
    while left or world.texts:
        if left and rng.random() < 0.4:
            left -= 1
            prompt = stems[rng.randrange(3)][: rng.randrange(1, 40)] + rng.choices(range(3), k=rng.randrange(6))
            salt, answer = rng.choice(["", "", "tenant"]), rng.randrange(1, 30)
            first = world.add(prompt, answer=answer, salt=salt)
            if rng.random() < 0.2:
                world.add(prompt, answer=answer, salt=salt, leader=first)
        elif world.texts and rng.random() < 0.15:
            world.cancel(rng.choice(list(world.texts)))
        else:
            world.step()
    world.finish()
