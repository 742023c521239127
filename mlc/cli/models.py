"""run and compile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlc.errors import BadConfig, InputError
from mlc.options import Options

from . import output
from .options import (
    EmbeddingQuant,
    KvType,
    MaxContext,
    MaxSequences,
    MaxTokens,
    Model,
    Quant,
    Source,
    Target,
    Threads,
    Tune,
)

if TYPE_CHECKING:
    from .chat import Conversation

_SAMPLING = "Sampling"

# How to sample where neither the user nor the model says.
_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command("compile")(compile_model)


def compile_model(
    model: Source = None,
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where to put the compiled model.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    quant: Quant = "none",
    embedding_quant: EmbeddingQuant = "auto",
    target: Target = "host",
    kv_type: KvType = "auto",
    max_tokens: MaxTokens = 512,
    max_sequences: MaxSequences = 64,
    tune: Tune = 10.0,
) -> None:
    """Compile a model into a folder that runs without its checkpoint.

    \b
    [bold]Examples[/]
      mlc compile -o tiny [dim]# the bundled model[/]
      mlc compile Qwen/Qwen3-0.6B --quant q4 -o qwen3-q4
      mlc compile model.gguf -o model --target avx2 [dim]# for another machine[/]
    """
    from mlc.cache import compile_to, locate

    from .source import is_artifact

    options = Options(quant, target, kv_type, max_tokens, max_sequences, embedding_quant, tune)
    options.check()
    path, name = locate(model)
    if is_artifact(path):
        raise BadConfig(f"{path} is compiled already; run it with `mlc run -m {path}`")
    if out.exists() and not is_artifact(out) and (not out.is_dir() or any(out.iterdir())):
        raise BadConfig(f"{out} exists and is no compiled model; choose another folder with -o, or empty it")
    start = time.perf_counter()
    with output.phases(f"compiling {name}", keep=True) as progress:
        compile_to(path, name, out, options, progress)
    seconds = time.perf_counter() - start
    total = sum(p.stat().st_size for p in out.iterdir())
    print(f"compiled {name} into {out}: {output.size(total)} in {seconds:.1f} s")
    print(f"next: mlc run -m {out}")


def run(
    model: Model = None,
    text: Annotated[
        str | None,
        typer.Option(
            "-i", "--input", metavar="TEXT", help="Answer TEXT and end; - reads it from stdin.", show_default=False
        ),
    ] = None,
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", help="The system prompt.", show_default=False)
    ] = "",
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="0: always the most probable token.", show_default=False, rich_help_panel=_SAMPLING
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", show_default=False, rich_help_panel=_SAMPLING)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", show_default=False, rich_help_panel=_SAMPLING)] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", show_default=False, rich_help_panel=_SAMPLING)] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="The same seed gives the same answers.", show_default=False, rich_help_panel=_SAMPLING
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Longest answer.", show_default=False, rich_help_panel=_SAMPLING)
    ] = None,
    quant: Quant = "none",
    embedding_quant: EmbeddingQuant = "auto",
    target: Target = "host",
    kv_type: KvType = "auto",
    threads: Threads = None,
    max_context: MaxContext = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="With -i: print token counts and speed, too.")
    ] = False,
) -> None:
    """Talk with a model, or with -i let it answer once.

    Without a chat template, a model continues your text instead.

    \b
    [bold]Examples[/]
      mlc run [dim]# a conversation with the bundled model; /help lists its commands[/]
      mlc run -i "What is the capital of France?"
      mlc run -m Qwen/Qwen3-0.6B --quant q4 --system "Answer in one sentence."
      git diff | mlc run -m ./compiled -i -
    """
    from mlc.runtime import engine as core
    from mlc.runtime.api import Engine
    from mlc.runtime.load import load_engine, load_prompts
    from mlc.runtime.tokenizer import Tokenizer

    from .chat import Conversation
    from .source import artifact

    question = _question(text)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    given["max_tokens"] = max_tokens
    folder = artifact(model, Options(quant, target, kv_type, embedding_quant=embedding_quant))
    tokenizer = Tokenizer.open(folder)
    prompts = load_prompts(folder, tokenizer)
    chat = prompts.template is not None
    if system and not chat:
        raise BadConfig("--system is for chat models; this one has no chat template")
    sampling: dict[str, Any] = {} if prompts.defaults else dict(_DEFAULTS)
    sampling |= {name: value for name, value in given.items() if value is not None}

    def make_engine() -> core.Engine:
        return load_engine(folder, tokenizer=tokenizer, threads=threads, max_context=max_context)

    with Engine.over(make_engine, prompts) as engine:
        conversation = Conversation(engine, chat, sampling, system)
        if not chat:
            output.note("this model has no chat template: it continues your text")
        if question is None:
            _converse(conversation)
        else:
            _answer_once(conversation, question, verbose=verbose)


def _question(text: str | None) -> str | None:
    """The one input to answer; None for a conversation."""
    if text != "-" and (text is not None or sys.stdin.isatty()):
        return None if text is None else _not_empty(text)
    try:
        piped = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is no text: {error}") from None
    return _not_empty(piped.removesuffix("\n"))


def _not_empty(text: str) -> str:
    if not text.strip():
        raise InputError("the input is empty; give a text with -i, or pipe one in")
    return text


def _answer_once(conversation: Conversation, question: str, *, verbose: bool) -> None:
    for piece in conversation.answer(question):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    if verbose:
        output.note(str(conversation.speed))


def _converse(conversation: Conversation) -> None:
    from .chat import talk

    output.dim("Type a message; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    talk(conversation, _reader())


def _reader() -> Callable[[], str]:
    """Lines typed at the prompt, with editing, completion of commands, and a history that is kept."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from mlc.cache import cache_folder

    from .chat import COMMANDS

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(folder / "history")),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
    )
    return lambda: session.prompt("> ")
