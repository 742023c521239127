"""Topics about the world: capitals, colours, opposites, animals, things, lists."""

from __future__ import annotations

import random

from . import facts
from .exchange import Exchange, fill, pick, upper_first
from .numbers import WORDS
from .stories import a


def capitals(rng: random.Random) -> list[Exchange]:
    """The capital of a country, the country of a capital."""
    countries = rng.sample(list(facts.CAPITALS), 3)

    def exchange(country: str, question: str) -> Exchange:
        city = facts.CAPITALS[country]
        return Exchange(question, f"The capital of {country} is {city}.", f"{city}.")

    def reverse(country: str) -> Exchange:
        city = facts.CAPITALS[country]
        question = pick(
            rng,
            f"Which country has the capital {city}?|{city} is the capital of (which|what) country?|"
            f"(In which country is|Which country is) {city}(| in)?|Where is {city}?",
        )
        return Exchange(question, f"{city} is the capital of {country}.", f"{upper_first(country)}.")

    first, second, third = countries
    question = pick(
        rng,
        "(What is|What's|Tell me|Do you know|Name|What city is|Which city is|Can you tell me) the capital "
        f"(|city )of {first}?|"
        f"{first} capital?|Capital of {first}?|What is {first}'s capital?|The capital of {first}?",
    )
    follow = pick(rng, "And (of |)(CC)?|What about (CC)?|And the capital of (CC)?|And (for|in) CC?")
    return rng.choice(
        [
            [exchange(first, question)],
            [exchange(first, question)],
            [reverse(first)],
            [exchange(first, question), exchange(second, follow.replace("CC", second))],
            [exchange(first, question), exchange(second, follow.replace("CC", second)), reverse(third)],
        ]
    )


def colours(rng: random.Random) -> list[Exchange]:
    """The colour of a thing."""
    first, second = rng.sample(list(facts.COLOURS), 2)

    def exchange(thing: str, question: str) -> Exchange:
        colour = facts.COLOURS[thing]
        return Exchange(question, f"{upper_first(thing)} is {colour}.", f"{colour.capitalize()}.")

    word = rng.choice(["colour", "color"])
    question = pick(
        rng, f"(What|Which) {word} (is|has) {first}?|(What is|What's|Tell me) the {word} of {first}?|{word} of {first}?"
    )
    out = [exchange(first, question)]
    if rng.random() < 0.3:
        out.append(exchange(second, pick(rng, f"And {second}?|What about {second}?|And of {second}?")))
    return out


def opposites(rng: random.Random) -> list[Exchange]:
    """The opposite of a word."""
    first, second = rng.sample(list(facts.OPPOSITES), 2)

    def exchange(word: str, question: str) -> Exchange:
        return Exchange(
            question, f"The opposite of {word} is {facts.OPPOSITES[word]}.", f"{facts.OPPOSITES[word].capitalize()}."
        )

    out = [
        exchange(
            first,
            pick(
                rng,
                f"(What is|What's|Tell me|Do you know|Name|Give me) the opposite of {first}?|Opposite of {first}?|"
                f"What is the opposite word of {first}?|The opposite of {first}?|Which word is the opposite of "
                f"{first}?",
            ),
        )
    ]
    if rng.random() < 0.3:
        out.append(
            exchange(
                second, pick(rng, f"And of {second}?|And {second}?|What about {second}?|And the opposite of {second}?")
            )
        )
    return out


# pattern of the question, long and short answer; ONE is "a fox", NAME "fox", the rest are the fields of `facts.Animal`
ABOUT_ANIMALS = [
    (
        "How many legs does ONE have?|How many legs has ONE got?|Number of legs of ONE?|How many legs do NAMEs have?",
        "ONE has LEGS.",
        "LEGS.",
    ),
    (
        "What is a (baby|young) NAME called?|What do you call a (baby|young) NAME?|"
        "(What is|What's) the name of a baby NAME?",
        "A baby NAME is called YOUNG.",
        "YOUNG.",
    ),
    (
        "Where does ONE live?|(What is|What's) the home of ONE?|Where (can|do) I find ONE?|Where do NAMEs live?",
        "ONE lives in HOME.",
        "In HOME.",
    ),
    (
        "What does ONE eat?|What (can I feed|do I give) ONE?|(What is|What's) the food of ONE?|What do NAMEs eat?",
        "ONE eats FOOD.",
        "FOOD.",
    ),
    ("What (kind|sort) of animal is ONE?|What is ONE, a bird or a mammal?", "ONE is KIND.", "KIND."),
    (
        "What is ONE?|Tell me (about|something about) ONE.|What do you know about ONE?|Describe ONE.|"
        "Tell me about NAMEs.",
        "ONE is KIND. It has LEGS, lives in HOME and eats FOOD.",
        "KIND.",
    ),
    (
        "What sound does ONE make?|What does ONE say?|(What is|What's) the sound of ONE?|How does ONE sound?|"
        "Which noise does ONE make?",
        "ONE says SOUND.",
        "SOUND.",
    ),
]


