"""Training batches of the demo model: corpus text, and random tokens that repeat.

Text teaches the language; repeated random tokens, which nothing but copying can predict, teach the
previous-token and induction heads. Rows of either kind begin with BOS or, in a share of them, without it,
so that the model also works on prompts that were tokenized without special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .corpus import EOS, passages
from .tokenizer import BOS, SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # the label of a token that cannot be predicted, or is not worth it
WITHOUT_BOS = 0.2
LARGEST_OFFSET = 8
SHORTEST_PERIOD = 3


class Batch(NamedTuple):
    """tokens and labels, int64 ``[rows, length]``; a label stands where its token stands, not one earlier."""

    tokens: Tensor
    labels: Tensor


class TextRows:
    """Endless rows of corpus text: whole passages one after another, the last one cut at the row's end."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._bos = tokenizer.bos_token_id
        self._encoded = self._encode(tokenizer, passages(seed))
        self._generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def _encode(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str]) -> Iterator[list[int]]:
        while True:
            yield from tokenizer([text + EOS for text in islice(texts, 500)])["input_ids"]

    def batch(self, rows: int, length: int) -> Batch:
        """Draw the next rows."""
        tokens = torch.empty(rows, length, dtype=torch.int64)
        for row, draw in zip(tokens, torch.rand(rows, generator=self._generator).tolist(), strict=True):
            text: list[int] = []
            while len(text) <= length:
                text += next(self._encoded)
            start = int(draw < WITHOUT_BOS)
            row.copy_(torch.tensor(text[start : start + length]))
        return Batch(tokens, tokens.masked_fill(tokens == self._bos, IGNORED))


class RepeatRows:
    """Endless rows of random tokens that repeat, each row with a random period and a random offset.

    One half of the rows repeats one sequence to the end of the row (``s s s …``), the other half repeats
    each sequence once (``s s t t …``). Only tokens that the row determines have labels: the first copy of a
    sequence and the first token of its repetition are random.
    """

    def __init__(self, vocabulary: int, seed: int) -> None:
        self._vocabulary = vocabulary
        self._generator = torch.Generator().manual_seed(seed)

    def _uniform(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self._generator)

    def batch(self, rows: int, length: int, longest_period: int, alphabet: int | None = None) -> Batch:
        """Draw the next rows; alphabet limits the tokens drawn to the first so many ordinary ones."""
        first = len(SPECIAL_TOKENS)
        last = self._vocabulary - 1 if alphabet is None else first + alphabet - 1
        period = self._uniform(SHORTEST_PERIOD, longest_period, rows, 1)
        offset = self._uniform(0, LARGEST_OFFSET, rows, 1)
        once = (torch.arange(rows) % 2 == 0)[:, None]

        place = torch.arange(length).expand(rows, length)
        inside = place - offset  # counted from the first sequence, negative in the random tokens before it
        # Where each place is within s s (once), or within s s s … taken as one first copy and one long
        # repetition.
        within = torch.where(once, inside % (2 * period), inside)
        repeats = (inside >= 0) & (within >= period)
        source = torch.where(once, place - period, offset + inside % period)
        drawn = self._uniform(first, last, rows, length)
        tokens = drawn.gather(1, torch.where(repeats, source, place))
        labels = tokens.masked_fill(~(repeats & (within > period)), IGNORED)

        bos = torch.rand(rows, 1, generator=self._generator) >= WITHOUT_BOS
        with_bos = torch.nn.functional.pad(tokens, (1, 0), value=SPECIAL_TOKENS.index(BOS))[:, :-1]
        shifted = torch.nn.functional.pad(labels, (1, 0), value=IGNORED)[:, :-1]
        return Batch(torch.where(bos, with_bos, tokens), torch.where(bos, shifted, labels))


def concatenate(*batches: Batch) -> Batch:
    """The rows of several batches of one length as one batch."""
    tokens, labels = zip(*batches, strict=True)
    return Batch(torch.cat(tokens), torch.cat(labels))
