"""The engine's limits, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import msgspec

from mlc.errors import BadConfig

from .batch import Model


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of an engine. Raises `BadConfig`, naming the field.

    None means what the model was compiled for, which is also the most that may be asked.
    """

    max_queue: int = 1024  # choices that wait; a request beyond that is refused as Overloaded
    max_choices: int = 128  # `n` of one request
    max_context: int | None = None  # tokens of prompt and answer
    max_sequences: int | None = None  # that run in one step; more wait
    max_step_tokens: int | None = None  # in one step: less means shorter steps while a long prompt is read
    max_steps: int = 256  # in one call of the model, where nothing is needed between them: 1 delivers each token alone
    prefix_cache: bool = True  # share the pages of common prefixes, and keep them for later requests
    check: bool = False  # prove every law of scheduler, pool and batch at each step: slow, for tests

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, bool):
                valid, expected = isinstance(value, bool), "true or false"
            else:
                valid = value is None if setting.default is None else False
                valid = valid or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
                expected = "a whole number from 1"
            if not valid:
                raise BadConfig(f"the engine setting {setting.name} is {value!r}; expected {expected}")

    def within(self, model: Model) -> Limits:
        """The limits that hold with `model`. Raises `BadConfig` if they exceed what it was compiled for."""
        context = _at_most("max_context", self.max_context, model.max_context)
        step_tokens = _at_most("max_step_tokens", self.max_step_tokens, model.max_tokens)
        sequences = _at_most("max_sequences", self.max_sequences, model.max_sequences)
        if self.max_sequences is not None and sequences > step_tokens:
            raise BadConfig(f"max_sequences is {sequences} and a step takes {step_tokens} tokens; give each its token")
        # What no sequence may exceed, so that the oldest can always finish, even if all others have to make room.
        return Limits(min(context, model.pages * model.page_size), min(sequences, step_tokens), step_tokens)


@dataclass(frozen=True, slots=True)
class Limits:
    context: int  # tokens of one sequence, prompt and answer
    sequences: int  # in one step, at most step_tokens
    step_tokens: int  # in one step


def _at_most(name: str, wanted: int | None, most: int) -> int:
    if wanted is not None and wanted > most:
        raise BadConfig(f"{name} is {wanted} and the model was compiled for at most {most}; lower it, or compile anew")
    return most if wanted is None else wanted


class Statistics(msgspec.Struct):
    """Counters since the engine was made, and gauges of this moment."""

    steps: int = 0
    requests: int = 0  # accepted
    rejected: int = 0  # refused because the queue was full
    finished: dict[str, int] = msgspec.field(default_factory=dict[str, int])  # choices, by finish_reason
    prompt_tokens: int = 0  # of all choices that started
    cached_tokens: int = 0  # of those, taken from the prefix cache
    completion_tokens: int = 0
    computed_tokens: int = 0  # rows that the model ran, recomputed ones included
    preemptions: int = 0
    evictions: int = 0  # pages given up from the prefix cache
    step_seconds: float = 0.0  # all steps together
    model_seconds: float = 0.0  # of those, in the model; what is left is the engine's own work
    last_step_seconds: float = 0.0  # the mean, where one call made several
    last_step_tokens: int = 0
    waiting: int = 0  # choices, now
    running: int = 0  # choices, now
    pages: int = 0
    pages_free: int = 0  # without references, now; those that the prefix cache keeps are among them
    pages_cached: int = 0  # without references, content kept, now
