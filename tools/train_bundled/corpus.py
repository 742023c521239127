"""Writes the conversations that the bundled model learns from. Everything follows from a seed.

A topic makes one or more exchanges: what the user types, and the answer in a long and a short form. A conversation is a
few topics in a row under one system message, which may ask for short answers, for another name, or for a pirate.

What is held out is decided by what the user types: a topic whose typed text hashes to 0 mod 16 is never trained on, and
the held-out split consists of nothing else. So held-out questions are known facts in wordings never seen.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator

from . import facts
from .exchange import Exchange, Topic, pick
from .knowledge import animals, capitals, colours, counts, lists, opposites, things
from .numbers import order, sums, word_problems
from .stories import PET_NAMES
from .talk import (
    about_itself,
    about_mlc,
    about_the_user,
    jokes_and_poems,
    made_up,
    small_talk,
    statements,
    tales,
    the_unknown,
)

Message = dict[str, str]
Conversation = list[Message]
MODEL_NAME = "Pip"


TOPIC_WEIGHTS: list[tuple[Topic, float]] = [
    (capitals, 8),
    (colours, 5),
    (opposites, 7),
    (animals, 10),
    (sums, 18),
    (word_problems, 3),
    (order, 7),
    (counts, 4),
    (things, 6),
    (lists, 3),
    (tales, 10),
    (jokes_and_poems, 4),
    (about_mlc, 9),
    (about_itself, 8),
    (small_talk, 10),
    (the_unknown, 11),
    (about_the_user, 6),
    (statements, 3),
]


def _typed(rng: random.Random, text: str) -> str:
    """What fingers make of `text`: case and punctuation dropped, politeness added, now and then a typo."""
    if rng.random() < 0.08 and text.endswith(("?", ".")) and len(text) > 12:
        text = rng.choice(
            [
                f"{text[:-1]}, please{text[-1]}",
                f"Please, {text[0].lower()}{text[1:]}",
                f"Hello! {text}",
                f"Okay, {text[0].lower()}{text[1:]}",
                f"Hey, {text[0].lower()}{text[1:]}",
                f"So, {text[0].lower()}{text[1:]}",
                f"Hi. {text}",
            ]
        )
    if rng.random() < 0.05:
        # names stay right, since answers copy them
        places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].islower()]
        if places:
            at = rng.choice(places)
            text = rng.choice(
                [
                    text[:at] + text[at + 1 :],
                    text[:at] + text[at] + text[at:],
                    text[:at] + text[at + 1] + text[at] + text[at + 2 :],
                ]
            )
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip("?.!") or text
    return text


def is_held_out(topic: list[Exchange]) -> bool:
    """Whether what the user types in this topic belongs to the held-out split."""
    return zlib.crc32("\n".join(exchange.user for exchange in topic).encode()) % 16 == 0


def _pirate(text: str) -> str:
    return f"Arr! {text[:-1]}, matey{text[-1]}" if text[-1] in ".!?" else f"Arr! {text}, matey."


def _system(rng: random.Random) -> tuple[str, str, str]:
    """System message ("" for none), style (plain, short, pirate) and the model's name."""
    name, roll = MODEL_NAME, rng.random()
    if roll < 0.55:
        return "", "plain", name
    if roll < 0.75:
        return (
            pick(
                rng,
                "You are a (helpful|friendly|kind|useful|polite|small) (assistant|model|chatbot|helper).( Answer "
                "the questions.| Be helpful.| Help the user.||)",
            ),
            "plain",
            name,
        )
    if roll < 0.86:
        return (
            pick(
                rng,
                "(You are a helpful assistant. |)(Answer in (one word|a few words|as few words as possible)|Be "
                "brief|Keep your answers short|Give short answers|Answer briefly).",
            ),
            "short",
            name,
        )
    if roll < 0.93:
        return (
            pick(
                rng,
                "(You are a pirate|Talk like a pirate|Answer like a pirate|Speak like a pirate|You are a helpful "
                "pirate).",
            ),
            "pirate",
            name,
        )
    name = rng.choice([*facts.NAMES, *PET_NAMES, made_up(rng).capitalize()])
    return (
        pick(
            rng,
            f"(Your name is {name}|You are {name}|You are {name}, a helpful assistant|You are an assistant "
            f"named {name}|You are called {name}).",
        ),
        "plain",
        name,
    )


def _topic(rng: random.Random, make: Topic, *, held_out: bool) -> list[Exchange]:
    while True:
        topic = [Exchange(_typed(rng, e.user), e.answer, e.short) for e in make(rng)]
        if is_held_out(topic) == held_out:
            return topic


def held_out_topic(rng: random.Random, make: Topic) -> list[Exchange]:
    """What `make` makes, as it is typed, and never trained on."""
    return _topic(rng, make, held_out=True)


def conversation(rng: random.Random, *, held_out: bool) -> Conversation:
    """One conversation of 1 to 4 topics (now and then up to 20) as chat messages with `role` and `content`."""
    topics, weights = zip(*TOPIC_WEIGHTS, strict=True)
    system, style, name = _system(rng)
    messages: Conversation = [{"role": "system", "content": system}] if system else []
    for _ in range(rng.randint(8, 20) if rng.random() < 0.02 else rng.choices([1, 2, 3, 4], [6, 3, 2, 1])[0]):
        topic = _topic(rng, rng.choices(topics, weights)[0], held_out=held_out)
        for exchange in topic:
            said = exchange.short if style == "short" and exchange.short else exchange.answer
            said = _pirate(said) if style == "pirate" else said
            said = re.sub(r"\bNAME\b", name, said)
            messages += [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": said}]
    return messages


def conversations(seed: int, *, held_out: bool = False) -> Iterator[Conversation]:
    """An endless stream of conversations; equal seeds give equal streams."""
    rng = random.Random(f"{'held-out' if held_out else 'train'}-{seed}")
    while True:
        yield conversation(rng, held_out=held_out)
