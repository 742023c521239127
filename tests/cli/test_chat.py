from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlc.cli.chat import COMMANDS, Conversation, Leave, Message, run_command, talk, write
from mlc.errors import GenerationFailed, InvalidRequest, PromptTooLong


@dataclass
class Piece:
    text: str
    tokens: tuple[int, ...] = (1,)


@dataclass
class Counts:
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class Scripted:
    """An engine that says what it was told to say; `raises` after the first piece, or before it."""

    says: list[str] = field(default_factory=lambda: ["Hello", " there", ""])
    raises: BaseException | None = None
    asked: list[Any] = field(default_factory=list)
    closed: int = 0
    statistics: Counts = field(default_factory=Counts)
    streams: list[Any] = field(default_factory=list)  # kept alive, so that nothing but `close` ends them

    def stream_chat(self, messages: list[Message], **sampling: Any) -> Generator[Piece, None, None]:
        self.asked.append((messages, sampling))
        self.streams.append(self._pieces())
        return self.streams[-1]

    def stream(self, prompt: str, **sampling: Any) -> Generator[Piece, None, None]:
        self.asked.append((prompt, sampling))
        return self._pieces()

    def _pieces(self) -> Generator[Piece, None, None]:
        try:
            if isinstance(self.raises, PromptTooLong):
                raise self.raises
            self.statistics = Counts(self.statistics.prompt_tokens + 7, self.statistics.cached_tokens + 3)
            for text in self.says:
                yield Piece(text)
                if self.raises is not None:
                    raise self.raises
        finally:
            self.closed += 1


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def talking(engine: Scripted) -> Conversation:
    return Conversation(engine, chat=True, sampling={})


def typed(*lines: str | type[BaseException]) -> Callable[[], str]:
    left: Iterator[str | type[BaseException]] = iter(lines)

    def read() -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_an_answer_is_streamed_and_both_turns_are_remembered(talking: Conversation, engine: Scripted) -> None:
    assert list(talking.answer("Hi")) == ["Hello", " there", ""]
    assert talking.turns == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    list(talking.answer("And?"))
    assert [m["content"] for m in engine.asked[1][0]] == ["Hi", "Hello there", "And?"]


def test_the_numbers_of_an_answer_are_those_of_the_engine(talking: Conversation) -> None:
    list(talking.answer("Hi"))
    assert (talking.speed.prompt, talking.speed.cached, talking.speed.answer) == (7, 3, 3)
    assert str(talking.speed).startswith("Prompt: 7 tokens, ") and "Decode: 3 tokens, " in str(talking.speed)
    assert "(3 cached)" in str(talking.speed)


def test_the_system_prompt_comes_first_and_changing_it_starts_anew(talking: Conversation, engine: Scripted) -> None:
    list(talking.answer("Hi"))
    run_command(talking, "/system Be brief.")
    list(talking.answer("Hi"))
    assert engine.asked[1][0] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_a_model_without_template_gets_the_text_alone(engine: Scripted) -> None:
    conversation = Conversation(engine, chat=False, sampling={"seed": 1})
    list(conversation.answer("Once"))
    list(conversation.answer("Twice"))
    assert engine.asked == [("Once", {"seed": 1}), ("Twice", {"seed": 1})]
    assert "no chat template" in run_command(conversation, "/system x")


def test_ctrl_c_keeps_what_was_said_and_cancels_the_rest(
    talking: Conversation, engine: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.raises = KeyboardInterrupt()
    talk(talking, typed("Hi", "/exit"))
    assert talking.turns[-1] == {"role": "assistant", "content": "Hello"}
    assert engine.closed == 1
    assert capsys.readouterr().out.startswith("Hello ...\n")


def test_leaving_an_answer_early_cancels_it(talking: Conversation, engine: Scripted) -> None:
    pieces = talking.answer("Hi")
    next(pieces)
    pieces.close()
    assert engine.closed == 1 and talking.turns[-1]["content"] == "Hello"


def test_a_refused_turn_did_not_happen_and_the_conversation_goes_on(
    talking: Conversation, engine: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    list(talking.answer("Hi"))
    engine.raises = PromptTooLong(tokens=9, limit=8)
    talk(talking, typed("a long text", "/history"))
    seen = capsys.readouterr()
    assert "the prompt has 9 tokens" in seen.err and "/clear" in seen.err
    assert "a long text" not in seen.out and "assistant: Hello there" in seen.out


def test_a_turn_that_fails_half_way_did_not_happen(talking: Conversation, engine: Scripted) -> None:
    engine.raises = GenerationFailed("the engine failed")
    with pytest.raises(GenerationFailed):
        list(talking.answer("Hi"))
    assert talking.turns == []


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/exit", "/quit", " /exit "])
def test_there_are_many_ways_out(talking: Conversation, end: str | type[BaseException]) -> None:
    talk(talking, typed("", end, "never read"))
    assert talking.turns == []


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/temperature 0.5", "temperature", 0.5),
        ("/topk 3", "top_k", 3),
        ("/topp 0.9", "top_p", 0.9),
        ("/minp 0.1", "min_p", 0.1),
        ("/seed -7", "seed", -7),
        ("/maxtokens 12", "max_tokens", 12),
    ],
)
def test_settings_reach_the_engine_and_can_be_taken_back(
    talking: Conversation, engine: Scripted, line: str, name: str, value: float
) -> None:
    assert run_command(talking, line) == f"{name}: {value}"
    list(talking.answer("Hi"))
    assert engine.asked[0][1] == {name: value}
    run_command(talking, line.split()[0])
    assert talking.sampling == {}


def test_impossible_settings_change_nothing(talking: Conversation) -> None:
    run_command(talking, "/temperature 0.5")
    with pytest.raises(InvalidRequest, match="temperature"):
        run_command(talking, "/temperature -1")
    assert "no number" in run_command(talking, "/temperature warm")
    assert "no number" in run_command(talking, "/topk 1.5")
    assert talking.sampling == {"temperature": 0.5}


def test_an_unknown_command_is_not_sent_to_the_model(talking: Conversation, engine: Scripted) -> None:
    assert "did you mean /temperature?" in run_command(talking, "/temperatur 1")
    assert "no command /x" in run_command(talking, "/x")
    assert engine.asked == []


def test_help_names_every_command(talking: Conversation) -> None:
    text = run_command(talking, "/help")
    assert all(usage in text for usage, _, _ in COMMANDS.values())
    with pytest.raises(Leave):
        run_command(talking, "/quit")


def test_a_conversation_is_saved_as_json_and_nothing_is_overwritten(talking: Conversation, tmp_path: Path) -> None:
    talking.system = "Be brief."
    list(talking.answer("Grüß Gott"))
    file = tmp_path / "talk.json"
    assert "saved 2 messages" in run_command(talking, f"/save {file}")
    assert [m["role"] for m in json.loads(file.read_text())] == ["system", "user", "assistant"]
    assert "exists" in run_command(talking, f"/save {file}")
    assert "cannot save" in run_command(talking, f"/save {tmp_path / 'no' / 'such'}")
    assert "give a file" in run_command(talking, "/save")


def test_clear_forgets_the_turns(talking: Conversation) -> None:
    list(talking.answer("Hi"))
    run_command(talking, "/clear")
    assert talking.turns == [] and run_command(talking, "/history") == "nothing was said yet"


def test_a_model_cannot_send_control_sequences_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b]0;title\x07b\x9b31mé\n\tc\x7f"
    write(hostile)
    assert capsys.readouterr().out == hostile, "a pipe gets the text as it is"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write(hostile)
    assert capsys.readouterr().out == "a]0;titleb31mé\n\tc"
