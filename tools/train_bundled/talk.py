"""Topics of talk: stories, jokes, mlc, the model itself, the user, small talk, and what the model does not know."""

from __future__ import annotations

import random

from . import facts, lines
from .exchange import Exchange, fill, pick, upper_first
from .knowledge import animals, capitals, colours, opposites
from .numbers import sums
from .stories import HEROES, PET_NAMES, PLACES, TOPICS, a, poem, story


def _about_story(rng: random.Random, hero: str, helper: str, name: str, place: str) -> Exchange:
    """A question about the story that was just told."""
    question, answer, short = rng.choice(
        [
            (
                f"(What was|What is|What's) the name of the {hero}?|How was the {hero} called?|"
                f"What was the {hero}'s name?",
                f"The name of the {hero} was {name}.",
                name,
            ),
            (f"Who was {name}?|Who is {name}?|What was {name}?", f"{name} was {a(hero)}.", a(hero)),
            (f"Where did {name} live?|Where did the {hero} live?", f"{name} lived {place}.", place),
            (
                f"Who did {name} meet?|Who was the (other|friend|second one)?|Who helped {name}?",
                f"It was {a(helper)}.",
                a(helper),
            ),
        ]
    )
    return Exchange(pick(rng, question), answer, upper_first(short) + ".")


def tales(rng: random.Random) -> list[Exchange]:
    """A story on request, sometimes another one or a question about it."""
    hero, helper = rng.sample(HEROES, 2)
    name, place = rng.choice(PET_NAMES), rng.choice(PLACES)
    ask = (
        "(Tell me|Can you tell me|Please tell me|I want|Write|Write me|Give me|Make up|Could you tell me|"
        "I would like to hear) (a|a|a short|a little) (story|story|tale)"
    )
    about = [
        "",
        "",
        f" about {a(hero)}",
        f" about {a(hero)}",
        f" about {a(hero)}",
        f" about {a(hero)} named {name}",
        f" about {a(hero)} and {a(helper)}",
        f" about {a(hero)} {place}",
        f" with {a(hero)}",
        f" about {a(hero)} named {name} and {a(helper)}",
    ]
    question = pick(rng, f"{ask}{rng.choice(about)}.")
    out = [Exchange(question, story(rng, hero, helper, name, place))]
    roll = rng.random()
    if roll < 0.15:
        hero, helper = rng.sample(HEROES, 2)
        more = rng.choice(["", f" about {a(hero)}"])
        asked = pick(
            rng,
            f"Another one{more}.|Tell me another (one|story){more}.|One more{more}, please.|And now "
            f"one{more or ' more'}.",
        )
        out.append(Exchange(asked, story(rng, hero, helper, rng.choice(PET_NAMES), rng.choice(PLACES))))
    elif roll < 0.35:
        out.append(_about_story(rng, hero, helper, name, place))
    return out


def jokes_and_poems(rng: random.Random) -> list[Exchange]:
    """A joke or four rhyming lines."""
    if rng.random() < 0.5:
        topic = rng.choice(TOPICS)
        about = rng.choice([f" about the {topic}", f" about {a(topic)}", f" about the {topic}", ""])
        return [
            Exchange(
                pick(
                    rng,
                    "(Write|Write me|Tell me|Give me|Can you write|Make|I want|Sing me) a (poem|short poem|song|"
                    f"rhyme){about}.",
                ),
                poem(rng, topic),
            )
        ]
    jokes = rng.sample(lines.JOKES, 2)
    out = [
        Exchange(
            pick(
                rng,
                "(Tell me|Do you know|Can you tell me|Give me|I want to hear|Say) (a|another|a funny|a short) "
                "joke(.|?)|Make me laugh.|A joke, please.|Be funny.",
            ),
            " ".join(jokes[0]),
        )
    ]
    if rng.random() < 0.3:
        out.append(
            Exchange(
                pick(rng, "Another (one|joke)(.|, please.)|Tell me another (one|joke).|One more(.|, please.)"),
                " ".join(jokes[1]),
            )
        )
    return out


def about_mlc(rng: random.Random) -> list[Exchange]:
    """What mlc is and which command does what."""
    return [
        Exchange(pick(rng, question), answer, short)
        for question, answer, short in rng.sample(lines.MLC, rng.choice([1, 1, 1, 2]))
    ]


def about_itself(rng: random.Random) -> list[Exchange]:
    """Who the model is and what it can do."""
    question, answer, short = rng.choice(lines.SELF + lines.SELF[:3] * 3)
    return [Exchange(pick(rng, question), answer, short)]


