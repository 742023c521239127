"""What the bundled model knows: plain tables, no code. Everything in them was written for this project."""

from __future__ import annotations

from typing import NamedTuple


def pairs(text: str) -> dict[str, str]:
    """`key: value; key: value` -> dict, blanks and line breaks around the parts removed."""
    items = (item.split(":", 1) for item in text.split(";") if item.strip())
    return {" ".join(key.split()): " ".join(value.split()) for key, value in items}


def words(text: str) -> list[str]:
    """`a, b` -> list, blanks and line breaks around the parts removed."""
    return [" ".join(word.split()) for word in text.split(",") if word.strip()]


CAPITALS = pairs("""
France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; England: London; Ireland: Dublin;
Scotland: Edinburgh; Wales: Cardiff; Austria: Vienna; Switzerland: Bern; Belgium: Brussels;
the Netherlands: Amsterdam; Denmark: Copenhagen; Norway: Oslo; Sweden: Stockholm; Finland: Helsinki;
Iceland: Reykjavik; Poland: Warsaw; Hungary: Budapest; Greece: Athens; Turkey: Ankara; Russia: Moscow; Ukraine: Kyiv;
Romania: Bucharest; Bulgaria: Sofia; Croatia: Zagreb; Serbia: Belgrade; Slovakia: Bratislava; Slovenia: Ljubljana;
Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius; Japan: Tokyo; China: Beijing; India: New Delhi;
South Korea: Seoul; Thailand: Bangkok; Vietnam: Hanoi; Indonesia: Jakarta; the Philippines: Manila; Nepal: Kathmandu;
Egypt: Cairo; Kenya: Nairobi; Morocco: Rabat; Ethiopia: Addis Ababa; Ghana: Accra; Canada: Ottawa;
the United States: Washington; Mexico: Mexico City; Cuba: Havana; Brazil: Brasilia; Argentina: Buenos Aires;
Chile: Santiago; Peru: Lima; Colombia: Bogota; Uruguay: Montevideo; Ecuador: Quito; Australia: Canberra;
New Zealand: Wellington; Iran: Tehran; Iraq: Baghdad; Jamaica: Kingston; Venezuela: Caracas; Tunisia: Tunis;
Algeria: Algiers; Senegal: Dakar; Mongolia: Ulaanbaatar; Pakistan: Islamabad; Malaysia: Kuala Lumpur; Cyprus: Nicosia;
Malta: Valletta
""")

COLOURS = pairs("""
the sky: blue; grass: green; a banana: yellow; snow: white; coal: black; a tomato: red; a carrot: orange;
the sun: yellow; milk: white; blood: red; a lemon: yellow; a leaf: green; chocolate: brown; a strawberry: red;
the sea: blue; a frog: green; an elephant: grey; a flamingo: pink; a crow: black; a swan: white; a plum: purple;
a cherry: red; a pea: green; gold: yellow; silver: grey; the night: black; a fire engine: red; a polar bear: white;
wood: brown; a cucumber: green; a pumpkin: orange; sand: yellow; salt: white; a mouse: grey; a fox: red; a pig: pink;
a cloud: white; coffee: brown; lavender: purple; an orange: orange; a canary: yellow; ink: black
""")

OPPOSITES = pairs("""
hot: cold; big: small; up: down; left: right; day: night; happy: sad; fast: slow; old: young; open: closed;
black: white; light: dark; rich: poor; full: empty; hard: soft; high: low; long: short; wet: dry; strong: weak;
early: late; near: far; clean: dirty; good: bad; true: false; yes: no; in: out; on: off; loud: quiet; thick: thin;
heavy: light; wide: narrow; deep: shallow; sweet: sour; first: last; more: less; love: hate; win: lose; buy: sell;
push: pull; start: stop; begin: end; come: go; give: take; laugh: cry; remember: forget; sink: float; friend: enemy;
summer: winter; north: south; east: west; top: bottom; front: back; inside: outside; above: below; before: after;
always: never; all: none; right: wrong; easy: difficult; cheap: expensive; sharp: blunt; brave: afraid; asleep: awake;
alive: dead; tall: short; smooth: rough; safe: dangerous; kind: cruel; question: answer; arrive: leave; find: lose;
rise: fall; cold: hot; small: big; down: up; night: day; sad: happy; slow: fast; young: old; closed: open;
white: black; dark: light; poor: rich; empty: full; soft: hard; low: high; short: long; dry: wet; weak: strong;
late: early; far: near; dirty: clean; bad: good; false: true; no: yes; out: in; off: on; quiet: loud; thin: thick;
last: first; less: more; winter: summer; south: north; west: east; never: always; wrong: right; difficult: easy;
awake: asleep; end: begin; stop: start
""")


