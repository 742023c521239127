"""Chat templates: from messages to the text that the model was trained on.

A template is the jinja2 source that a checkpoint brings, rendered as transformers does it. It runs in a metered sandbox
(`sandbox`), and sees messages in which no special token can be found (`specials`): the text that `render` gives is for
`Tokenizer.encode_chat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from mlc.errors import BadCheckpoint, InvalidRequest

from .meter import METER, Meter
from .sandbox import SandboxEnvironment
from .specials import Specials, unescape_marks
from .tokenizer import Tokenizer, read_object

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
OPTIONS = frozenset(
    {"enable_thinking", "thinking", "reasoning_effort", "date_string"}
)  # any template may be given them
_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"})

MAX_SOURCE = 100_000  # characters of a template; the longest known has 25 000
SECONDS = 5.0  # of processor time


class ChatTemplate:
    """One model's template. Immutable; may be rendered on several threads at once."""

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        specials: Specials | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`specials` are the tokenizer's, to be kept out of messages. Raises BadCheckpoint for a broken `source`."""
        if len(source) > MAX_SOURCE:
            raise BadCheckpoint(f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are accepted")
        self.source = source
        self._specials = specials or Specials()
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        environment = SandboxEnvironment()
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: now().strftime(_plain_form(form)),
        }
        environment.filters["tojson"] = tojson
        try:
            self._template = environment.from_string(source)
            self._reads = meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
        except jinja2.TemplateSyntaxError as error:
            raise BadCheckpoint(f"line {error.lineno} of the chat template: {error.message}") from None
        except Exception as error:  # the source is compiled to Python, which has limits of its own
            raise BadCheckpoint(f"the chat template cannot be compiled: {type(error).__name__}: {error}") from None

    @staticmethod
    def open(folder: Path, tokenizer: Tokenizer | None = None) -> ChatTemplate | None:
        """The template of the model in `folder`, or None where it has none. Raises BadCheckpoint.

        Looked for in chat_template.jinja, tokenizer_config.json and chat_template.json. `tokenizer` is the one of the
        same folder, which is opened where it is not given.
        """
        source = _find_source(folder)
        if source is None:
            return None
        tokenizer = tokenizer or Tokenizer.open(folder)
        return ChatTemplate(source, tokenizer.bos_token, tokenizer.eos_token, specials=tokenizer.specials)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text for `Tokenizer.encode_chat`; `add_generation_prompt`: the assistant is to answer.

        `kwargs` are further variables of the template: those it reads, and OPTIONS. Raises InvalidRequest where a
        message is malformed or the template refuses it, fails, or does more work than messages of this size need.
        """
        self._check(messages, kwargs or {})
        try:
            given = {"messages": list(messages), "tools": tools if tools is None else list(tools), **(kwargs or {})}
            variables: dict[str, Any] = {name: self._shielded(value) for name, value in given.items()}
        except RecursionError:
            raise InvalidRequest("the messages are nested too deeply", param="messages") from None
        variables |= {
            **self._tokens,
            "documents": variables.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        token = METER.set(Meter(variables, SECONDS))
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from None
        except Exception as error:  # a template is a program: it may fail in any way
            raise InvalidRequest(
                f"the chat template fails on these messages: {type(error).__name__}: {str(error)[:200]}",
                param="messages",
            ) from None
        finally:
            METER.reset(token)

    def _check(self, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]) -> None:
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or message.get("role") not in ROLES:
                role = message.get("role") if isinstance(message, Mapping) else message
                raise InvalidRequest(
                    f"messages[{i}] has the role {str(role)[:40]!r}; expected one of {', '.join(ROLES)}",
                    param=f"messages[{i}].role",
                )
        allowed = (self._reads | OPTIONS) - _OURS | {"documents"}
        if unknown := sorted(kwargs.keys() - allowed):
            raise InvalidRequest(
                f"chat_template_kwargs has {unknown[0][:40]!r}; this model's template takes "
                f"{', '.join(sorted(allowed))}",
                param="chat_template_kwargs",
            )

    def _shielded(self, value: Any) -> Any:
        """A copy of JSON data in which no text holds a special token. Raises InvalidRequest for anything else."""
        if isinstance(value, str):
            return self._specials.shield(value)
        if isinstance(value, Mapping):
            return {self._shielded(str(key)): self._shielded(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._shielded(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise InvalidRequest(f"messages hold a {type(value).__name__}; expected JSON data", param="messages")


def _find_source(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{path} is not readable: {error}") from None
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = read_object(folder / name).get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            source = named.get("default")
            if source is None:
                names = ", ".join(sorted(map(str, named)))
                raise BadCheckpoint(f"{folder / name} has no chat template named default, only {names}")
        if source is not None and not isinstance(source, str):
            raise BadCheckpoint(f"{folder / name}: chat_template must be a string or a list of named ones")
        if source:
            return source
    return None


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(METER.get().text(message))


def _plain_form(form: str) -> str:
    """A strftime format without padding widths, which may be huge."""
    if len(form) > 200 or re.search(r"%[^A-Za-z%]*\d", form):
        raise jinja2.TemplateError(f"strftime_now is given the format {form[:40]!r}")
    return form


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: like json.dumps, and not escaped for HTML as jinja2's own."""
    meter = METER.get()
    meter.spend(8 * meter.weight(value))  # \u0000 is the longest escape
    if (len(indent) if isinstance(indent, str) else indent or 0) > 16:
        raise jinja2.TemplateError("tojson is given an indent above 16")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(value) if indent else [encoder.encode(value)]:
        meter.spend(len(part))  # an indent comes once for each level around each element
        parts.append(part)
    text = "".join(parts)
    return unescape_marks(text) if ensure_ascii else text