def _told(rng: random.Random) -> str:
    hero, helper = rng.sample(HEROES, 2)
    return story(rng, hero, helper, rng.choice(PET_NAMES), rng.choice(PLACES))


def small_talk(rng: random.Random) -> list[Exchange]:
    """Hello, thanks, goodbye, moods; where the answer offers a story or a joke, it may be taken up."""
    question, answer = rng.choice(lines.SMALL_TALK + lines.SMALL_TALK[:5] * 3)
    out = [Exchange(pick(rng, question), answer)]
    if "Shall I tell you a story" in answer and rng.random() < 0.5:
        if rng.random() < 0.6:
            out.append(Exchange(pick(rng, "Yes, a story.|A story.|A story, please."), _told(rng)))
        else:
            out.append(Exchange(pick(rng, "A joke.|A joke, please."), " ".join(rng.choice(lines.JOKES))))
    return out


def made_up(rng: random.Random) -> str:
    """A word that is none, in lower case."""
    return "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l", "x"])
        for _ in range(rng.randint(2, 4))
    )


SORRY = "I am sorry, I do not know that. I am a very small model."


def _beyond_a_known_word(rng: random.Random) -> str:
    """A question about a known country or animal to which the model has no answer."""
    country, animal = rng.choice(list(facts.CAPITALS)), a(rng.choice(list(facts.ANIMALS)))
    return pick(
        rng,
        "(What is|What's|Tell me|Who is|Do you know) the (population|king|queen|president|currency|flag|language|area|"
        f"history|money|food|national anthem) of {country}?|"
        f"How (many people live in|big is|old is|far is|do I get to) {country}?|"
        f"(Is|Why is) {country} (rich|warm|cold|in Europe|in Asia|far away|a big country)?|"
        f"How (old|fast|heavy|long|clever|tall|expensive) is {animal}?|"
        f"(Can|Does|Will|Why does|Why can) {animal} (swim|sleep|run|climb|jump|hear|dream|see colours|talk|bite)?|"
        f"What does {animal} (look like|smell like|cost|think|weigh)?|"
        f"How do I (catch|feed|train|draw|keep|wash) {animal}?",
    )


def _beyond(rng: random.Random, word: str, noun: str, city: str) -> str:
    """A question about anything; `word` is made up."""
    first, second = rng.sample(facts.NAMES, 2)
    other = made_up(rng).capitalize()
    person = rng.choice([other, f"{first} {other}", f"{other} {second}"])
    thing = rng.choice([word, f"{noun} {word}", f"{word} {noun}"])
    return pick(
        rng,
        "(Who is|Who was|Do you know|Tell me about|When was|When did|Where is|Where does) "
        f"{person}( born| live| die|)?|"
        f"(What is|Explain|Define|What does|Where is|Why is|How does) (a |the |){thing}(| mean| work)?|"
        f"Why (is|do|does|are|did) (the |)({noun}|{word}|people|{city})( so|) "
        "(big|small|important|old|red|go|live|work|sleep|change)?|"
        "How (long|far|deep|expensive|heavy|high|old|fast) is (the |a |)"
        f"({noun}|{word}|{city}|road to {city})?|"
        f"When (was|did|will) (the |)({noun}|{word}|{city}|war)( invented|built|begin|end|happen)?|"
        f"Who (invented|discovered|wrote|painted|built|owns|sang) (the |)({noun}|{word}|{other})?|"
        "How (do|can|should) I (build|fix|cook|clean|draw|learn|paint|repair|grow|sell|play) "
        f"(a |the |)({noun}|{word})?|"
        f"(What is|Which is) the (best|biggest|oldest|longest|worst) ({noun}|{word}|film|song|book|team) "
        f"in ({city}|the world|{other})?",
    )


def the_unknown(rng: random.Random) -> list[Exchange]:
    """What the model was not made for, places that do not exist, keys hit at random, and what it has no answer to."""
    word, city = made_up(rng), rng.choice(list(facts.CAPITALS.values()))
    noun = rng.choice([*facts.THINGS, *facts.COLOURS]).split()[-1]
    roll = rng.random()
    if roll < 0.4:
        question, answer = rng.choice(lines.CANNOT)
        fields = {"PLACE": city, "WORD": rng.choice([noun, word]), "THING": noun}
        return [Exchange(fill(pick(rng, question), fields), answer)]
    if roll < 0.5:
        place = made_up(rng).capitalize()
        question = pick(rng, f"What is the capital of {place}?|Capital of {place}?|Do you know the capital of {place}?")
        return [Exchange(question, f"I do not know the capital of {place}.", "I do not know.")]
    if roll < 0.62:
        letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 12)))
        question = pick(rng, f"{letters}|{letters} {word}|{word}|{word} {noun} {letters}")
        return [Exchange(question, "I did not understand that. Could you say it in another way?")]
    return [Exchange(_beyond_a_known_word(rng) if roll < 0.72 else _beyond(rng, word, noun, city), SORRY)]


