"""The Python face over a small model whose every token is known from its definition."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlc.errors import BadCheckpoint, EngineDead, GenerationFailed, InvalidRequest, PromptTooLong
from mlc.runtime import engine as core
from mlc.runtime.api import Answer, Engine
from mlc.runtime.batch import Batch
from mlc.runtime.load import sampling_defaults
from mlc.runtime.prompts import Prompts
from mlc.runtime.settings import EngineSettings
from tests.runtime.conftest import ByteTokenizer, HashModel, expected

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


class TextTokenizer(ByteTokenizer):
    encode_chat = ByteTokenizer.encode

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


class Template:
    def render(
        self, messages: Sequence[Mapping[str, Any]], *, kwargs: Mapping[str, Any] | None = None, **_: Any
    ) -> str:
        mood: str = (kwargs or {}).get("mood", "")
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + mood


class SlowModel(HashModel):
    """Takes time, and may be told to fail."""

    SECONDS = 0.002

    def run(self, batch: Batch) -> NDArray[np.float32]:
        time.sleep(self.SECONDS)
        return super().run(batch)


def make(model: Callable[[], HashModel] = HashModel, **defaults: Any) -> Engine:
    tokenizer = TextTokenizer()
    return Engine.over(
        lambda: core.Engine(model(), tokenizer, EngineSettings(check=True)), Prompts(tokenizer, Template(), defaults)
    )


@pytest.fixture
def engine() -> Iterator[Engine]:
    with make() as made:
        yield made


def text(prompt: str, count: int) -> str:
    return TextTokenizer().decode(expected(list(prompt.encode()), count))


def settled(engine: Engine) -> bool:
    """Whether soon no page is in use."""
    for _ in range(100):
        if engine.statistics.pages_free == engine.statistics.pages and not engine.statistics.running:
            return True
        time.sleep(0.02)
    return False


def test_a_text_is_continued_and_a_conversation_answered(engine: Engine) -> None:
    answer = engine.complete("abc", max_tokens=9, **GREEDY)
    assert answer.text == str(answer) == text("abc", 9) and answer.finish_reason == "length"
    assert list(answer.tokens) == expected(b"abc", 9) and answer.logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 9)
    assert answer.timings.total_seconds > 0
    assert engine.complete([97, 98, 99], max_tokens=9, **GREEDY).text == answer.text
    assert engine.chat("Hi", max_tokens=9, **GREEDY).text == text("<user>Hi", 9)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert engine.chat(messages, max_tokens=9, **GREEDY).text == text("<system>x<user>y", 9)
    assert engine.chat("Hi", template={"mood": "!"}, max_tokens=9, **GREEDY).text == text("<user>Hi!", 9)
    assert engine.detokenize(engine.tokenize("häß")) == "häß" and engine.context == 128


def test_streams_add_up_to_the_whole_answer(engine: Engine) -> None:
    whole = engine.complete("abc", max_tokens=30, seed=5, logprobs=2)
    deltas = list(engine.stream("abc", max_tokens=30, seed=5, logprobs=2))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert tuple(token for delta in deltas for token in delta.tokens) == whole.tokens
    assert tuple(told for delta in deltas for told in delta.logprobs or ()) == whole.logprobs
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [whole.finish_reason]
    chat = list(engine.stream_chat("Hi", max_tokens=5, **GREEDY))
    assert "".join(delta.text for delta in chat) == text("<user>Hi", 5)


def test_a_batch_is_answered_in_its_order_whoever_is_first(engine: Engine) -> None:
    prompts: list[Any] = [f"p{i}" + "x" * (i % 7) for i in range(40)] + [[{"role": "user", "content": "Hi"}]]
    answers = engine.batch(prompts, max_tokens=6, **GREEDY)
    assert [list(a.tokens) for a in answers] == [expected(p.encode(), 6) for p in [*prompts[:-1], "<user>Hi"]]
    assert engine.batch([]) == []


def test_the_asynchronous_twins_say_the_same(engine: Engine) -> None:
    async def main() -> None:
        whole, chat, batch = await asyncio.gather(
            engine.acomplete("abc", max_tokens=9, **GREEDY),
            engine.achat("Hi", max_tokens=9, **GREEDY),
            engine.abatch(["a", "b"], max_tokens=9, **GREEDY),
        )
        assert [a.text for a in (whole, chat, *batch)] == [text(p, 9) for p in ("abc", "<user>Hi", "a", "b")]
        streamed = [delta.text async for delta in engine.astream("abc", max_tokens=9, **GREEDY)]
        assert "".join(streamed) == text("abc", 9)
        streamed = [delta.text async for delta in engine.astream_chat("Hi", max_tokens=9, **GREEDY)]
        assert "".join(streamed) == text("<user>Hi", 9)

    asyncio.run(main())


def test_threads_and_event_loops_are_served_together() -> None:
    with make(SlowModel) as engine, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: list(engine.complete(f"p{i}", max_tokens=10, **GREEDY).tokens), range(24)))
        assert answers == [expected(f"p{i}".encode(), 10) for i in range(24)]
        assert engine.statistics.steps < 24 * 10, "they ran in common steps"


def test_a_request_is_answered_amid_a_call_of_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)
    monkeypatch.setattr(SlowModel, "SECONDS", 0.01)
    with make(SlowModel) as engine:
        stream = engine.stream("abc", max_tokens=120, **GREEDY)
        next(stream)  # the others come with one call, in more than a second
        began = time.monotonic()
        assert engine.complete("x", max_tokens=1, **GREEDY).tokens and time.monotonic() - began < 0.6
        stream.close()


def test_what_is_not_read_to_its_end_is_cancelled() -> None:
    with make(SlowModel) as engine:
        stream = engine.stream("abc", max_tokens=120, **GREEDY)
        next(stream)
        stream.close()
        for _ in engine.stream_chat("Hi", max_tokens=100, **GREEDY):
            break

        async def main() -> None:
            async with aclosing(engine.astream("abc", max_tokens=120, **GREEDY)) as deltas:
                async for _ in deltas:
                    break
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.acomplete("abc", max_tokens=120, **GREEDY), 0.05)

        asyncio.run(main())
        gc.collect()
        assert settled(engine) and engine.statistics.finished["cancelled"] == 4


def test_errors_are_raised_where_the_call_is_made(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="128"):
        engine.complete("x" * 200)
    with pytest.raises(InvalidRequest, match="empty"):
        next(engine.stream(""))
    with pytest.raises(InvalidRequest, match="temperature"):
        engine.chat("Hi", temperature=-1)
    with pytest.raises(InvalidRequest, match="tempratur is no sampling parameter"):
        engine.chat("Hi", tempratur=1)
    with pytest.raises(InvalidRequest, match="300"):
        asyncio.run(engine.acomplete([300]))
    assert engine.complete("abc", max_tokens=3, **GREEDY).text == text("abc", 3)


def test_one_of_a_batch_that_fails_fails_the_batch_and_nothing_else() -> None:
    def fail(batch: Batch, logits: NDArray[np.float32]) -> None:
        if 7 in batch.tokens:
            raise RuntimeError("secret")

    def model() -> HashModel:
        made = SlowModel()
        made.fails = fail
        return made

    with make(model) as engine:
        with pytest.raises(GenerationFailed, match="RuntimeError"):
            engine.batch(["a", "b\x07"], max_tokens=50, **GREEDY)
        assert settled(engine)
        assert engine.complete("abc", max_tokens=3, **GREEDY).text == text("abc", 3)


def test_the_models_preferences_hold_unless_the_call_has_its_own() -> None:
    with make(temperature=0, ignore_eos=True) as engine:
        assert engine.complete("abc", max_tokens=5).text == text("abc", 5)
        assert engine.complete("abc", max_tokens=40, temperature=2.0, seed=1).text != text("abc", 40)


def test_a_closed_engine_ends_those_who_wait_and_refuses_others() -> None:
    engine = make(SlowModel)
    failures = list[BaseException]()

    def wait() -> None:
        try:
            engine.complete("abc", max_tokens=120, **GREEDY)
        except EngineDead as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not engine.statistics.running:
        time.sleep(0.01)
    engine.close()
    thread.join(5)
    assert len(failures) == 1 and not thread.is_alive()
    with pytest.raises(EngineDead, match="closed"):
        engine.complete("abc")
    engine.close()


def test_an_engine_that_cannot_be_made_says_so_and_leaves_no_thread() -> None:
    def fail() -> core.Engine:
        raise BadCheckpoint("no such model")

    before = threading.active_count()
    with pytest.raises(BadCheckpoint, match="no such model"):
        Engine.over(fail, Prompts(TextTokenizer(), None))
    assert threading.active_count() <= before + 1 and not any(
        t.name == "mlc-engine" and t.is_alive() for t in threading.enumerate()
    )


def test_an_engine_that_nobody_holds_ends_its_thread() -> None:
    engine = make()
    assert isinstance(engine.complete("a", max_tokens=1), Answer)
    thread = next(t for t in threading.enumerate() if t.name == "mlc-engine")
    del engine
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_program_that_forgets_to_close_still_ends() -> None:
    program = "from tests.runtime.test_api import make; e = make(); print(len(e.complete('a', max_tokens=3).tokens))"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "3", "")


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        ({"temperature": 0.6, "top_k": 20, "do_sample": True, "bos_token_id": 1}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"temperature": None}, {}),
    ],
)
def test_generation_config_gives_the_preferences(tmp_path: Path, config: dict[str, Any], defaults: Any) -> None:
    assert sampling_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert sampling_defaults(tmp_path) == defaults


def test_a_generation_config_that_no_sampler_can_take_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json.*temperature"):
        sampling_defaults(tmp_path)