class Animal(NamedTuple):
    """What the model knows about a kind of animal. `size` is a rank: the larger number is the bigger animal."""

    kind: str
    legs: int
    sound: str  # "" where it has no word of its own
    young: str
    home: str
    food: str
    size: int


ANIMALS = {
    "dog": Animal("mammal", 4, "woof", "puppy", "a house", "meat", 40),
    "cat": Animal("mammal", 4, "meow", "kitten", "a house", "fish and meat", 25),
    "cow": Animal("mammal", 4, "moo", "calf", "a field", "grass", 75),
    "horse": Animal("mammal", 4, "neigh", "foal", "a stable", "grass and hay", 74),
    "sheep": Animal("mammal", 4, "baa", "lamb", "a field", "grass", 50),
    "goat": Animal("mammal", 4, "maa", "kid", "the hills", "grass and leaves", 49),
    "pig": Animal("mammal", 4, "oink", "piglet", "a sty", "nearly everything", 55),
    "mouse": Animal("mammal", 4, "squeak", "pup", "a hole", "seeds and cheese", 8),
    "rabbit": Animal("mammal", 4, "", "kit", "a burrow", "grass and carrots", 20),
    "fox": Animal("mammal", 4, "yap", "cub", "a den in the forest", "mice and berries", 30),
    "wolf": Animal("mammal", 4, "howl", "pup", "the forest", "meat", 45),
    "bear": Animal("mammal", 4, "growl", "cub", "the forest", "berries, fish and honey", 70),
    "lion": Animal("mammal", 4, "roar", "cub", "the savanna", "meat", 66),
    "tiger": Animal("mammal", 4, "roar", "cub", "the jungle", "meat", 67),
    "elephant": Animal("mammal", 4, "trumpet", "calf", "the savanna", "leaves and grass", 90),
    "giraffe": Animal("mammal", 4, "", "calf", "the savanna", "leaves", 85),
    "monkey": Animal("mammal", 2, "chatter", "infant", "the jungle", "fruit", 28),
    "whale": Animal("mammal", 0, "song", "calf", "the sea", "small sea animals", 99),
    "dolphin": Animal("mammal", 0, "click", "calf", "the sea", "fish", 65),
    "bat": Animal("mammal", 2, "squeak", "pup", "a cave", "insects", 9),
    "squirrel": Animal("mammal", 4, "", "kit", "a tree", "nuts", 15),
    "hedgehog": Animal("mammal", 4, "", "hoglet", "a hedge", "beetles and worms", 16),
    "camel": Animal("mammal", 4, "", "calf", "the desert", "dry grass", 76),
    "kangaroo": Animal("mammal", 2, "", "joey", "the plains of Australia", "grass", 56),
    "duck": Animal("bird", 2, "quack", "duckling", "a pond", "water plants and insects", 21),
    "hen": Animal("bird", 2, "cluck", "chick", "a farm", "grain", 18),
    "owl": Animal("bird", 2, "hoot", "owlet", "an old tree", "mice", 17),
    "crow": Animal("bird", 2, "caw", "chick", "a tall tree", "nearly everything", 14),
    "eagle": Animal("bird", 2, "screech", "eaglet", "the mountains", "fish and small animals", 29),
    "penguin": Animal("bird", 2, "", "chick", "the icy south", "fish", 31),
    "swan": Animal("bird", 2, "", "cygnet", "a lake", "water plants", 32),
    "goose": Animal("bird", 2, "honk", "gosling", "a pond", "grass", 27),
    "frog": Animal("amphibian", 4, "croak", "tadpole", "a pond", "flies", 7),
    "snake": Animal("reptile", 0, "hiss", "hatchling", "the grass", "mice and frogs", 22),
    "turtle": Animal("reptile", 4, "", "hatchling", "the water", "plants and small fish", 19),
    "crocodile": Animal("reptile", 4, "", "hatchling", "a warm river", "fish and meat", 68),
    "bee": Animal("insect", 6, "buzz", "larva", "a hive", "nectar", 3),
    "ant": Animal("insect", 6, "", "larva", "an anthill", "crumbs and seeds", 1),
    "butterfly": Animal("insect", 6, "", "caterpillar", "a meadow", "nectar", 4),
    "spider": Animal("arachnid", 8, "", "spiderling", "a web", "flies", 2),
    "shark": Animal("fish", 0, "", "pup", "the sea", "fish", 80),
    "salmon": Animal("fish", 0, "", "fry", "rivers and the sea", "small fish", 23),
}

