"""Topics about numbers and order: sums, word problems, counting, days and months."""

from __future__ import annotations

import random

from . import facts
from .exchange import Exchange, pick

SIGNS: dict[str, tuple[str, ...]] = {
    "+": (" + ", "+", " plus ", " and "),
    "-": (" - ", "-", " minus "),
    "x": (" x ", " * ", "*", " times ", "x"),
}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def _sum_question(rng: random.Random) -> tuple[str, str, int]:
    sign = rng.choices("+-x", [6, 3, 2])[0]
    if sign == "x":
        left, right = rng.randint(0, 10), rng.randint(0, 10)
        value = left * right
    else:
        top = rng.choice([10, 20, 20, 50, 99])
        left, right = rng.randint(0, top), rng.randint(0, rng.choice([9, top]))
        if sign == "-":
            left, right = max(left, right), min(left, right)
        value = left + right if sign == "+" else left - right
    spelled = max(left, right) <= 12 and rng.random() < 0.1
    shown = (
        f"{WORDS[left]}{rng.choice([s for s in SIGNS[sign] if s.strip().isalpha() and len(s) > 1])}{WORDS[right]}"
        if spelled
        else (f"{left}{rng.choice(SIGNS[sign][:-1] if sign == '+' and rng.random() < 0.8 else SIGNS[sign])}{right}")
    )
    return shown, f"{left} {sign} {right} = {value}.", value


def sums(rng: random.Random) -> list[Exchange]:
    """Sums, differences and products, alone or a few in a row."""
    shown, answer, value = _sum_question(rng)
    question = rng.choice(
        [
            "What is {}?",
            "What is {}?",
            "What's {}?",
            "How much is {}?",
            "{}",
            "{}",
            "{}?",
            "{} =",
            "{}=",
            "Calculate {}.",
            "Can you calculate {}?",
            "What does {} make?",
            "Compute {}.",
            "Please tell me {}.",
            "What do you get for {}?",
        ]
    )
    out = [Exchange(question.format(shown), answer, f"{value}")]
    while len(out) < 3 and rng.random() < 0.35:
        shown, answer, value = _sum_question(rng)
        out.append(
            Exchange(rng.choice(["And {}?", "What about {}?", "{}", "{}?", "and {}"]).format(shown), answer, f"{value}")
        )
    return out


def word_problems(rng: random.Random) -> list[Exchange]:
    """Sums told as a little story."""
    one, two, thing = (
        rng.randint(1, 15),
        rng.randint(1, 10),
        rng.choice(["apples", "books", "eggs", "cats", "coins", "pens", "cakes", "balls"]),
    )
    if rng.random() < 0.6:
        question = pick(
            rng,
            f"I have {one} {thing} and (get|buy|find) {two} more. How many {thing} do I have(| now)?|If I have "
            f"{one} {thing} and you give me {two}, how many (|{thing} )do I have?",
        )
        return [
            Exchange(question, f"You have {one + two} {thing}, because {one} + {two} = {one + two}.", f"{one + two}")
        ]
    one = one + two
    question = pick(
        rng, f"I have {one} {thing} and (lose|sell|give away) {two}. How many {thing} (do I have|are left)(| now)?"
    )
    return [Exchange(question, f"You have {one - two} {thing}, because {one} - {two} = {one - two}.", f"{one - two}")]


def _neighbour(rng: random.Random) -> Exchange:
    row, what = rng.choice([(facts.DAYS, "day"), (facts.MONTHS, "month")])
    at, after = rng.randrange(len(row)), rng.random() < 0.6
    word, other = ("after", row[(at + 1) % len(row)]) if after else ("before", row[at - 1])
    question = pick(
        rng,
        f"(What|Which) {what} (comes|is) {word} {row[at]}?|What comes {word} {row[at]}?|"
        f"What {what} is it the {what} {word} {row[at]}?|{row[at]}, what is {word}?",
    )
    return Exchange(question, f"{other} comes {word} {row[at]}.", f"{other}.")


def _next_number(rng: random.Random) -> Exchange:
    at, after = rng.randint(1, 99), rng.random() < 0.6
    word, other = ("after", at + 1) if after else ("before", at - 1)
    question = pick(rng, f"(What|Which) (number |)comes {word} {at}?|What is the number {word} {at}?")
    return Exchange(question, f"{other} comes {word} {at}.", f"{other}")


def _compare(rng: random.Random) -> Exchange:
    one, two = rng.sample(range(100), 2)
    word = rng.choice(["bigger", "larger", "smaller"])
    best, rest = (min(one, two), max(one, two)) if word == "smaller" else (max(one, two), min(one, two))
    question = pick(rng, f"(Which|What) (number |)is {word}, {one} or {two}?|{one} or {two}, which is {word}?")
    return Exchange(question, f"{best} is {word} than {rest}.", f"{best}")


def _even_or_odd(rng: random.Random) -> Exchange:
    number = rng.randint(0, 99)
    word = "odd" if number % 2 else "even"
    asked = rng.choice(["odd", "even"])
    yes = "Yes." if asked == word else "No."
    said = f"{number} is {word}."
    either = Exchange(f"Is {number} even or odd?", said, f"{word.capitalize()}.")
    return rng.choice([either, Exchange(f"Is {number} {asked}?", f"{yes} {said}", yes)])


def _count(rng: random.Random) -> Exchange:
    first = rng.choice([1, 1, 1, rng.randint(0, 15)])
    last = first + rng.randint(2, 14) if first > 1 else rng.randint(3, 20)
    numbers = [str(number) for number in range(first, last + 1)]
    if rng.random() < 0.25:
        question = pick(rng, f"Count (down|backwards) from {last} to {first}.")
        return Exchange(question, ", ".join(numbers[::-1]) + ".")
    question = f"(Count|Can you count) from {first} to {last}?"
    if first == 1:
        question = f"Count (from {first} |)to {last}.|Can you count (from {first} |)to {last}?"
    return Exchange(pick(rng, question), ", ".join(numbers) + ".")


def _row(rng: random.Random) -> Exchange:
    seasons = ["Spring", "summer", "autumn", "winter"]
    rows = [(facts.DAYS, "days of the week"), (facts.MONTHS, "months of the year"), (seasons, "seasons")]
    row, what = rng.choice(rows)
    question = pick(rng, f"(Name|List|What are|Tell me|Say|Which are) (|all )the {what}?")
    return Exchange(question, f"{', '.join(row[:-1])} and {row[-1]}.")


def order(rng: random.Random) -> list[Exchange]:
    """What comes before or after, what is bigger, odd and even, counting."""
    kinds = [_neighbour, _neighbour, _next_number, _compare, _even_or_odd, _count, _row]
    return [kinds[rng.randrange(len(kinds))](rng)]
