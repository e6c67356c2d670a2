"""The words and facts that the demo corpus is built from.

Everything here was written for this project. Plain data and no code paths: :mod:`.corpus` turns it into
text. Every noun in ``OBJECTS``, ``ANIMALS`` and ``PLACES`` takes the article "a", so that templates need no
grammar of their own.
"""

from __future__ import annotations

GIRLS: tuple[str, ...] = (
    "Mary",
    "Anna",
    "Sara",
    "Alice",
    "Emma",
    "Lucy",
    "Jane",
    "Kate",
    "Nina",
    "Rosa",
    "Maria",
    "Julia",
)
BOYS: tuple[str, ...] = (
    "John",
    "Tom",
    "Peter",
    "David",
    "James",
    "Paul",
    "Mark",
    "Ben",
    "Jack",
    "Adam",
    "Simon",
    "Henry",
)

PLACES: tuple[str, ...] = (
    "store",
    "park",
    "school",
    "garden",
    "station",
    "market",
    "library",
    "beach",
    "forest",
    "river",
    "kitchen",
    "house",
)
OBJECTS: tuple[str, ...] = (
    "drink",
    "ball",
    "book",
    "cake",
    "kite",
    "lamp",
    "ring",
    "map",
    "flower",
    "hat",
    "key",
    "cup",
    "coat",
    "letter",
)
COLOURS: tuple[str, ...] = (
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "black",
    "brown",
    "grey",
    "pink",
    "gold",
)
ANIMALS: tuple[str, ...] = ("cat", "dog", "bird", "fox", "bear", "mouse", "horse", "rabbit", "duck", "frog")
MOODS: tuple[str, ...] = ("happy", "kind", "small", "brave", "young", "quiet")

COLOURED_THINGS: tuple[tuple[str, str], ...] = (
    ("grass", "green"),
    ("snow", "white"),
    ("coal", "black"),
    ("blood", "red"),
    ("the sky", "blue"),
    ("the sun", "yellow"),
    ("wood", "brown"),
    ("milk", "white"),
    ("a leaf", "green"),
    ("the sea", "blue"),
    ("night", "black"),
    ("a stone", "grey"),
)

# Country, capital, language of most people there, continent.
CAPITALS: tuple[tuple[str, str, str, str], ...] = (
    ("France", "Paris", "French", "Europe"),
    ("Italy", "Rome", "Italian", "Europe"),
    ("Spain", "Madrid", "Spanish", "Europe"),
    ("Germany", "Berlin", "German", "Europe"),
    ("England", "London", "English", "Europe"),
    ("Russia", "Moscow", "Russian", "Europe"),
    ("Greece", "Athens", "Greek", "Europe"),
    ("Poland", "Warsaw", "Polish", "Europe"),
    ("Japan", "Tokyo", "Japanese", "Asia"),
    ("China", "Beijing", "Chinese", "Asia"),
    ("Korea", "Seoul", "Korean", "Asia"),
    ("Egypt", "Cairo", "Arabic", "Africa"),
    ("Kenya", "Nairobi", "Swahili", "Africa"),
    ("Peru", "Lima", "Spanish", "South America"),
    ("Cuba", "Havana", "Spanish", "North America"),
    ("Canada", "Ottawa", "English", "North America"),
)

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"),
    ("big", "small"),
    ("tall", "short"),
    ("fast", "slow"),
    ("old", "new"),
    ("open", "closed"),
    ("light", "dark"),
    ("happy", "sad"),
    ("hard", "soft"),
    ("true", "false"),
    ("first", "last"),
    ("early", "late"),
    ("empty", "full"),
    ("good", "bad"),
)

NUMBERS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: tuple[str, ...] = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