THINGS = pairs("""
an apple: a round fruit that grows on a tree; a banana: a long yellow fruit; bread: food that is baked from flour;
cheese: food that is made from milk; a house: a building that people live in;
a car: a machine with four wheels that drives on roads;
a bicycle: a machine with two wheels that you ride with your legs;
a boat: a thing that floats and carries people over water; a train: a row of wagons that runs on rails;
a tree: a tall plant with a trunk of wood; a flower: the colourful part of a plant; a forest: a place with many trees;
a river: water that flows to the sea; a mountain: a very high hill; the sun: the star that gives us light;
the moon: the round stone ball that travels around the earth; a star: a ball of hot gas far away;
rain: water that falls from the clouds; snow: frozen water that falls in soft white flakes;
a cloud: many tiny drops of water in the sky; a book: many pages with words on them;
a school: a place where children learn; a doctor: a person who helps sick people;
a teacher: a person who helps others to learn; a baker: a person who bakes bread; a farmer: a person who grows food;
a king: a man who rules a country; a queen: a woman who rules a country; a clock: a thing that shows the time;
a chair: a thing that you sit on; a table: a flat top on legs; a bed: a thing that you sleep in;
a hammer: a tool that drives in nails; a knife: a tool that cuts; music: sound that is nice to hear;
a piano: an instrument with black and white keys; a computer: a machine that follows programs;
a language model: a program that has learned which word comes next;
a compiler: a program that turns one form of a program into another, faster one;
a token: a small piece of text, often a word or a part of one;
a server: a program that waits for questions and answers them; a prompt: the text that you give to a language model;
a kernel: a small, fast piece of machine code that does one step of the work; water: a clear liquid that we drink;
ice: frozen water; fire: hot and bright burning; winter: the cold time of the year; summer: the warm time of the year;
a friend: a person who you like and trust; an island: land with water all around it;
a desert: a dry place with a lot of sand; the sea: a great amount of salt water;
gold: a yellow metal that people value; a robot: a machine that can move and do work;
a garden: a place where flowers and vegetables grow
""")

COUNTS = pairs("""
days are in a week: 7; months are in a year: 12; hours are in a day: 24; minutes are in an hour: 60;
seconds are in a minute: 60; days are in a year: 365; weeks are in a year: 52; seasons are in a year: 4;
fingers are on one hand: 5; fingers do people have: 10; toes do people have: 10; eyes do people have: 2;
ears do people have: 2; wheels does a car have: 4; wheels does a bicycle have: 2; sides does a triangle have: 3;
sides does a square have: 4; letters are in the English alphabet: 26; continents are there: 7;
colours are in a rainbow: 7; planets go around the sun: 8; eggs are in a dozen: 12; years are in a century: 100;
centimetres are in a metre: 100; metres are in a kilometre: 1000; grams are in a kilogram: 1000;
strings does a violin have: 4; noses do people have: 1; legs do people have: 2; sides does a cube have: 6;
minutes are in half an hour: 30
""")

