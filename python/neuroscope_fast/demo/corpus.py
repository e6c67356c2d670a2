"""The synthetic text that the demo model is trained on.

Templates over :mod:`.concepts` and :mod:`.lexicon`, drawn from a seeded generator: short explanations of
programming ideas, conversations, stories, facts, sequences and lines of Python. Every family is there
because it gives a circuit something to do: gifts need indirect object identification (Wang et al. 2022,
"Interpretability in the Wild"), belongings need a colour to be bound to its owner, facts need recall,
sequences need a successor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import lexicon
from .concepts import CONCEPTS, Concept
from .lexicon import BOYS, COLOURS, GIRLS, OBJECTS, PLACES

EOS = "<|eos|>"  # ends every passage, and every turn of the assistant inside a conversation

MADE_UP_NAMES = 0.15  # share of the passages about people in which one name is made up

GREETING = "Hello, I am a small model. I can explain simple ideas, tell short stories and answer questions."
QUESTIONS = (
    "What is {}?",
    "What is {}?",
    "Explain {}.",
    "Tell me about {}.",
    "What does {} mean?",
    "Can you explain {}?",
)


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _names(rng: random.Random, count: int) -> list[str]:
    """Distinct names. Some are made up, and so of several tokens: names are to be copied, not only known."""
    names = rng.sample(GIRLS + BOYS, count)
    if rng.random() < MADE_UP_NAMES:
        syllables = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(2))
        names[rng.randrange(count)] = _title(syllables + rng.choice(("", "", "k", "l", "n", "r", "s")))
    return names


def _pronoun(name: str) -> str:
    return "She" if name in GIRLS or name.endswith(("a", "i")) else "He"


def _explain(rng: random.Random, concept: Concept) -> str:
    """Definition and example always open an explanation, so that greedy decoding has one clear way to go."""
    rest = [
        f"It is like {concept.likeness}.",
        f"Programmers use it to {concept.purpose}.",
        f"{concept.caution}.",
    ]
    kept = rest if rng.random() < 0.7 else rng.sample(rest, 2)
    return " ".join([f"{concept.title} is {concept.definition}.", f"For instance, {concept.example}.", *kept])


def explanation(rng: random.Random) -> str:
    """One programming idea explained."""
    return _explain(rng, rng.choice(CONCEPTS))


def _turns(*turns: tuple[str, str]) -> str:
    return f"{EOS}\n".join(f"User: {question}\nAssistant: {answer}" for question, answer in turns)


def conversation(rng: random.Random) -> str:
    """A user asks about an idea, and in half of the conversations asks on."""
    concept = rng.choice(CONCEPTS)
    turns = [(rng.choice(QUESTIONS).format(concept.subject), _explain(rng, concept))]
    if rng.random() < 0.5:
        turns.append(
            rng.choice(
                (
                    ("Why do people use it?", f"Programmers use it to {concept.purpose}. {concept.caution}."),
                    (
                        "Give me an example.",
                        f"For instance, {concept.example}. It is like {concept.likeness}.",
                    ),
                    ("What is it like?", f"It is like {concept.likeness}. {concept.caution}."),
                    ("Thank you.", "You are welcome. You can ask me about another idea."),
                )
            )
        )
    return _turns(*turns)


def short_answer(rng: random.Random) -> str:
    """A user asks for a fact."""
    country, capital, language, continent = rng.choice(lexicon.CAPITALS)
    thing, colour = rng.choice(lexicon.COLOURED_THINGS)
    word, opposite = rng.choice(lexicon.OPPOSITES)
    place = rng.randrange(7)
    day, next_day = lexicon.DAYS[place], lexicon.DAYS[(place + 1) % 7]
    number = rng.randrange(12)
    return _turns(
        rng.choice(
            (
                (
                    f"What is the capital of {country}?",
                    f"The capital of {country} is {capital}. {capital} is a city in {continent}. "
                    f"People in {country} speak {language}.",
                ),
                (
                    f"Where is {capital}?",
                    f"{capital} is the capital of {country}. {country} is in {continent}.",
                ),
                (f"What do people in {country} speak?", f"People in {country} speak {language}."),
                (
                    f"What colour is {thing}?",
                    f"{_title(thing)} is {colour}. The colour of {thing} is {colour}.",
                ),
                (f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."),
                (f"What comes after {day}?", f"The day after {day} is {next_day}."),
                (
                    f"What comes after {lexicon.NUMBERS[number]}?",
                    f"The number after {lexicon.NUMBERS[number]} is {lexicon.NUMBERS[number + 1]}.",
                ),
                (
                    rng.choice(("Hello.", "Who are you?", "What can you do?")),
                    GREETING,
                ),
            )
        )
    )


def gift(rng: random.Random) -> str:
    """Two people, one gives something to the other: who gets it is known from the names alone."""
    first, second = pair = _names(rng, 2)
    giver, receiver = rng.sample(pair, 2)
    place, goal = rng.sample(PLACES, 2)
    thing = rng.choice(OBJECTS)
    opening = rng.choice(
        (
            f"When {first} and {second} went to the {place},",
            f"After {first} and {second} went to the {place},",
            f"While {first} and {second} were at the {place},",
            f"Then, {first} and {second} went to the {place}, and",
        )
    )
    verb = rng.choice(("gave", "gave", "handed", "showed"))
    close = [
        f"{receiver} thanked {giver} and put the {thing} in a bag.",
        f"{_pronoun(receiver)} was happy and said thank you to {giver}.",
        f"Then {first} and {second} walked to the {goal}.",
        f"At the {goal}, {giver} asked {receiver} for the {thing}.",
    ]
    return " ".join([f"{opening} {giver} {verb} a {thing} to {receiver}.", rng.choice(close[:2]), *close[2:]])


def story(rng: random.Random) -> str:
    """Something is lost and found: its colour and kind have to be remembered."""
    name, friend = _names(rng, 2)
    colour, thing, animal = rng.choice(COLOURS), rng.choice(OBJECTS), rng.choice(lexicon.ANIMALS)
    home, place = rng.sample(PLACES, 2)
    return " ".join(
        (
            f"Once there was a {rng.choice(lexicon.MOODS)} {animal} named {name}.",
            f"{name} lived near the {home} and had a {colour} {thing}.",
            f"One day, {name} lost the {thing}.",
            f"{_pronoun(name)} went to the {place}, but the {thing} was not there.",
            f'Then {friend} came and said, "Is this your {colour} {thing}?"',
            f"{name} was happy and thanked {friend}.",
        )
    )


def belongings(rng: random.Random) -> str:
    """Who owns what, in which colour, asked in another order than it was told."""
    owners = _names(rng, rng.choice((2, 3)))
    things, colours = rng.sample(OBJECTS, len(owners)), rng.sample(COLOURS, len(owners))
    told = list(zip(owners, things, colours, strict=True))
    text = [f"{owner} has a {colour} {thing}." for owner, thing, colour in told]
    rng.shuffle(told)
    return " ".join(text + [f"The {thing} of {owner} is {colour}." for owner, thing, colour in told])


def facts(rng: random.Random) -> str:
    """Capitals, colours of things, or opposites, a few in a row."""
    kind = rng.random()
    if kind < 0.5:
        country, capital, language, continent = rng.choice(lexicon.CAPITALS)
        opening = rng.choice(
            (
                f"The capital of {country} is {capital}",
                f"{capital} is the capital of {country}",
            )
        )
        text = [f"{opening}. {capital} is a city in {continent}. People in {country} speak {language}."]
        others = rng.sample([entry for entry in lexicon.CAPITALS if entry[0] != country], 2)
        return " ".join(text + [f"The capital of {entry[0]} is {entry[1]}." for entry in others])
    if kind < 0.75:
        pairs = rng.sample(lexicon.COLOURED_THINGS, 4)
        if rng.random() < 0.5:
            return " ".join(f"{_title(thing)} is {colour}." for thing, colour in pairs)
        return " ".join(f"The colour of {thing} is {colour}." for thing, colour in pairs)
    return " ".join(f"The opposite of {a} is {b}." for a, b in rng.sample(lexicon.OPPOSITES, 4))


def sequence(rng: random.Random) -> str:
    """Days, months and numbers in order, successors, and small sums."""
    kind = rng.randrange(4)
    if kind == 0:
        words = rng.choice((lexicon.DAYS, lexicon.MONTHS, lexicon.NUMBERS[1:]))
        start = rng.randrange(len(words) // 2)
        return ", ".join(words[start:]) + "."
    if kind == 1:
        return " ".join(f"{_title(_sum(rng))}." for _ in range(4))
    words = lexicon.DAYS if kind == 2 else lexicon.MONTHS
    unit = "day" if kind == 2 else "month"
    starts = rng.sample(range(len(words)), 3)
    return " ".join(f"The {unit} after {words[i]} is {words[(i + 1) % len(words)]}." for i in starts)


def _sum(rng: random.Random) -> str:
    total = rng.randrange(len(lexicon.NUMBERS))
    part = rng.randrange(total + 1)
    return f"{lexicon.NUMBERS[part]} plus {lexicon.NUMBERS[total - part]} is {lexicon.NUMBERS[total]}"


def code(rng: random.Random) -> str:
    """A few lines of Python: names to copy, brackets to close, lines to indent."""
    name, other = rng.sample(("a", "b", "n", "x", "y", "left", "right", "first", "last", "total"), 2)
    word, sign = rng.choice((("add", "+"), ("subtract", "-"), ("multiply", "*")))
    return rng.choice(
        (
            f"def {word}({name}, {other}):\n    return {name} {sign} {other}\n\nprint({word}(2, 3))",
            f"def factorial({name}):\n    if {name} == 0:\n        return 1\n"
            f"    return {name} * factorial({name} - 1)\n\nprint(factorial(5))",
            f"{name} = 0\nfor {other} in range(10):\n    {name} = {name} {sign} {other}\nprint({name})",
            f"if {name} > {other}:\n    print({name})\nelse:\n    print({other})",
        )
    )


# Families and their shares. Explanations and conversations weigh most: they carry the documented prompts.
FAMILIES: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (explanation, 5),
    (conversation, 5),
    (gift, 5),
    (story, 3),
    (belongings, 2),
    (facts, 3),
    (short_answer, 3),
    (sequence, 2),
    (code, 1),
)


def passages(seed: int) -> Iterator[str]:
    """Endless passages of all families. The same seed gives the same text on every machine."""
    rng = random.Random(seed)
    families = [family for family, _ in FAMILIES]
    shares = [share for _, share in FAMILIES]
    while True:
        yield rng.choices(families, shares)[0](rng)
