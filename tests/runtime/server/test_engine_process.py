"""The engine in a process of its own: answers, errors, cancellation, and every way to die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import numpy as np
import pytest

from mlc.errors import ArtifactError, EngineDead, GenerationFailed, InvalidRequest, Overloaded, PromptTooLong
from mlc.runtime.process import EngineProcess, EngineSpec
from mlc.runtime.request import Request
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.settings import EngineSettings
from mlc.runtime.wire import Cancel, CommandBuffer, Submit, pack
from tests.runtime.server.conftest import HERE

pytestmark = pytest.mark.usefixtures("toy")

GREEDY = SamplingParams(temperature=0, max_tokens=20)
LONG = SamplingParams(temperature=0, max_tokens=900, ignore_eos=True)


@asynccontextmanager
async def engine(stuck_seconds: float = 60.0, **options: Any) -> AsyncIterator[EngineProcess]:
    started = await EngineProcess.start(EngineSpec("toy_server:open_engine", options), stuck_seconds=stuck_seconds)
    try:
        yield started
    finally:
        await started.stop()
        assert not alive(started.pid)


def alive(pid: int | None) -> bool:
    """Whether the process exists, be it as a zombie."""
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


def prompt(text: str, params: SamplingParams = GREEDY, n: int = 1) -> Request:
    return Request(list(text.encode()), params, n)  # bytes are the tokens of the toy


async def texts(process: EngineProcess, *requests: Request) -> list[str]:
    found = [""] * sum(request.n for request in requests)
    async for pieces in process.answer(requests):
        for index, output in pieces:
            found[index] += output.text
    return found


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_answers_come_through_the_process_as_from_an_engine_in_this_one(toy: Any) -> None:
    local = {p: "".join(o.text for o in toy.open_engine().generate(p, GREEDY)) for p in ("abc", "xyz", "q")}
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=20, logit_bias={97: 2.5}, stop=["zz"], logprobs=2)
    sampled = ["", ""]
    for output in toy.open_engine().generate("abc", params, n=2):
        sampled[output.choice] += output.text

    async def main() -> None:
        async with engine() as process:
            assert process.context == 1024
            together = await asyncio.gather(*(texts(process, prompt(p)) for p in local))
            assert [text for (text,) in together] == list(local.values())
            assert await texts(process, prompt("abc", params, 2), prompt("q")) == [*sampled, local["q"]]
            assert process.under_way == 0
            await until(lambda: process.statistics.requests == 5)
            assert process.statistics.finished == {"stop": 0, "length": 6} or process.statistics.finished["length"] == 6

    asyncio.run(main())


def test_what_the_engine_refuses_is_raised_as_in_one_process() -> None:
    async def main() -> None:
        async with engine(settings=EngineSettings(max_queue=2)) as process:
            cases: list[tuple[Request, type[Exception], str]] = [
                (prompt("x" * 1024), PromptTooLong, "1024"),
                (prompt(""), InvalidRequest, "empty"),
                (Request([300]), InvalidRequest, "300"),
                (Request([2**40]), InvalidRequest, "32 bits"),
                (prompt("a", n=3), Overloaded, "queue"),
                (prompt("a", SamplingParams(logit_bias={999: 1.0})), InvalidRequest, "logit_bias"),
                (prompt("\x01", LONG), GenerationFailed, "RuntimeError"),
            ]
            for request, kind, told in cases:
                with pytest.raises(kind, match=told):
                    await texts(process, request)
            await until(lambda: process.statistics.pages_free == 512)
            assert process.under_way == 0 and process.health().status == "ok"

    asyncio.run(main())


def test_a_closed_stream_gives_its_pages_back_within_a_step() -> None:
    async def main() -> None:
        async with engine(delay=0.05) as process:
            event = asyncio.Event()
            stream = process.open([prompt("abc", LONG, 2), prompt("xyz", LONG)], event)
            async for pieces in stream.pieces(event):
                assert pieces
                break
            stream.close()
            closed = monotonic()
            await until(lambda: process.statistics.pages_free == 512)
            assert monotonic() - closed < 0.3, "steps take 0.05 s, and the answers 45 s"
            assert process.statistics.finished["cancelled"] == 3 and process.under_way == 0
            stream.close()

    asyncio.run(main())


def test_an_idle_engine_still_beats_and_is_no_busy_one() -> None:
    async def main() -> None:
        async with engine() as process:
            await texts(process, prompt("abc"))
            steps = process.statistics.steps
            await asyncio.sleep(1.3)
            health = process.health()
            assert health.status == "ok" and health.silent_seconds < 1 and health.flaws == 0
            assert health.steps == steps

    asyncio.run(main())


async def _killed(process: EngineProcess) -> None:
    os.kill(process.pid or 0, signal.SIGKILL)


async def _dying(process: EngineProcess) -> None:
    with pytest.raises(EngineDead):
        await texts(process, prompt("\x02", LONG))


@pytest.mark.parametrize(("kill", "told"), [(_killed, "signal 9"), (_dying, "exit code 3")])
def test_a_dead_engine_fails_everyone_at_once(kill: Callable[[EngineProcess], Awaitable[None]], told: str) -> None:
    async def main() -> None:
        async with engine(delay=0.01) as process:
            waiting = [asyncio.create_task(texts(process, prompt("abc", LONG))) for _ in range(5)]
            await until(lambda: process.statistics.running == 5)
            await kill(process)
            for failed in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(failed, EngineDead) and told in str(failed)
            with pytest.raises(EngineDead, match=told):
                await texts(process, prompt("abc"))
            health = process.health()
            assert health.status == "dead" and told in health.message and not alive(process.pid)

    asyncio.run(main())


def test_a_stuck_engine_is_noticed_and_stopped_by_force() -> None:
    async def main() -> None:
        process = await EngineProcess.start(EngineSpec("toy_server:open_engine"), stuck_seconds=0.8)
        stuck = asyncio.create_task(texts(process, prompt("\x03", LONG)))
        await until(lambda: process.health().status == "stuck")
        await process.stop(seconds=0.1)
        with pytest.raises(EngineDead):
            await stuck
        assert not alive(process.pid)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (EngineSpec("toy_server:open_engine", {"fail": "no such model"}), "no such model"),
        (EngineSpec("toy_server:open_engine", {"settings": EngineSettings(max_context=4096)}), "at most 1024"),
        (EngineSpec("toy_server:nothing"), "nothing"),
        (EngineSpec("no_such_module:f"), "no_such_module"),
        (EngineSpec("os:_exit", {"status": 7}), "exit code 7"),
    ],
)
def test_an_engine_that_cannot_open_says_why(spec: EngineSpec, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match=told):
        asyncio.run(EngineProcess.start(spec))


def test_an_engine_that_takes_too_long_to_open_is_given_up() -> None:
    with pytest.raises(ArtifactError, match=r"within 0\.2 seconds"):
        asyncio.run(EngineProcess.start(EngineSpec("subprocess:run", {"args": ["sleep", "3"]}), start_seconds=0.2))


def test_signals_to_the_group_leave_the_engine_to_its_owner() -> None:
    async def main() -> None:
        async with engine() as process:
            for name in (signal.SIGINT, signal.SIGTERM):
                os.kill(process.pid or 0, name)
            assert await texts(process, prompt("abc"))

    asyncio.run(main())


def test_a_program_that_forgets_its_engine_still_ends() -> None:
    program = """if __name__ == "__main__":
        import asyncio
        from mlc.runtime.process import EngineProcess, EngineSpec
        print(asyncio.run(EngineProcess.start(EngineSpec("toy_server:open_engine"))).pid)"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True, timeout=20, check=True
    )
    assert not alive(int(run.stdout))