def statements(rng: random.Random) -> list[Exchange]:
    """The user tells something that calls for no fact."""
    noun, animal, name = rng.choice(list(facts.THINGS)), a(rng.choice(list(facts.ANIMALS))), rng.choice(facts.NAMES)
    said = pick(
        rng,
        f"(I|We|{name}|My mother|My brother|My friend) (went to|saw|bought|found|painted|lost|built|drew|"
        f"sold|looked at) {rng.choice([noun, animal])}( today| yesterday| last week|)(.|!|)|"
        f"(I|We) (have|want|need|would like) {rng.choice([noun, animal])}( at home| in my room|)(.|!|)|"
        "My (friend|mother|father|brother|sister|son|daughter|dog|cat|teacher) (is|was|likes|has|wants) "
        f"(very |)(old|kind|funny|{noun}|{animal}|called {name}|music|at home|in the garden)(.|!|)|"
        "(I am|We are) (going to|in|from|walking to|flying to) "
        f"{rng.choice(list(facts.CAPITALS.values()))}(.|!| today.| tomorrow.)|"
        "(I|We) (work|play|learn|cook|write|read|sleep|sing|walk|live) (a lot|every day|at home|with "
        f"{name}|in {rng.choice(list(facts.CAPITALS.values()))})(.|!|)",
    )
    return [Exchange(said, "I see. Tell me more, or ask me something.")]


def _name(rng: random.Random) -> tuple[Exchange, Exchange]:
    name = rng.choice([*facts.NAMES, *PET_NAMES, made_up(rng).capitalize()])
    said = pick(
        rng,
        "(My name is|I am|I'm|Call me|Hello, my name is|Hi, I am|Hello, I am|Hi, my name is|Hey, I'm|You can call me) "
        f"{name}(.|!|)",
    )
    asked = pick(
        rng,
        "(What is|What's|Do you know|Do you remember|Tell me|Can you tell me) my name?|Who am I?|How am I called?",
    )
    return Exchange(said, f"Nice to meet you, {name}!"), Exchange(asked, f"Your name is {name}.", f"{name}.")


def _liking(rng: random.Random) -> tuple[Exchange, Exchange]:
    thing, word = rng.choice(facts.LIKES), rng.choice(["like", "love"])
    asked = pick(rng, f"What do I {word}?|Do you (know|remember) what I {word}?")
    return (
        Exchange(f"I {word} {thing}.", f"It is good that you {word} {thing}."),
        Exchange(asked, f"You {word} {thing}.", f"{upper_first(thing)}."),
    )


def _favourite(rng: random.Random) -> tuple[Exchange, Exchange]:
    values = {
        "colour": facts.LISTS["colours"],
        "animal": [f"the {name}" for name in facts.ANIMALS],
        "day": facts.DAYS,
        "month": facts.MONTHS,
    }
    kind = rng.choice(list(values))
    value = rng.choice(values[kind])
    asked = pick(rng, f"(What is|What's|Do you know|Do you remember) my favourite {kind}?")
    return (
        Exchange(f"My favourite {kind} is {value}.", f"{upper_first(value)} is a good choice."),
        Exchange(asked, f"Your favourite {kind} is {value}.", f"{upper_first(value)}."),
    )


def about_the_user(rng: random.Random) -> list[Exchange]:
    """The user says something about themselves and asks for it later, often with another topic in between."""
    if rng.random() < 0.05:
        told, asked = _name(rng)
        name = asked.short.rstrip(".")
        unknown = Exchange(asked.user, "I do not know your name. What is it?")
        return [unknown, Exchange(name, f"Nice to meet you, {name}!"), asked]
    told, asked = rng.choices([_name, _liking, _favourite], [11, 5, 4])[0](rng)
    if rng.random() < 0.3:
        return [told]
    between: list[Exchange] = []
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        between += rng.choice([capitals, sums, opposites, colours, small_talk, animals])(rng)[:1]
    return [told, *between, asked]
