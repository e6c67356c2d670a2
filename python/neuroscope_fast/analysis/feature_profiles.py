"""A closer look at a few neurons of a hook: histogram, top activating contexts, and the tokens that they are for.

It takes a second pass over the records, since a histogram needs to know its range and a context what stands around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..reader import Run
from .position_blocks import Block, Place, PositionBlocks, position_of, sequence_of
from .run_index import index_of
from .sequences import Tokens
from .sequences import tokens as tokens_of
from .top_activations import EMPTY

Array = np.ndarray[Any, Any]

LEAST_OCCURRENCES = 2
"""A token must have been seen so often to have a mean: one occurrence is a context, not a tendency."""
_TOKENS_KEPT = 10


class Context(msgspec.Struct, frozen=True):
    """A place where a neuron is highly active, and what stands around it.

    `texts` are the tokens from some positions before the peak to some behind it, `activations` float64 the neuron's at
    each (NaN where the run holds none), and `peak` which of them the peak is. `position` is counted from the first real
    token of the sequence; -1 and no text where the run does not say.
    """

    prompt: int
    row: int
    position: int
    value: float
    texts: list[str]
    activations: Array
    peak: int


class TokenMean(msgspec.Struct, frozen=True):
    """A neuron's mean activation where this token is read, over all its `count` occurrences."""

    token_id: int
    text: str
    mean: float
    count: int


class Profile(msgspec.Struct, frozen=True):
    """One neuron. `histogram` int64 [bins] counts its finite values in bins of equal width from its minimum to its
    maximum, between `edges` float64 [bins + 1]. `contexts`: its top activations, largest first. `tokens`: those with
    the largest mean, largest first, of those that were read at least twice.
    """

    neuron: int
    edges: Array
    histogram: Array
    contexts: list[Context]
    tokens: list[TokenMean]


class _Texts:
    """The tokens of sequences, those of the last few looked up kept."""

    def __init__(self, run: Run):
        self._run = run
        self._told = index_of(run).texts
        self._taken = any(
            record.component == "embedding" for hook_id in run for record in run[hook_id].inputs.records[:1]
        )
        self._kept: dict[tuple[int, int], Tokens] = {}

    def of(self, place: Place) -> Tokens:
        """Those of a sequence; without any where the run does not say."""
        if place.restarted or not (self._taken or self._told.get(place.prompt)):
            return Tokens([], [], 0)
        key = place.prompt, place.row
        if key not in self._kept:
            if len(self._kept) >= 64:
                self._kept.clear()
            self._kept[key] = tokens_of(self._run, *key)
        return self._kept[key]


class FirstPass(NamedTuple):
    """What is known of P neurons: `minimum` and `maximum` [P], NaN without a value, `values` and `keys` [P, k] of their
    top activations.
    """

    minimum: Array
    maximum: Array
    values: Array
    keys: Array


def profiles_of(
    run: Run,
    source: PositionBlocks,
    blocks: Iterable[Block],
    neurons: Sequence[int],
    known: FirstPass,
    *,
    skip_first: int,
    before: int,
    after: int,
    bins: int,
) -> list[Profile]:
    """Profiles of `neurons`. `blocks` are those of `source`, of all positions, or what was made of them."""
    chosen = np.asarray(neurons, np.int64)
    texts = _Texts(run)
    contexts = _Contexts(source, texts, known, before, after)
    counts = np.zeros((len(chosen), bins), np.int64)
    low, high = _range(known.minimum, known.maximum)
    means = _TokenMeans(len(chosen))
    for block in blocks:
        values = block.values[:, chosen].T.astype(np.float64)  # [P, n]
        contexts.add(values, block.keys)
        position = position_of(block.keys)
        counted = (position >= skip_first) | (position < 0)
        values, keys = values[:, counted], block.keys[counted]
        _count(values, low, high, counts)
        means.add(values, keys, source, texts)
    return [
        Profile(
            neuron,
            np.linspace(low[number], high[number], bins + 1),
            counts[number],
            contexts.of(number),
            means.best(number),
        )
        for number, neuron in enumerate(chosen.tolist())
    ]


def _range(minimum: Array, maximum: Array) -> tuple[Array, Array]:
    """The ranges of the histograms; of equal values (or none) one of width 1 around them."""
    known = minimum <= maximum
    low, high = np.where(known, minimum, 0.0), np.where(known, maximum, 0.0)
    pad = np.where(low < high, 0.0, 0.5)
    return low - pad, high + pad


