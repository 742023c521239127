"""Commands that arrive while the model makes several steps in one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mlc.runtime.driver import Driver
from mlc.runtime.mailbox import Mailbox
from mlc.runtime.request import Output, Request
from mlc.runtime.wire import Cancel, Submit
from tests.runtime.conftest import GREEDY, HashModel, engine, expected, prompt

LONG = Submit.of(1, Request(prompt(9), replace(GREEDY, max_tokens=60)))
SHORT = Submit.of(2, Request(prompt(5, 1), replace(GREEDY, max_tokens=3)))


@pytest.fixture(autouse=True)
def slow_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlc.runtime.engine.CALL_SECONDS", 1e9)


class Turned:
    """A driver whose mailbox gets what `events` says: by the number of steps that the model has made."""

    def __init__(self, events: dict[int, Callable[[Mailbox], None]]) -> None:
        self.model, self.mailbox, self.outputs = HashModel(), Mailbox(), list[Output]()
        self.calls = list[int]()  # steps of each
        self.driver = Driver(engine(self.model, max_steps=256))
        self.mailbox.interrupt = self.driver.interrupt
        self.model.fails = lambda batch, logits: self._happen(events)

    def _happen(self, events: dict[int, Callable[[Mailbox], None]]) -> None:
        happening = events.get(len(self.model.sizes))
        if happening is not None:
            arriving = threading.Thread(target=happening, args=(self.mailbox,))
            arriving.start()
            arriving.join()

    def turn(self) -> None:
        before = len(self.model.sizes)
        self.outputs += self.driver.turn().outputs
        self.calls.append(len(self.model.sizes) - before)

    def run(self) -> None:
        while True:
            for command in self.mailbox.take(0.0):
                self.driver.apply(command)
            if self.driver.idle:
                return
            self.turn()

    def tokens(self, request: int) -> list[int]:
        return [token for output in self.outputs if output.request == str(request) for token in output.tokens]


def test_a_request_that_arrives_amid_a_call_runs_with_the_next_step() -> None:
    one = Turned({10: lambda mailbox: mailbox.put(SHORT)})
    one.mailbox.put(LONG)
    one.run()
    assert one.model.sizes == [9] + [1] * 9 + [1 + 5] + [2] * 2 + [1] * 47
    assert one.calls == [1, 9, 1, 2, 47]
    assert one.tokens(1) == expected(prompt(9), 60) and one.tokens(2) == expected(prompt(5, 1), 3)


def test_a_request_is_cancelled_with_the_step_under_way() -> None:
    one = Turned({10: lambda mailbox: mailbox.put(Cancel(1))})
    one.mailbox.put(LONG)
    one.run()
    assert one.calls == [1, 9, 0] and one.outputs[-1].finish_reason == "cancelled"
    assert one.tokens(1) == expected(prompt(9), 60)[:10], "no token is lost"


def test_what_arrives_after_the_commands_were_taken_waits_for_one_step() -> None:
    one = Turned({})
    one.driver.apply(LONG)
    one.turn()
    one.mailbox.put(Cancel(7))
    assert one.mailbox.take(0.0) == [Cancel(7)]
    one.mailbox.put(SHORT)
    one.turn()
    assert one.calls == [1, 1]
    one.run()
    assert one.calls == [1, 1, 1, 2, 55], "nothing interrupts any more"


def test_taking_waits_for_news_and_no_longer() -> None:
    mailbox, taken = Mailbox(), list[Any]()
    mailbox.wait_taken()
    assert mailbox.take(0.01) == []
    taking = threading.Thread(target=lambda: taken.append(mailbox.take(None)))
    taking.start()
    mailbox.put(LONG)
    mailbox.wait_taken()
    taking.join(5)
    assert taken == [[LONG]] and mailbox.take(0.0) == []
    mailbox.put(SHORT)
    reading = threading.Thread(target=mailbox.wait_taken)
    reading.start()
    reading.join(0.05)
    assert reading.is_alive() and mailbox.take(0.0) == [SHORT]
    reading.join(5)
    assert not reading.is_alive()
    mailbox.put(SHORT)
    mailbox.close()
    assert mailbox.closed and mailbox.take(None) == [SHORT]
    mailbox.close(ValueError("the line broke"))
    with pytest.raises(ValueError, match="the line broke"):
        mailbox.take(None)
