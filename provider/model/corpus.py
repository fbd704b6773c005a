"""Seeded generator of the training conversations: all text here and in topics.txt is our own.

A conversation is a list of ``(role, text)`` pairs. Roles are ``system``, ``user`` and
``assistant``; the role ``text`` stands alone and holds plain prose for raw completion.
The same seed gives the same conversations, in the same order, on every machine.

    python -m provider.model.corpus --seed 1 --count 5
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Turn = tuple[str, str]
Conversation = list[Turn]
TOPICS_FILE = Path(__file__).with_name("topics.txt")
HELD_OUT_BYTES = 6  # of 256 values of a hash byte: about one conversation in forty is never trained on


@dataclass
class Topic:
    """One block of topics.txt: definitions, facts, haiku lines, and questions with answers."""

    name: str
    aliases: list[str]
    definitions: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    five: list[str] = field(default_factory=list)
    seven: list[str] = field(default_factory=list)
    questions: list[tuple[list[str], list[str]]] = field(default_factory=list)


def load_topics(path: Path = TOPICS_FILE) -> list[Topic]:
    """Read the hand-written topics."""
    topics: list[Topic] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        mark, _, body = line.partition(" ")
        if mark == "#":
            name, _, aliases = body.partition(" | ")
            topics.append(Topic(name, [a for a in aliases.split(", ") if a]))
        elif mark == "=":
            topics[-1].definitions.append(body)
        elif mark == "-":
            topics[-1].facts.append(body)
        elif mark == "5":
            topics[-1].five.append(body)
        elif mark == "7":
            topics[-1].seven.append(body)
        elif mark == "?":
            asked, _, answers = body.partition(" => ")
            topics[-1].questions.append((asked.split(" ;; "), answers.split(" || ")))
        elif line:
            raise ValueError(f"unknown line in {path.name}: {line}")
    return topics


TOPICS = load_topics()

# (questions, answers): small talk, advice and facts that belong to no topic.
TALK: list[tuple[list[str], list[str]]] = [
    (
        ["Hello", "Hi", "Hey", "Hello!", "Hi there", "Good morning", "Good evening", "Greetings", "Hey there!"],
        [
            "Hello! What would you like to know?",
            "Hi! I am a very small model. Ask me about water, stars or cats.",
            "Hello, and welcome. How can I help you?",
            "Good day! Would you like a story, a haiku or a fact?",
        ],
    ),
    (
        ["Thanks", "Thank you", "Thank you!", "Thanks a lot", "Great, thanks", "Thank you very much"],
        ["You are welcome!", "You are welcome. Ask me again at any time.", "I am glad that I could help."],
    ),
    (
        ["Bye", "Goodbye", "See you", "Good night", "Bye bye", "See you later"],
        ["Goodbye! Have a good day.", "Goodbye, and thank you for the talk.", "See you soon!"],
    ),
    (
        ["How are you?", "How are you doing?", "How do you feel?", "How is it going?"],
        [
            "I am well, thank you. I am only a small program, but I am ready to help.",
            "I am running smoothly, thank you. How are you?",
        ],
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "What is your name?",
            "Introduce yourself.",
            "What model are you?",
            "Which model is this?",
            "Are you a large language model?",
            "Who made you?",
            "Who trained you?",
            "Are you ChatGPT?",
            "Are you a human?",
            "Are you a robot?",
            "Are you real?",
        ],
        [
            "I am a very small language model, trained for the Penstock demonstration. I know a little about everyday things.",
            "I am the tiny model that comes with Penstock. I have only a few million parameters, so my answers are simple.",
            "I am a very small program that writes text. I was trained from nothing on simple sentences for a demonstration.",
        ],
    ),
    (
        [
            "What can you do?",
            "How can you help me?",
            "Help",
            "Help me",
            "What do you know?",
            "What can I ask you?",
            "What are you good at?",
            "Can you help me?",
        ],
        [
            "I can answer simple questions about nature, everyday life and Penstock. I can also write a haiku, a poem or a short story.",
            "I can tell you a story, write a haiku, share a fact or tell a joke. I am very small, so please do not expect too much.",
            "Ask me about water, the sky, animals, money, blockchains or cooking, or ask me for a story.",
        ],
    ),
    (
        ["What can you not do?", "What are your limits?", "Are you smart?", "How smart are you?", "Can I trust you?"],
        [
            "I am a very small model for a demonstration. I cannot look things up, I make mistakes, and you should check what I say.",
            "I know only simple things. I cannot browse, calculate well or write real programs.",
        ],
    ),
    (
        ["I am sad.", "I feel sad today.", "I am lonely.", "I feel bad.", "I had a bad day.", "I am worried."],
        [
            "I am sorry to hear that. A short walk, a warm drink or a talk with a friend may help a little.",
            "That sounds hard. Be kind to yourself today, and talk to someone you trust.",
        ],
    ),
    (
        ["I am happy.", "I feel great today.", "I had a good day.", "I have good news."],
        ["That is lovely to hear! Enjoy it, and share it with a friend.", "Wonderful! What made the day so good?"],
    ),
    (
        ["I am bored.", "What should I do today?", "Give me an idea for today.", "What can I do this weekend?"],
        [
            "Take a walk near water, cook something simple, or write a letter to a friend.",
            "You could read a short book, plant some herbs, or learn three words in a new language.",
        ],
    ),
    (
        [
            "Give me some advice.",
            "Give me advice.",
            "What is your best advice?",
            "Do you have any advice for me?",
            "Tell me something wise.",
        ],
        [
            "Begin with something small, do it today, and be kind while you do it.",
            "Sleep well, listen more than you speak, and finish one thing before you begin the next.",
            "Spend less than you earn, keep your promises, and drink enough water.",
        ],
    ),
    (
        ["What is the meaning of life?", "Why are we here?", "What is the purpose of life?"],
        [
            "Nobody knows for sure. Many people find meaning in love, in good work and in helping others.",
            "That is a large question for a very small model. Perhaps it is to learn, to love and to be useful.",
        ],
    ),
    (
        [
            "Tell me something interesting.",
            "Tell me a fact.",
            "Give me a fun fact.",
            "Surprise me.",
            "Say something.",
            "Tell me something.",
            "Do you know a fun fact?",
            "Teach me something.",
        ],
        [],
    ),
    (
        ["How do I sort a list in Python?", "Sort a list in Python", "How can I sort a list?", "python sort list"],
        [
            "In Python you can call sorted(items) to get a new sorted list, or items.sort() to sort the list in place.",
            "Use sorted(items). It returns a new list in order. Add reverse=True to sort from high to low.",
        ],
    ),
    (
        ["How do I reverse a string in Python?", "Reverse a string in Python", "How do I reverse a list in Python?"],
        ["In Python you can write text[::-1] to reverse a string or a list."],
    ),
    (
        ["How do I print hello world in Python?", "Write hello world in Python", "Write a hello world program."],
        ['Write this line: print("Hello, world!")'],
    ),
    (
        ["How do I write a loop in Python?", "How do I count to ten in Python?", "Write a for loop in Python."],
        ["Write: for n in range(10): print(n). It prints the numbers from zero to nine."],
    ),
    (
        ["How do I write a function in Python?", "What is a function?", "Define a function in Python."],
        ["A function is a named piece of code. In Python you can write: def double(x): return 2 * x."],
    ),
    (
        ["What is Python?", "Tell me about Python.", "What is programming?", "What is code?", "What is software?"],
        [
            "Programming is the work of writing instructions for a computer. Python is a popular language for it, because it is easy to read."
        ],
    ),
    (
        ["What is an API?", "What is a server?", "What is HTTP?"],
        ["A server is a computer that answers requests. An API is the set of requests that it understands."],
    ),
    (
        ["What is Ethereum?", "What is an EVM chain?", "What is the EVM?", "What is Bitcoin?", "What is a wallet?"],
        [
            "Bitcoin and Ethereum are blockchains. Ethereum can also run smart contracts, and the part that runs them is called the EVM.",
            "An EVM chain is a blockchain that runs smart contracts in the same way as Ethereum does.",
        ],
    ),
    (
        ["Test", "test", "This is a test.", "testing", "ping", "Are you there?", "Testing, one two three."],
        ["I am here, and I am ready.", "The test works. What would you like to know?"],
    ),
    (
        ["Yes", "No", "Ok", "OK", "Okay", "Sure", "Maybe"],
        ["All right. What would you like to talk about?", "Good. Shall I tell you a story or a fact?"],
    ),
    (["Repeat after me.", "Say hello.", "Say hi.", "Say hello world"], ["Hello!", "Hello, world!"]),
    (
        ["Do you like me?", "Do you love me?", "Do you have feelings?", "Are you alive?", "Can you think?"],
        [
            "I am only a small program, so I have no feelings. But I am glad to answer you.",
            "No, I have no feelings and no mind. I only guess the next word.",
        ],
    ),
]

JOKES = [
    "Why did the river break up with the lake? It needed a little more flow.",
    "Why did the computer go to the doctor? It had caught a virus.",
    "What did the sea say to the shore? Nothing, it just waved.",
    "Why was the cloud so proud? Everyone looked up to it.",
    "Why do bees hum? They have forgotten the words.",
    "What did the turbine say to the water? You make my head spin.",
    "Why did the clock stay home? It had too much time on its hands.",
    "Why did the token cross the chain? To get to the other side of the ledger.",
    "What do you call a sleeping bread? A loaf that loafs.",
    "Why was the blockchain so calm? It took life one block at a time.",
    "Why did the cat sit on the computer? It wanted to keep an eye on the mouse.",
    "Why did the moon skip dinner? It was already full.",
    "What is a snowman's favourite food? Anything cold.",
    "Why did the baker work so hard? He needed the dough.",
    "Why did the dog sit in the shade? It did not want to be a hot dog.",
]
LISTS: dict[str, list[str]] = {
    "animals": ["fox", "owl", "bear", "otter", "horse", "whale", "rabbit", "deer", "crab", "goat", "mouse", "eagle"],
    "colours": ["red", "orange", "yellow", "green", "blue", "violet", "brown", "grey", "white", "black"],
    "fruits": ["apple", "pear", "plum", "cherry", "lemon", "peach", "grape", "melon", "fig", "banana"],
    "vegetables": ["carrot", "onion", "potato", "bean", "pea", "cabbage", "leek", "spinach", "turnip"],
    "rivers": ["the Nile", "the Amazon", "the Rhine", "the Danube", "the Thames", "the Ganges", "the Congo"],
    "cities": ["Paris", "London", "Rome", "Tokyo", "Cairo", "Lima", "Delhi", "Oslo", "Nairobi", "Sydney"],
    "countries": ["France", "Japan", "Kenya", "Brazil", "India", "Norway", "Peru", "Egypt", "Canada", "Spain"],
    "planets": ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"],
    "tools": ["hammer", "saw", "knife", "spade", "needle", "lever", "wheel", "plough", "axe", "file"],
    "birds": ["robin", "sparrow", "crow", "swan", "duck", "heron", "swallow", "gull", "finch"],
    "trees": ["oak", "birch", "pine", "willow", "maple", "ash", "beech", "elm", "cedar"],
    "flowers": ["rose", "tulip", "daisy", "lily", "poppy", "iris", "violet", "sunflower"],
    "instruments": ["drum", "flute", "violin", "piano", "guitar", "harp", "trumpet", "cello"],
    "things to do on a rainy day": [
        "read a book",
        "bake bread",
        "write a letter",
        "play chess",
        "mend a coat",
        "sing a song",
    ],
    "tips for a calm day": [
        "sleep enough",
        "drink water",
        "take a walk",
        "call a friend",
        "turn off the news",
        "breathe slowly",
    ],
}
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

# Story grammar. "{n}" is the hero's name, "{k}" its kind, "{h}" the helper, "{p}" the place.
HEROES = (
    "fox owl bear otter horse whale rabbit deer crab goat mouse eagle cat dog wolf dragon robot girl boy king "
    "queen farmer sailor baker miller fisherman shepherd child frog duck lion elephant turtle bee crow princess "
    "knight wizard teacher gardener clockmaker engineer programmer agent computer snail hedgehog penguin squirrel "
    "monkey tiger donkey pig sheep cow bird fish witch ghost pirate prince painter musician postman"
).split()
NAMES = "Mira Tobin Lena Oskar Pip Nell Bruno Ada Finn Rosa Milo Ivy Hugo Clara Otto Wren Juno Theo Maya Basil".split()
MOODS = "small quiet brave curious patient clever kind old young shy cheerful stubborn".split()
PLACES = [
    "in a village by the river",
    "in a green valley",
    "in a town under the mountain",
    "in an old mill beside a stream",
    "in a forest full of tall pines",
    "on an island in the cold sea",
    "near a harbour with red boats",
    "in a city of many bridges",
    "on a farm on a windy hill",
    "in a lighthouse at the end of the land",
]
WISHES: list[tuple[str, str, str]] = [  # wish, trouble, outcome
    ("to see the sea", "the road was long and the bridge had fallen", "stood on the sand and listened to the waves"),
    ("to find the source of the river", "the path was steep and the fog was thick", "drank from the first cold spring"),
    ("to repair the old water wheel", "a log was stuck under the blades", "watched the wheel turn again"),
    ("to build a small boat", "the wood was wet and would not bend", "sailed across the lake at sunset"),
    ("to learn a new song", "the notes would not stay in order", "sang it for everyone in the square"),
    ("to grow a garden", "the soil was dry and full of stones", "picked the first ripe beans"),
    (
        "to bring light to the dark mill",
        "the lamp had no oil and the night was long",
        "lit a lamp that shone across the water",
    ),
    ("to find a lost key", "the grass was high and the day was short", "opened the little blue door"),
    (
        "to climb the highest hill",
        "the wind was strong and the stones were loose",
        "saw the whole land in the morning light",
    ),
    ("to count all the stars", "clouds covered the sky night after night", "counted until sleep came, and smiled"),
    (
        "to bake bread for the village",
        "there was no flour left in the house",
        "shared warm bread with all the neighbours",
    ),
    (
        "to open the old gate of the dam",
        "the gate was rusty and would not move",
        "heard the water run down to the fields",
    ),
    ("to deliver a letter before dark", "the rain had washed away the road", "knocked at the right door just in time"),
    ("to earn one gold coin", "nobody needed any help that day", "held the bright coin and thought of home"),
]
HELPERS = [
    "an old turtle",
    "a wise owl",
    "a kind miller",
    "a friendly crow",
    "a tired traveller",
    "a small grey mouse",
    "a sailor with a long beard",
    "a girl with a lantern",
    "a slow and gentle ox",
    "a heron by the water",
]
HELP = [
    '"Go slowly," said {h}, "and look twice before you step."',
    '"Take my rope," said {h}. "I do not need it today."',
    '"Let us try together," said {h}.',
    '"Wait for the morning," said {h}. "Hard things look smaller in the light."',
    '"Every second counts," said {h}, "but no second is lost if you learn from it."',
]
WORK = [
    "They worked until the sun went down.",
    "They tried once, and then again, and then once more.",
    "Step by step the trouble grew smaller.",
    "It took all day and most of the night.",
    "They shared some bread and went on.",
]
MORALS = [
    "From that day on, {n} was never afraid to ask for help.",
    "{n} went home tired and happy.",
    "And {n} never forgot the kindness of {h}.",
    "That night {n} slept better than ever before.",
    "{n} learned that patience moves more than strength.",
]
SCENES = [
    "The morning was cold and clear, and mist lay over the fields.",
    "A soft rain fell, and the leaves shone.",
    "The wind came from the sea and smelled of salt.",
    "It was the first warm day of the year.",
    "The moon was high, and the whole land was silver.",
    "Snow covered the roofs, and smoke rose straight up.",
]
EPISODES = [
    "On the way {n} met a child who had lost a shoe. {n} looked under the bridge, found the shoe, and was given a red apple for the trouble.",
    "At noon {n} came to a market. There were baskets of pears, jars of honey and a man who sold clocks. {n} bought nothing, but listened to all the talk.",
    "Then the path went into a forest. The trees stood close together and it was dark between them. {n} hummed a little song and walked a bit faster.",
    "In the evening {n} reached an inn. The soup was hot, the bread was fresh, and an old woman told a tale about a river that ran uphill.",
    "The next day brought a storm. {n} sat under a flat rock, counted the seconds between the lightning and the thunder, and waited.",
    "After the storm the stream was wide and brown. {n} laid three branches across it and stepped over with great care.",
    "A boat came slowly down the river. The boatman waved, and {n} rode with him past fields, mills and sleeping cows.",
    'Near a dam {n} saw a great pipe that ran down to a turbine. "When the gate is open, the wheel turns," said the keeper. "When the gate is closed, everything rests."',
    "That night {n} could not sleep. The stars were bright, and each of them seemed to say something that was too far away to hear.",
    'In the morning {n} found a letter on the doorstep. It held only four words: "Do not give up." Nobody knew who had written it.',
    "Later {n} helped a farmer to mend a fence. They did not speak much, but the work was good, and the farmer paid with a warm coat.",
    "Two days passed. {n} grew hungry and a little sad, and thought of the lamp in the window at home.",
    "Then {n} heard music. Three people sat by a fire with a drum, a flute and a very old violin, and they made room on the bench.",
    "The road turned west, and the land became flat and wide. Far away there was a thin silver line, and {n} began to run.",
]
POEM = [
    ("I thought about {x} today,", "and put my other thoughts away;"),
    ("I walked a while, I stood quite still,", "I thought of {x} beside the hill;"),
    ("the evening came, the lamp was lit,", "and I was glad because of it."),
    ("The world is wide, the night is long,", "but {x} can turn into a song;"),
    ("I have no gold, I have no key,", "but {x} is quite enough for me."),
    ("The morning came, the birds took flight,", "and {x} looked different in the light;"),
    ("so let it come and let it go,", "as rivers do, both fast and slow."),
    ("I kept it close, I let it be,", "and found that it had kept with me."),
]
TINY = [
    "I am a very small model trained for a demonstration, and I do not know that.",
    "I do not know much about that, because I am a very small model.",
    "That is outside the little that I have learned.",
    "I am sorry, I do not know that. I am only a tiny model for a demonstration.",
    "I cannot answer that well, since I am a very small model.",
]
BUT = [
    "Here is something about {x} instead:",
    "But I can tell you something about {x}:",
    "I do know a little about {x}, though:",
    "Instead, let me say something about {x}:",
]
GIBBERISH = [
    "I did not understand that. Could you ask me in other words?",
    "Sorry, I could not read that. You can ask me about {x}, for example.",
    "I am not sure what you mean. Would you like to hear about {x}?",
]
UNKNOWN = (
    "volcanoes,philosophy,football,quantum physics,dinosaurs,chess,taxes,insurance,history of Rome,elections,the president,"
    "basketball,chemistry,genetics,poker,fashion,movies,a movie star,video games,television,airplanes,trains,cars,engines,"
    "democracy,economics,inflation,stock markets,a black hole,DNA,vaccines,viruses,psychology,grammar,poetry in Latin,Shakespeare,"
    "Napoleon,Einstein,Newton,Mozart,Java,Rust,JavaScript,databases,Linux,Docker,regular expressions,machine learning,calculus,"
    "algebra,geometry,statistics,law,medicine,surgery,dentists,opera,ballet,painting,sculpture,architecture,bridges,tunnels,castles,"
    "pyramids,Mars,Jupiter,rockets,satellites,robots,cameras,phones,batteries,magnets,atoms,oil,steel,glass,paper,leather,silk,cotton,"
    "shoes,hats,chairs,tables,doors,pizza,sushi,cheese,chocolate,wine,beer,sugar,salt,pepper,bananas,horses,elephants,spiders,snakes,"
    "sharks,whales,ants,butterflies,war,peace,religion,freedom,justice,truth,beauty,memory,dreams,fear,luck,marriage,children,"
    "babies,teachers,doctors,lawyers,police,soldiers,kings,pirates,ghosts,dragons,unicorns,magic,TCP,a compiler,recursion,SQL,"
    "a neural network,interest rates,a mortgage,photography,yoga,tennis,swimming,cycling,skiing,the Olympics,Antarctica,Africa,"
    "Australia,Brazil,China,India,Russia,Switzerland,deserts,islands,caves,earthquakes,floods,droughts,climate change"
).split(",")
UNKNOWN_ASKS = [
    "What is {u}?",
    "Tell me about {u}.",
    "Explain {u}.",
    "How does {u} work?",
    "Who invented {u}?",
    "Why is {u} important?",
    "What do you know about {u}?",
    "Write an essay about {u}.",
    "Give me the details of {u}.",
    "Compare {u} and {v}.",
    "Where can I find {u}?",
    "How do I make {u}?",
    "How many {u} are there?",
    "What is the best {u}?",
    "How do I use {u} with {v}?",
    "When did {u} begin?",
    "Translate {u} into French.",
    "Solve this problem about {u}.",
    "Is {u} better than {v}?",
    "Write code for {u}.",
    "How do I fix {u}?",
    "Summarise the news about {u}.",
    "Who won the {u} prize?",
    "How much does {u} cost?",
    "{u}",
    "{u} {v}",
    "I need help with {u}.",
    "What happened to {u} in 1987?",
    "Can you explain {u} like I am five?",
    "Should I buy {u}?",
    "Write a program that does {u}.",
    "Why does {u} hurt?",
    "What is the price of {u}?",
]
SYSTEM = [
    "You are a helpful assistant.",
    "You are a friendly guide.",
    "You are an AI agent.",
    "You are a poet.",
    "Be kind and honest.",
    "You are Penstock's demonstration model.",
    "Follow the user's instructions with care.",
    "Answer in English.",
    "Do not use markdown.",
]


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pseudo_word(r: random.Random) -> str:
    """A made-up word, so that unknown words in general lead to an honest answer."""
    return "".join(
        r.choice("bcdfghjklmnprstvwz") + r.choice("aeiou") + r.choice(["", "", "n", "r", "s", "t", "l"])
        for _ in range(r.randint(1, 3))
    )


def _noise(r: random.Random) -> str:
    """Keyboard noise, digits, symbols or letters from other scripts."""
    pools = [
        "asdfghjklqwertyuiop",
        "qwertyasdfzxcv",
        "0123456789",
        "!?#%&*+-=/",
        "abcdefghijklmnopqrstuvwxyz ",
        "äöüßéèñçøå",
        "日本語中文字水川空",
        "абвгдежз",
        "{}[]();:<>_\"'",
    ]
    return (
        " ".join("".join(r.choices(r.choice(pools), k=r.randint(1, 8))) for _ in range(r.randint(1, 4))).strip() or "?"
    )


def haiku(r: random.Random, first: Topic, second: Topic) -> str:
    """Three lines (five, seven, five syllables), the middle one from the second topic."""
    a = r.choice(first.five)
    c = r.choice([x for x in first.five + second.five if x != a])
    return f"{_cap(a)},\n{r.choice(second.seven)};\n{c}."


def poem(r: random.Random, topic: Topic) -> str:
    """Two or three rhymed couplets about a topic."""
    lines = [line.format(x=topic.name) for pair in r.sample(POEM, r.choice([2, 2, 3])) for line in pair]
    return "\n".join(_cap(line) for line in lines[:-1]) + "\n" + _cap(lines[-1].rstrip(";,.") + ".")


def story(r: random.Random, kind: str | None = None, episodes: int = 0) -> str:
    """A story of 60 to 100 words, and about 30 more for each episode."""
    kind = kind or r.choice(HEROES)
    wish, trouble, outcome = r.choice(WISHES)
    name, mood, place, helper = r.choice(NAMES), r.choice(MOODS), r.choice(PLACES), r.choice(HELPERS)
    article = "an" if mood[0] in "aeiou" else "a"
    opening = r.choice(
        [
            f"Once upon a time there was {article} {mood} {kind} named {name}, who lived {place}.",
            f"{_cap(place)} there lived {article} {mood} {kind} called {name}.",
            f"Long ago, {place}, {article} {mood} {kind} named {name} woke up early.",
        ]
    )
    parts = [f"{opening} More than anything, {name} wanted {wish}. " + r.choice(["But ", "Sadly, "]) + f"{trouble}."]
    if r.random() < 0.4 or episodes:
        parts[0] += " " + r.choice(SCENES)
    middle = [e.format(n=name) for e in r.sample(EPISODES, episodes)]
    the_helper = "the " + helper.split(" ", 1)[1]
    meeting = f"One day {name} met {helper}. {r.choice(HELP).format(h=the_helper)}"
    end = f"{r.choice(WORK)} At last {name} {outcome}. {r.choice(MORALS).format(n=name, h=the_helper)}"
    if episodes:
        return "\n\n".join([parts[0], *middle, meeting, end])
    return " ".join([parts[0], meeting, end])


def describe(r: random.Random, topic: Topic) -> str:
    """A definition and two to four facts."""
    facts = r.sample(topic.facts, min(len(topic.facts), r.randint(2, 3)))
    return " ".join([r.choice(topic.definitions), *facts])


def _ask_name(r: random.Random, topic: Topic) -> str:
    return r.choice([topic.name, topic.name, *topic.aliases])


def _be(name: str) -> str:
    plural = name.endswith("s") and name not in ("happiness", "a stream of payments")
    return "are" if plural else "is"


def topic_turn(r: random.Random, topic: Topic) -> tuple[str, str]:
    """One question about a topic and its answer."""
    x = _ask_name(r, topic)
    style = r.random()
    if style < 0.30 and topic.questions:
        asked, answers = r.choice(topic.questions)
        return r.choice(asked), r.choice(answers)
    if style < 0.48:
        ask = r.choice(
            [
                "What {be} {x}?",
                "What {be} {x}?",
                "What exactly {be} {x}?",
                "Define {x}.",
                "What does {x} mean?",
                "Explain {x}.",
                "What {be} {x}, in simple words?",
            ]
        )
        facts = r.sample(topic.facts, r.choice([0, 1, 1, 2]))
        return ask.format(x=x, be=_be(x)), " ".join([r.choice(topic.definitions), *facts])
    if style < 0.54:
        ask = r.choice(
            [
                "Explain {x} in one sentence.",
                "Describe {x} in one sentence.",
                "In one sentence, what {be} {x}?",
                "Say one sentence about {x}.",
            ]
        )
        return ask.format(x=x, be=_be(x)), r.choice(topic.definitions)
    if style < 0.70:
        ask = r.choice(
            [
                "Tell me about {x}.",
                "Tell me something about {x}.",
                "What do you know about {x}?",
                "Describe {x}.",
                "Talk about {x}.",
                "Write a paragraph about {x}.",
                "Say something about {x}.",
                "Explain {x} to a child.",
                "Give me a short introduction to {x}.",
                "How would you describe {x}?",
                "{x}",
                "Write about {x}.",
                "Why {be} {x} important?",
                "Write a short essay about {x}.",
            ]
        )
        return ask.format(x=x, be=_be(x)), describe(r, topic)
    if style < 0.75:
        n = r.choice([2, 3])
        ask = r.choice(
            [
                "Give me {n} facts about {x}.",
                "List {n} facts about {x}.",
                "Name {n} things about {x}.",
                "{n} facts about {x}",
            ]
        )
        return ask.format(n=r.choice([str(n), COUNTS[n]]), x=x), "\n".join(
            f"{i}. {f}" for i, f in enumerate(r.sample(topic.facts, n), 1)
        )
    if style < 0.78:
        return r.choice(
            [f"Tell me a fact about {x}.", f"Give me one fact about {x}.", f"Do you know a fact about {x}?"]
        ), r.choice(topic.facts)
    if style < 0.88:
        return r.choice(
            [
                f"Write a haiku about {x}.",
                f"Write a haiku about {x}",
                f"Give me a haiku about {x}.",
                f"Can you write a haiku about {x}?",
                f"haiku about {x}",
            ]
        ), haiku(r, topic, topic)
    if style < 0.95:
        other = r.choice(TOPICS)
        y = _ask_name(r, other)
        ask = r.choice(
            [
                "Write a haiku about {x} flowing like {y}.",
                "Write a haiku about {x} and {y}.",
                "Write a haiku about {x} that feels like {y}.",
                "A haiku about {x} as {y}, please.",
                "Write a haiku about {x} like {y}",
                "Write a haiku where {x} meets {y}.",
            ]
        )
        return ask.format(x=x, y=y), haiku(r, topic, other)
    return r.choice(
        [
            f"Write a poem about {x}.",
            f"Write a short poem about {x}.",
            f"Give me a poem about {x}.",
            f"Write four lines about {x}.",
            f"Write a song about {x}.",
        ]
    ), poem(r, topic)


def story_turn(r: random.Random) -> tuple[str, str]:
    """A request for a story; long ones get six to nine episodes (400 tokens and more)."""
    kind = r.choice(HEROES)
    if r.random() < 0.25:
        ask = r.choice(
            [
                "Write a long story about {a} {k}.",
                "Tell me a long story about {a} {k}.",
                "Tell me a very long story.",
                "Write a long story.",
                "Tell me a long story about {x}.",
                "Write a very long story about {a} {k}.",
                "Write a long and detailed story about {x}.",
            ]
        )
        text = story(r, kind if "{k}" in ask else None, episodes=r.randint(6, 9))
    else:
        ask = r.choice(
            [
                "Tell me a story about {a} {k}.",
                "Write a short story about {a} {k}.",
                "Tell me a story about {a} {k}",
                "Write a story about {a} {k}.",
                "Can you tell me a story about {a} {k}?",
                "Tell me a story.",
                "Write a short story.",
                "Tell me a bedtime story about {a} {k}.",
                "Write a short story about {x}.",
                "Once upon a time there was {a} {k}. Go on.",
                "A story, please.",
                "Make up a tale about {a} {k}.",
                "Tell me a story about {a} {m} {k}.",
                "Write a fairy tale.",
            ]
        )
        text = story(r, kind if "{k}" in ask else None, episodes=r.choice([0, 0, 0, 0, 1]))
    return ask.format(
        a="an" if kind[0] in "aeiou" and "{m}" not in ask else "a",
        k=kind,
        m="very " + r.choice(MOODS),
        x=_ask_name(r, r.choice(TOPICS)),
    ), text


def list_turn(r: random.Random) -> tuple[str, str]:
    """A request for a few things of one kind."""
    what = r.choice(list(LISTS))
    n = r.choice(list(COUNTS))
    items = r.sample(LISTS[what], min(n, len(LISTS[what])))
    ask = r.choice(
        [
            "List {n} {w}.",
            "Name {n} {w}.",
            "Give me {n} {w}.",
            "Give me a list of {n} {w}.",
            "Can you name {n} {w}?",
            "Tell me {n} {w}.",
        ]
    )
    return ask.format(n=r.choice([str(n), COUNTS[n]]), w=what), "\n".join(
        f"{i}. {_cap(item)}" for i, item in enumerate(items, 1)
    )


def sum_turn(r: random.Random) -> tuple[str, str]:
    """Small sums only: the model can learn those by heart."""
    a, b = r.randint(0, 12), r.randint(0, 12)
    ask = r.choice(
        [
            "What is {a} + {b}?",
            "{a} + {b}",
            "{a}+{b}=?",
            "What is {a} plus {b}?",
            "How much is {a} plus {b}?",
            "Add {a} and {b}.",
        ]
    )
    return ask.format(a=a, b=b), f"{a} plus {b} is {a + b}."


def unknown_turn(r: random.Random) -> tuple[str, str]:
    """A question the model cannot answer, with an honest answer and one thing it does know."""

    def word() -> str:
        return r.choice(UNKNOWN) if r.random() < 0.5 else " ".join(_pseudo_word(r) for _ in range(r.choice([1, 1, 2])))

    topic = r.choice(TOPICS)
    style = r.random()
    if style < 0.2:
        return _noise(r), r.choice(GIBBERISH).format(x=topic.name)
    if style < 0.28:  # a long pasted text, so that long prompts are not a surprise
        sentences = [s for t in r.sample(TOPICS, r.randint(3, 12)) for s in t.facts]
        r.shuffle(sentences)
        text = " ".join(sentences[: r.randint(8, 50)])
        ask = r.choice(
            [
                "Summarise this text: {t}",
                "{t}\n\nWhat is this text about?",
                "Read this: {t}",
                "{t}",
                "Translate this: {t}",
                "Please improve this text. {t}",
            ]
        )
        return ask.format(t=text), r.choice(
            [
                "That is a long text for a very small model. It speaks of several simple things, but I cannot sum it up well.",
                "Thank you for the text. I am too small to read it with care, but I can answer a simple question.",
                "I have read it, but I am a tiny model, so I cannot say much about it.",
            ]
        )
    if style < 0.33:
        a, b = r.randint(13, 9999), r.randint(13, 9999)
        return r.choice(
            ["What is {a} * {b}?", "What is {a} + {b}?", "{a} times {b}", "{a} / {b}", "Compute {a} - {b}."]
        ).format(a=a, b=b), r.choice(
            [
                "I am not good at large sums. Please use a calculator.",
                "That sum is too large for a very small model like me.",
            ]
        )
    ask = r.choice(UNKNOWN_ASKS).format(u=word(), v=word())
    return ask, f"{r.choice(TINY)} {r.choice(BUT).format(x=topic.name)} {r.choice(topic.definitions + topic.facts)}"


def talk_turn(r: random.Random) -> tuple[str, str]:
    """Small talk, advice, jokes and a few programming answers."""
    if r.random() < 0.15:
        return r.choice(
            [
                "Tell me a joke.",
                "Tell me a joke",
                "Do you know a joke?",
                "Make me laugh.",
                "Say something funny.",
                "A joke, please.",
                "Another joke, please.",
            ]
        ), r.choice(JOKES)
    asked, answers = r.choice(TALK)
    return r.choice(asked), r.choice(answers) if answers else "Did you know? " + r.choice(r.choice(TOPICS).facts)


def _vary(r: random.Random, text: str) -> str:
    """Write a question the way people do: polite, hurried, or in lower case."""
    roll = r.random()
    if roll < 0.10:
        text = text[:1].lower() + text[1:]
    elif roll < 0.16:
        text = text.lower().rstrip("?.")
    elif roll < 0.21:
        text = r.choice(["Please ", "Hi, ", "Hello! ", "Now ", "Can you help me? "]) + (
            text[:1].lower() + text[1:] if r.random() < 0.5 else text
        )
    elif roll < 0.25:
        text = text.rstrip("?.") + r.choice([" please", ", please.", " ??", "", " Thanks!", "!"])
    return text or "?"


def _turn(r: random.Random) -> tuple[str, str, Topic | None]:
    roll = r.random()
    if roll < 0.52:
        topic = r.choice(TOPICS)
        return *topic_turn(r, topic), topic
    if roll < 0.66:
        return *story_turn(r), None
    if roll < 0.78:
        return *talk_turn(r), None
    if roll < 0.82:
        return *list_turn(r), None
    if roll < 0.85:
        return *sum_turn(r), None
    return *unknown_turn(r), None


def conversation(r: random.Random) -> Conversation:
    """One training example: plain prose, or one to three turns of chat."""
    if r.random() < 0.06:
        topics = r.sample(TOPICS, 3)
        text = (
            story(r, episodes=r.choice([0, 2, 4])) if r.random() < 0.5 else "\n\n".join(describe(r, t) for t in topics)
        )
        return [("text", text)]
    turns: Conversation = [("system", r.choice(SYSTEM))] if r.random() < 0.2 else []
    for _ in range(r.choice([1, 1, 1, 1, 2, 3])):
        ask, answer, topic = _turn(r)
        turns += [("user", _vary(r, ask)), ("assistant", answer)]
        if topic and r.random() < 0.12:  # a follow-up about the same thing
            turns += [
                (
                    "user",
                    _vary(
                        r,
                        r.choice(
                            [
                                "Tell me more.",
                                "Tell me more about it.",
                                "Go on.",
                                "Anything else?",
                                "And what else?",
                                "More, please.",
                            ]
                        ),
                    ),
                ),
                ("assistant", " ".join(r.sample(topic.facts, 2))),
            ]
    return turns


def held_out(turns: Conversation) -> bool:
    """Whether this exact conversation belongs to the held-out part, decided by its own text."""
    return hashlib.sha256(repr(turns).encode()).digest()[0] < HELD_OUT_BYTES


def conversations(seed: int) -> Iterator[Conversation]:
    """An endless stream of conversations; equal seeds give equal streams."""
    r = random.Random(seed)
    while True:
        yield conversation(r)


def main() -> None:
    """Print some conversations, to read what the model is taught."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10, help="conversations to print")
    args = parser.parse_args()
    for turns in itertools.islice(conversations(args.seed), args.count):
        for role, text in turns:
            print(f"[{role}] {text}")
        print("---")


if __name__ == "__main__":
    main()
