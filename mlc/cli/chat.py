"""A conversation at the terminal: turns, slash commands, and the numbers after each answer. Knows no model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlc.errors import PromptTooLong, RequestError
from mlc.runtime.sampling import SamplingParams

from . import output

Message = dict[str, str]


class Delta(Protocol):
    """What one step added to an answer."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...


class Counters(Protocol):
    """What the engine has counted."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...


class Engine(Protocol):
    """What a conversation needs of an engine; see `mlc.runtime.api.Engine`."""

    @property
    def statistics(self) -> Counters: ...
    def stream_chat(self, messages: list[Message], **sampling: Any) -> Iterator[Delta]: ...
    def stream(self, prompt: str, **sampling: Any) -> Iterator[Delta]: ...


class Leave(Exception):
    """The user wants to go."""


@dataclass(slots=True)
class Speed:
    """One answer in numbers."""

    prompt: int = 0  # tokens
    cached: int = 0  # tokens of the prompt that earlier turns had left in the cache
    answer: int = 0  # tokens
    prompt_seconds: float = 0.0  # to the first token
    answer_seconds: float = 0.0  # from the first token to the last

    def __str__(self) -> str:
        computed = self.prompt - self.cached
        prompt = f"Prompt: {self.prompt} tokens, {computed / max(self.prompt_seconds, 1e-9):.2f} T/s"
        cached = f" ({self.cached} cached)" if self.cached else ""
        decode = f"Decode: {self.answer} tokens"
        if self.answer > 1:
            decode += f", {(self.answer - 1) / max(self.answer_seconds, 1e-9):.2f} T/s"
        return f"{prompt}{cached} · {decode}"


@dataclass(slots=True)
class Conversation:
    """The state that turns and commands change.

    `chat` says whether the model has a chat template; without one, each input is a text to be continued.
    """

    engine: Engine
    chat: bool
    sampling: dict[str, Any]
    system: str = ""
    turns: list[Message] = field(default_factory=list[Message])
    speed: Speed = field(default_factory=Speed)

    def messages(self) -> list[Message]:
        """The system prompt and all turns."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def answer(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece; remembered as far as it came, when it ends or is closed.

        Raises RequestError; then the turn did not happen.
        """
        before, asked = self.engine.statistics, time.perf_counter()
        asking = [*self.messages(), {"role": "user", "content": text}]
        if self.chat:
            deltas = self.engine.stream_chat(asking, **self.sampling)
        else:
            deltas = self.engine.stream(text, **self.sampling)
        said, tokens, first, last = "", 0, asked, asked
        try:
            for delta in deltas:
                last = time.perf_counter()
                if not tokens:
                    first = last
                tokens += len(delta.tokens)
                said += delta.text
                yield delta.text
        except RequestError:
            said = ""
            raise
        finally:
            if isinstance(deltas, Generator):
                deltas.close()  # cancels what is still under way
            if tokens:
                after = self.engine.statistics
                prompt, cached = after.prompt_tokens - before.prompt_tokens, after.cached_tokens - before.cached_tokens
                self.speed = Speed(prompt, cached, tokens, first - asked, last - first)
            if said:
                self.turns += [asking[-1], {"role": "assistant", "content": said}]

    def set(self, name: str, text: str, kind: Callable[[str], Any]) -> str:
        """Change a sampling parameter; an empty text gives it back to the model. Raises RequestError."""
        if not text:
            self.sampling.pop(name, None)
            return f"{name}: the model's own"
        try:
            value = kind(text)
        except ValueError:
            return f"{text!r} is no number"
        SamplingParams(**{**self.sampling, name: value})
        self.sampling[name] = value
        return f"{name}: {value}"


Command = Callable[[Conversation, str], str]


def _help(_: Conversation, __: str) -> str:
    width = max(len(usage) for usage, _, _ in COMMANDS.values())
    lines = [f"  {usage:<{width}}  {what}" for usage, what, _ in COMMANDS.values()]
    return "\n".join([*lines, "Ctrl-C stops an answer, and leaves at the prompt. Alt-Enter begins a new line."])


def _exit(_: Conversation, __: str) -> str:
    raise Leave


def _clear(c: Conversation, _: str) -> str:
    c.turns.clear()
    return "the conversation starts anew"


def _system(c: Conversation, text: str) -> str:
    if not c.chat:
        return "this model has no chat template, so it takes no system prompt"
    c.system = text
    c.turns.clear()
    return f"{'system prompt set' if text else 'no system prompt'}; the conversation starts anew"


def _history(c: Conversation, _: str) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in c.messages()) or "nothing was said yet"


def _save(c: Conversation, name: str) -> str:
    if not name:
        return "give a file to save to: /save talk.json"
    path = Path(name).expanduser()
    if path.exists():
        return f"{path} exists; choose another name"
    try:
        path.write_text(json.dumps(c.messages(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        return f"cannot save: {error}"
    return f"saved {len(c.turns)} messages in {path}"


def _setting(name: str, kind: Callable[[str], Any]) -> Command:
    return lambda c, text: c.set(name, text, kind)


COMMANDS: Mapping[str, tuple[str, str, Command]] = {
    "/help": ("/help", "show this list", _help),
    "/clear": ("/clear", "forget the conversation", _clear),
    "/system": ("/system TEXT", "set the system prompt; without TEXT, remove it", _system),
    "/temperature": ("/temperature X", "0 always takes the most probable token", _setting("temperature", float)),
    "/topk": ("/topk N", "sample from the N most probable tokens; 0: from all", _setting("top_k", int)),
    "/topp": ("/topp X", "sample from the fewest tokens whose probability adds up to X", _setting("top_p", float)),
    "/minp": ("/minp X", "sample from tokens at least X times as probable as the best", _setting("min_p", float)),
    "/seed": ("/seed N", "the same seed gives the same answers", _setting("seed", int)),
    "/maxtokens": ("/maxtokens N", "longest answer", _setting("max_tokens", int)),
    "/history": ("/history", "show the conversation", _history),
    "/save": ("/save FILE", "write the conversation as JSON", _save),
    "/exit": ("/exit", "leave; so do /quit and Ctrl-D", _exit),
}
_ALSO = {"/quit": "/exit", "/?": "/help"}


def run_command(conversation: Conversation, line: str) -> str:
    """Carry out a slash command; returns what to say. Raises Leave, RequestError."""
    name, _, rest = line.partition(" ")
    name = _ALSO.get(name, name)
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        return f"no command {name}{f'; did you mean {near[0]}?' if near else ''} /help lists them"
    return COMMANDS[name][2](conversation, rest.strip())


def talk(conversation: Conversation, read: Callable[[], str]) -> None:
    """Read and answer until the user leaves. `read` returns a line, and raises EOFError or KeyboardInterrupt."""
    while True:
        try:
            line = read().strip()
            if not line:
                continue
            if line.startswith("/"):
                print(run_command(conversation, line))
            else:
                say(conversation, line)
        except (EOFError, KeyboardInterrupt, Leave):
            return
        except RequestError as error:
            full = isinstance(error, PromptTooLong) and conversation.turns
            output.error_line(f"{error}; /clear forgets the conversation" if full else str(error))


def say(conversation: Conversation, text: str) -> None:
    """Print the answer as it comes, then its numbers. Ctrl-C ends the answer."""
    pieces = conversation.answer(text)
    try:
        for piece in pieces:
            write(piece)
    except KeyboardInterrupt:
        write(" ...")
    finally:
        pieces.close()
    print()
    output.dim(str(conversation.speed))


def write(text: str) -> None:
    """A piece of an answer. On a terminal, without the control characters by which a text could take it over."""
    if sys.stdout.isatty():
        text = "".join(c for c in text if c in "\n\t" or (ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F))
    sys.stdout.write(text)
    sys.stdout.flush()