def _is_it(rng: random.Random, name: str) -> Exchange:
    kind = facts.ANIMALS[name].kind
    other = rng.choice(["mammal", "bird", "fish", "insect", "reptile", kind])
    yes = "Yes." if other == kind else "No."
    return Exchange(f"Is {a(name)} {a(other)}?", f"{yes} {a(name).capitalize()} is {a(kind)}.", yes)


def _about_animal(rng: random.Random, name: str) -> Exchange:
    animal = facts.ANIMALS[name]
    known = [asked for asked in ABOUT_ANIMALS if animal.sound or "SOUND" not in asked[1]]
    chosen = rng.randrange(len(known) + 1)
    if chosen == len(known):
        return _is_it(rng, name)
    fields = {
        "ONE": a(name),
        "NAME": name,
        "LEGS": f"{animal.legs or 'no'} legs",
        "YOUNG": a(animal.young),
        "KIND": a(animal.kind),
        "SOUND": animal.sound,
        "HOME": animal.home,
        "FOOD": animal.food,
    }
    question, answer, short = (fill(pattern, fields) for pattern in known[chosen])
    return Exchange(pick(rng, question), upper_first(answer), upper_first(short))


def _compare_animals(rng: random.Random) -> Exchange:
    first, second = names = rng.sample(list(facts.ANIMALS), 2)
    small, big = sorted(names, key=lambda name: facts.ANIMALS[name].size)
    word = rng.choice(["bigger", "larger", "smaller"])
    winner, loser = (small, big) if word == "smaller" else (big, small)
    question = pick(
        rng,
        f"(Which|What) is {word}, {a(first)} or {a(second)}?|Who is {word}, {a(first)} or {a(second)}?|"
        f"Is {a(first)} {word} than {a(second)}?",
    )
    said = f"{a(winner).capitalize()} is {word} than {a(loser)}."
    if question.startswith("Is "):
        yes = "Yes." if winner == first else "No."
        return Exchange(question, f"{yes} {said}", yes)
    return Exchange(question, said, f"{a(winner).capitalize()}.")


def _two_sounds(rng: random.Random) -> list[Exchange]:
    first, second = rng.sample([name for name, animal in facts.ANIMALS.items() if animal.sound], 2)

    def exchange(name: str, pattern: str) -> Exchange:
        sound = facts.ANIMALS[name].sound
        return Exchange(pick(rng, pattern), f"{a(name).capitalize()} says {sound}.", f"{sound.capitalize()}.")

    return [
        exchange(first, f"What sound does {a(first)} make?|What does {a(first)} say?"),
        exchange(second, f"And {a(second)}?|What about {a(second)}?"),
    ]


def animals(rng: random.Random) -> list[Exchange]:
    """Legs, sounds, young, homes, food and sizes of animals."""
    roll = rng.random()
    if roll < 0.2:
        return [_compare_animals(rng)]
    if roll < 0.4:
        return _two_sounds(rng)
    return [_about_animal(rng, rng.choice(list(facts.ANIMALS)))]


def counts(rng: random.Random) -> list[Exchange]:
    """How many of something there are."""
    asked, number = rng.choice(list(facts.COUNTS.items()))
    subject = asked.split(" does ")[0].split(" do ")[0].split(" are ")[0].split(" go ")[0]
    rest = asked[len(subject) :].strip()
    noun = subject[:-1] if number == "1" else subject
    if rest.startswith("are there"):
        said = f"There are {number} {noun}."
    elif rest.startswith("are in"):
        said = f"There are {number} {noun} {rest[4:]}."
    elif rest.startswith("do people have"):
        said = f"People have {number} {noun}."
    elif rest.startswith("does "):
        said = f"{rest[5:-5].capitalize()} has {number} {noun}."
    else:
        said = f"{number} {noun} {rest}."
    return [
        Exchange(
            pick(rng, f"How many {asked}?|Do you know how many {asked}?|Tell me how many {asked}."), said, f"{number}"
        )
    ]


def things(rng: random.Random) -> list[Exchange]:
    """What a thing is, and single facts."""
    if rng.random() < 0.5:
        question, answer = rng.choice(list(facts.MISC.items()))
        return [Exchange(question, answer)]
    thing, meaning = rng.choice(list(facts.THINGS.items()))
    question = pick(
        rng,
        f"(What is|What's|Explain|Describe|Do you know) {thing}?|What does {thing.split()[-1]} mean?|(Tell "
        f"me|Say) what {thing} is.",
    )
    return [Exchange(question, f"{upper_first(thing)} is {meaning}.")]


def lists(rng: random.Random) -> list[Exchange]:
    """A few members of a kind."""
    kind, members = rng.choice(list(facts.LISTS.items()))
    number = rng.choice([2, 3, 3, 3, 4, 5])
    chosen = rng.sample(members, number)
    said = ", ".join(chosen[:-1]) + f" and {chosen[-1]}."
    shown = rng.choice([WORDS[number], str(number)])
    return [Exchange(pick(rng, f"(Name|List|Tell me|Give me|Say|Can you name) {shown} {kind}."), upper_first(said))]