MISC = pairs("""
Which planet do we live on?: We live on the earth.; What do bees make?: Bees make honey.;
What do cows give us?: Cows give us milk.; Where does the sun rise?: The sun rises in the east.;
Where does the sun set?: The sun sets in the west.; What is frozen water called?: Frozen water is called ice.;
What is the biggest animal?: The biggest animal is the blue whale.;
What is the fastest animal on land?: The fastest animal on land is the cheetah.;
What is the tallest animal?: The tallest animal is the giraffe.;
What do we use to write?: We write with a pen or a pencil.;
What shines at night?: The moon and the stars shine at night.;
What do plants need?: Plants need water, light and soil.;
What is the first letter of the alphabet?: The first letter of the alphabet is A.;
What is the last letter of the alphabet?: The last letter of the alphabet is Z.;
Which season is the coldest?: Winter is the coldest season.;
Which season is the warmest?: Summer is the warmest season.;
What is the highest mountain?: The highest mountain is Mount Everest.;
What is the biggest ocean?: The biggest ocean is the Pacific.;
Can fish fly?: Most fish cannot fly, but they swim very well.;
Can penguins fly?: No. Penguins are birds that swim instead of flying.;
What is bread made of?: Bread is made of flour, water, salt and yeast.;
What is cheese made of?: Cheese is made of milk.; What is glass made of?: Glass is made of sand.;
What is wine made of?: Wine is made of grapes.; What colours make green?: Blue and yellow make green.;
What colours make orange?: Red and yellow make orange.; What colours make purple?: Red and blue make purple.;
What is the closest star?: The closest star is the sun.; Is the earth flat?: No. The earth is round, like a ball.;
Is the sun a star?: Yes. The sun is a star.; Is the moon made of cheese?: No. The moon is made of stone.
""")

LISTS: dict[str, list[str]] = {
    "animals": words("a dog, a cat, a horse, a fox, a bear, an owl, a frog, a whale, a mouse, a lion"),
    "fruits": words("apples, pears, bananas, cherries, plums, grapes, oranges, lemons, peaches"),
    "vegetables": words("carrots, peas, potatoes, onions, beans, cabbage, spinach, leeks"),
    "colours": words("red, blue, green, yellow, orange, purple, black, white, brown, pink"),
    "countries": words("France, Italy, Japan, Kenya, Brazil, Canada, India, Norway, Peru, Egypt"),
    "cities": words("Paris, Rome, Tokyo, Nairobi, Lima, Cairo, Oslo, Berlin, London, Madrid"),
    "birds": words("an owl, a crow, an eagle, a duck, a swan, a goose, a penguin, a hen"),
    "trees": words("oak, pine, birch, maple, willow, beech, apple, cherry"),
    "instruments": words("a piano, a violin, a flute, a drum, a guitar, a trumpet, a harp"),
    "tools": words("a hammer, a saw, a knife, a spade, a drill, a rake"),
    "drinks": words("water, milk, tea, coffee, juice, cocoa"),
    "planets": words("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"),
}

DAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = words("January, February, March, April, May, June, July, August, September, October, November, December")

NAMES = words("""
Ada, Alan, Alice, Amir, Anna, Ben, Bob, Carla, Carlos, Chen, Clara, Dan, David, Diego, Dora, Elena, Ella, Emil, Emma,
Eva, Felix, Fiona, Frank, Grace, Hana, Hugo, Ida, Ines, Ivan, Jack, Jane, Jim, Joe, John, Julia, Kai, Karl, Kate, Kim,
Lars, Lena, Leo, Lily, Linus, Lisa, Lucy, Luis, Maria, Mark, Marta, Max, Maya, Mia, Mike, Mina, Nadia, Nina, Noah,
Nora, Olga, Omar, Oscar, Paul, Peter, Pia, Priya, Raj, Rita, Robin, Rosa, Ruth, Sam, Sara, Simon, Sofia, Sue, Tara,
Theo, Tim, Tom, Uma, Vera, Victor, Walter, Wei, Yara, Yuki, Zoe, Mary, Anton, Bella, Cora, Dean, Edgar, Gus, Holly,
Iris, June, Kurt, Lola
""")

LIKES = words("""
music, books, cats, dogs, tea, coffee, football, chess, rain, snow, summer, winter, the sea, mountains, cooking,
painting, stories, numbers, computers, trains, birds, gardens, chocolate, cheese, bread, dancing, singing, swimming,
running, horses, trees, flowers, games, films, bicycles, boats, languages, pizza, soup, apples
""")