def test_commands_survive_any_cutting_of_the_bytes() -> None:
    submit = Submit.of(
        7, Request(np.arange(50), SamplingParams(seed=2**64 - 1, stop=["ü"], logit_bias={3: -1.5}), 2, "s")
    )
    commands: list[Submit | Cancel] = [submit, Cancel(7), submit, Cancel(8)]
    data = b"".join(pack(command) for command in commands)
    for size in (1, 3, 1000, len(data)):
        buffer = CommandBuffer()
        assert [c for i in range(0, len(data), size) for c in buffer.feed(data[i : i + size])] == commands
    request = submit.request()
    assert list(request.tokens) == list(range(50)) and (request.n, request.salt, request.id) == (2, "s", "7")
    assert request.params == SamplingParams(seed=2**64 - 1, stop=["ü"], logit_bias={3: -1.5})


def test_a_request_is_answered_amid_a_call_of_many_steps() -> None:
    async def main() -> None:
        async with engine(delay=0.01, call_seconds=1e9) as process:
            event = asyncio.Event()
            stream = process.open([prompt("abc", LONG)], event)  # calls of 256 steps take 2.5 seconds
            async for _ in stream.pieces(event):
                break
            began = monotonic()
            (text,) = await texts(process, prompt("xyz", SamplingParams(temperature=0, max_tokens=1)))
            assert text and monotonic() - began < 1
            stream.close()
            await until(lambda: process.statistics.pages_free == 512, 1)

    asyncio.run(main())
