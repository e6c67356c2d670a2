"""Matched prompts for the embedded model: random words that repeat, and the same without their first time.

Only copying from the context can tell them apart: what the clean ones need, induction heads (:mod:`.scores`) do.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from . import load

WORDS = 8
AGAIN = 6


class Pairs(NamedTuple):
    """`clean` says eight words and begins to say them again; `corrupted` says eight others first. `right` is the token
    that copying would go on with in the clean prompt, `wrong` that of the word in its place in the corrupted one."""

    clean: list[str]
    corrupted: list[str]
    right: list[int]
    wrong: list[int]


def repeated_words(count: int, seed: int) -> Pairs:
    """So many pairs, each of 16 tokens with the one that begins a text: every word is one token."""
    _, tokenizer = load()
    tokens = {
        text: token
        for text, token in ((str(tokenizer.decode([token])), token) for token in range(len(tokenizer)))
        if text.startswith(" ") and text[1:].isalpha() and len(text) > 3
    }
    words = sorted(tokens)
    generator = random.Random(seed)
    pairs = Pairs([], [], [], [])
    while len(pairs.clean) < count:
        drawn = generator.sample(words, 2 * WORDS)
        first, other = drawn[:WORDS], drawn[WORDS:]
        again = first[:AGAIN]
        texts = ["Then" + "".join(words_before + again) for words_before in (first, other)]
        expected = [2 + WORDS + len(again)] * 2  # with the token that begins the text
        if [len(tokenizer(text)["input_ids"]) for text in texts] == expected:
            pairs.clean.append(texts[0])
            pairs.corrupted.append(texts[1])
            pairs.right.append(tokens[first[AGAIN]])
            pairs.wrong.append(tokens[other[AGAIN]])
    return pairs