def _count(values: Array, low: Array, high: Array, counts: Array) -> None:
    bins = counts.shape[1]
    finite = np.isfinite(values)
    at, _ = np.nonzero(finite)
    scaled = (values[finite] - low[at]) / (high - low)[at] * bins
    number = np.clip(scaled.astype(np.int64), 0, bins - 1)
    counts += np.bincount(at * bins + number, minlength=counts.size).reshape(counts.shape)


class _TokenMeans:
    """Sums of activations by token id."""

    def __init__(self, neurons: int):
        self._sums = np.zeros((neurons, 0))
        self._counts = np.zeros((neurons, 0), np.int64)
        self._texts: dict[int, str] = {}

    def add(self, values: Array, keys: Array, source: PositionBlocks, texts: _Texts) -> None:
        if len(keys) == 0:
            return
        ids = np.full(len(keys), -1)
        starts = np.flatnonzero(np.diff(sequence_of(keys), prepend=-1))
        for start, stop in zip(starts, np.append(starts[1:], len(keys)), strict=True):
            tokens = texts.of(source.place(int(keys[start])))
            if not tokens.ids:
                continue
            position = position_of(keys[start:stop])
            known = (position >= 0) & (position < len(tokens.ids))
            ids[start:stop][known] = np.asarray(tokens.ids)[position[known]]
            for each in position[known].tolist():
                self._texts.setdefault(tokens.ids[each], tokens.texts[each])
        self._grow(int(ids.max()) + 1)
        for number, row in enumerate(values):
            known = (ids >= 0) & np.isfinite(row)
            np.add.at(self._sums[number], ids[known], row[known])
            np.add.at(self._counts[number], ids[known], 1)

    def _grow(self, size: int) -> None:
        more = size - self._sums.shape[1]
        if more > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
            self._counts = np.pad(self._counts, ((0, 0), (0, more)))

    def best(self, number: int) -> list[TokenMean]:
        counts = self._counts[number]
        (ids,) = np.nonzero(counts >= LEAST_OCCURRENCES)
        means = self._sums[number, ids] / counts[ids]
        order = np.lexsort((ids, -means))[:_TOKENS_KEPT]
        found = zip(ids[order].tolist(), means[order].tolist(), counts[ids[order]].tolist(), strict=True)
        return [TokenMean(token, self._texts[token], mean, count) for token, mean, count in found]


class _Contexts:
    """What stands around the top activations."""

    def __init__(self, source: PositionBlocks, texts: _Texts, known: FirstPass, before: int, after: int):
        self._source = source
        self._texts = texts
        self._known = known
        self._around = np.arange(-before, after + 1)
        peaks = np.unique(known.keys[known.keys != EMPTY])
        keys = peaks[:, None] + self._around
        keys = keys[(sequence_of(keys) == sequence_of(peaks)[:, None]) & (position_of(keys) >= 0)]
        self._wanted = np.unique(keys)
        self._found = np.full((len(known.keys), len(self._wanted)), np.nan)

    def add(self, values: Array, keys: Array) -> None:
        """Keeps what is wanted of `values` [P, n]."""
        at = np.searchsorted(self._wanted, keys)
        hit = at < len(self._wanted)
        hit[hit] = self._wanted[at[hit]] == keys[hit]
        self._found[:, at[hit]] = values[:, hit]

    def of(self, number: int) -> list[Context]:
        """Those of one neuron, of the largest activation first."""
        pairs = zip(self._known.keys[number].tolist(), self._known.values[number].tolist(), strict=True)
        return [self._context(number, key, value) for key, value in pairs if key != EMPTY]

    def _context(self, number: int, key: int, value: float) -> Context:
        place = self._source.place(key)
        if place.position < 0:
            return Context(place.prompt, place.row, -1, value, [], np.zeros(0), 0)
        tokens = self._texts.of(place)
        activations: list[float] = []
        labels: list[str] = []
        peak = 0
        for offset in self._around.tolist():
            position = place.position + offset
            if position < 0:
                continue
            at = np.searchsorted(self._wanted, key + offset)  # there: the key of every position of a context is wanted
            activation = float(self._found[number, at])
            if np.isnan(activation) and position >= len(tokens.texts):
                continue
            if offset == 0:
                peak = len(labels)
            activations.append(activation)
            labels.append(tokens.texts[position] if position < len(tokens.texts) else str(position))
        return Context(place.prompt, place.row, place.position, value, labels, np.asarray(activations), peak)
