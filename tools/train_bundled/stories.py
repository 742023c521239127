"""Tiny stories and poems for the bundled model: plots with a hero, a helper and a place, filled in at random."""

from __future__ import annotations

import random

from .facts import ANIMALS, words

PEOPLE = words("girl, boy, robot, king, queen, baker, farmer, knight, dragon, wizard, princess, pirate, giant")
HEROES = [*ANIMALS, *PEOPLE]
PET_NAMES = words("""
Rusty, Bella, Max, Luna, Pip, Coco, Nibbles, Tara, Bruno, Daisy, Finn, Gina, Hugo, Ivy, Jasper, Kiki, Leo, Mimi, Nemo,
Olive, Poppy, Quill, Rosie, Sunny, Toby, Willow, Zara, Barnaby, Clover, Dot, Ember, Frida, Gus, Hazel, Juno, Lulu, Milo,
Otto
""")
PLACES = [
    "in a dark forest",
    "in a small village",
    "in a big city",
    "in a green valley",
    "in an old castle",
    "in a quiet garden",
    "on a cold mountain",
    "on a sunny island",
    "in a little house by the sea",
    "in a warm desert",
]
TRAITS = ["little", "clever", "brave", "kind", "curious", "shy", "cheerful", "lazy", "proud", "gentle"]

# HERO and HELPER are kinds ("fox"), NAME is the hero's name; every plot is one lesson in four sentences
PLOTS = [
    "One day NAME found a shiny key under a stone. NAME tried every door, but no door would open. Then "
    "NAME met a HELPER, who had a "
    "little box. The key opened the box, and inside was a map to a new adventure.",
    "One night there was a great storm, and NAME lost the way home. NAME sat down under a tree and "
    "cried. A HELPER heard it and came with a "
    "lamp. Together they walked home, and NAME was never afraid of the dark again.",
    "One morning NAME wanted to cross the river, but the water was too deep. NAME asked a HELPER for "
    "help. The HELPER pulled an old log over the "
    "water, and NAME walked across. On the other side they shared a big breakfast.",
    "One winter NAME had nothing to eat. A HELPER saw this and gave NAME half of its food. In the "
    "spring NAME planted a garden and "
    "gave the first apples to the HELPER. From then on they were best friends.",
    "One day NAME wanted to reach the moon. NAME climbed the highest hill, but the moon was still far "
    "away. A HELPER laughed and pointed at a "
    "pond. There was the moon, bright in the water, and NAME was happy.",
    "One summer NAME heard a strange sound behind the hill. Everybody was afraid, but NAME went to "
    "look. It was only a HELPER who was learning to "
    "sing. NAME sang along, and soon all the others came to dance.",
    "One day NAME said: I am the fastest of all. A HELPER asked for a race. NAME ran so fast that it "
    "took the wrong road, and the HELPER "
    "won. NAME laughed and learned to listen first.",
    "One afternoon NAME found a tiny egg in the grass. NAME kept it warm for seven days. Then the egg "
    "broke, and out came a little HELPER. "
    "NAME took good care of it, and they were never alone again.",
    "One day NAME wanted to bake a cake, but there was no honey left. NAME walked to a HELPER and "
    "asked for some. The HELPER gave it gladly. "
    "In the evening they ate the cake together and looked at the stars.",
    "One day NAME told everybody that a monster was coming, but it was not true. When a real storm "
    "came, nobody believed NAME. Only a HELPER "
    "came to help. NAME said sorry and always told the truth after that.",
]
ENDINGS = ["The end.", "And they lived happily ever after."]

POEMS = [
    "The TOPIC is near, the TOPIC is far,\nas bright and as still as the evening star.\nI think of the "
    "TOPIC by night and by day,\nand then it is gone, it is gone away.",
    "O TOPIC, o TOPIC, I look at you,\nmy heart is as light as the morning dew.\nThe wind is asleep "
    "and the sky is clear,\nand all is well when the TOPIC is here.",
    "A little song, a little rhyme,\nabout the TOPIC, one more time.\nIt makes me laugh, it makes me "
    "sing,\nthe TOPIC is a lovely thing.",
]
TOPICS = [
    *words("""sea, moon, rain, snow, wind, forest, river, garden, night, morning, winter, summer, spring, autumn, rose,
    star, mountain, road, rainbow, fire, sun, sky, cloud, tree, flower"""),
    *ANIMALS,
]


def a(noun: str) -> str:
    """`noun` with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def story(rng: random.Random, hero: str, helper: str, name: str, place: str) -> str:
    """A story of about six sentences. `hero` and `helper` are kinds ("fox"), `place` reads "in a ..."."""
    start = rng.choice(["Once upon a time there was", "Once there was"])
    plot = rng.choice(PLOTS).replace("a HELPER", a(helper)).replace("A HELPER", a(helper).capitalize())
    plot = plot.replace("HELPER", helper).replace("NAME", name).replace("HERO", hero)
    return f"{start} {a(rng.choice(TRAITS) + ' ' + hero)} named {name} who lived {place}. {plot} {rng.choice(ENDINGS)}"


def poem(rng: random.Random, topic: str) -> str:
    """Four rhyming lines about `topic`."""
    return rng.choice(POEMS).replace("TOPIC", topic)
