"""What heads attend to, in numbers: kinds of keys, the mass on each, and the label of the kind that stands out.

Arrays only, no run. Definitions are those of docs/attention_patterns.md, after Olsson et al. 2022, "In-context Learning
and Induction Heads" (previous-token heads, prefix matching), and Wang et al. 2022, "Interpretability in the Wild"
(duplicate-token heads). Positions are counted from the sequence's first token, which is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

KINDS: tuple[str, ...] = ("first_token", "previous_token", "current_token", "duplicate_token", "induction")
"""Each key of a query is of one of these kinds, or of none."""
FIRST, PREVIOUS, CURRENT, DUPLICATE, INDUCTION = range(5)
ENTROPY, PREVIOUS_KEY = 5, 6
MEASURES = 7
"""The masses of the five kinds, the row's entropy, and the mass of the key before the query's own, of whatever kind."""

STANDS_OUT = 0.2
"""How far above uniform attention a score must stand, of the way from there to 1, to give its head a label."""
FEWEST_QUERIES = 5
"""A score over fewer queries gives no label."""


def key_kinds(queries: Array, keys: int, ids: Array | None = None) -> Array:
    """The kind of each key of each query, int8 [Q, keys]: an index of KINDS, or -1.

    `queries` are positions, `ids` the token ids of at least `keys` positions; without them no key is a duplicate or an
    induction key. A key has one kind: the first token is nothing else, nor is the query's own or the one before it, and
    a key that holds the query's token and also follows one is neither a duplicate nor an induction key. Query 0, which
    sees only itself, has keys of no kind.
    """
    query = np.asarray(queries, dtype=np.int64)[:, None]
    key = np.arange(keys)[None, :]
    kinds = np.full((len(query), keys), -1, dtype=np.int8)
    if ids is not None and keys:
        token = np.asarray(ids)[:keys]
        same = (token[None, :] == np.asarray(ids)[query]) & (key < query)
        after = np.zeros_like(same)
        after[:, 1:] = same[:, :-1]
        after &= key < query
        kinds[same & ~after] = DUPLICATE
        kinds[after & ~same] = INDUCTION
    kinds[key == query] = CURRENT
    kinds[key == query - 1] = PREVIOUS
    kinds[:, :1] = FIRST
    kinds[query[:, 0] == 0] = -1
    return kinds


def row_entropy(weights: Array) -> Array:
    """-sum p ln p over the last axis, in nats, float64; 0 ln 0 is 0, and NaN stays NaN."""
    p = np.asarray(weights, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p == 0, 0.0, p * np.log(p))
        return np.asarray(0.0 - terms.sum(axis=-1))


class QueryMasses:
    """What is known of the attention of some heads in one sequence, query by query, from one hook or several.

    All [MEASURES, H, T]. mass: float64; known: which of it was captured, for NaN may be what a model computed; missing:
    the attention that the captured keys of a query leave open (`top_k`), where it is not 0 the mass is a lower bound.
    """

    def __init__(self, heads: list[int], tokens: int) -> None:
        self.heads = heads
        self.mass = np.full((MEASURES, len(heads), tokens), np.nan)
        self.known = np.zeros((MEASURES, len(heads), tokens), dtype=bool)
        self.missing = np.zeros((MEASURES, len(heads), tokens))

    def put(
        self, measure: int, heads: list[int], queries: Array, values: Array, missing: Array | None = None
    ) -> None:
        """`values` and `missing`, [H, Q], of these heads and queries, where nothing is known yet."""
        for number, head in enumerate(heads):
            row = self.heads.index(head)
            new = ~self.known[measure, row, queries]
            places = queries[new]
            self.mass[measure, row, places] = values[number, new]
            self.known[measure, row, places] = True
            if missing is not None:
                self.missing[measure, row, places] = missing[number, new]

    def put_pattern(self, heads: list[int], queries: Array, weights: Array, ids: Array | None) -> None:
        """All measures of a pattern [H, Q, K]. Rows of zeros, of a query that sees no key, are left out."""
        kinds = key_kinds(queries, weights.shape[2], ids)
        for number, head in enumerate(heads):
            rows = np.asarray(weights[number], dtype=np.float64)
            seen = (rows != 0).any(axis=1)
            measures = _measures(rows, kinds, queries)
            for measure, values in enumerate(measures):
                if ids is not None or measure not in (DUPLICATE, INDUCTION):
                    self.put(measure, [head], queries[seen], values[None, seen])

    def put_listed(self, heads: list[int], queries: Array, weights: Array, keys: Array, ids: Array | None) -> None:
        """All measures of the keys that `top_k` lists: weights and their keys, both [H, Q, k]; lower bounds."""
        tokens = self.mass.shape[2]
        for number, head in enumerate(heads):
            rows = np.zeros((len(queries), tokens))
            within = (keys[number] >= 0) & (keys[number] < tokens)
            at, column = np.nonzero(within)
            # Where all weights are 0, so are all keys: what is added cannot overwrite the weight of key 0.
            np.add.at(rows, (at, keys[number][within]), np.asarray(weights[number], dtype=np.float64)[at, column])
            seen = (rows != 0).any(axis=1)
            kinds = key_kinds(queries, tokens, ids)
            missing = np.clip(1.0 - rows.sum(axis=1), 0.0, 1.0)
            for measure, values in enumerate(_measures(rows, kinds, queries)):
                if ids is not None or measure not in (DUPLICATE, INDUCTION):
                    self.put(measure, [head], queries[seen], values[None, seen], missing[None, seen])


def _measures(rows: Array, kinds: Array, queries: Array) -> list[Array]:
    """The MEASURES of rows [Q, K], each [Q]."""
    with np.errstate(invalid="ignore"):  # NaN in a row is NaN in each of its masses
        masses = [(rows * (kinds == kind)).sum(axis=1) for kind in range(len(KINDS))]
    before = np.arange(rows.shape[1])[None, :] == np.asarray(queries)[:, None] - 1
    with np.errstate(invalid="ignore"):
        previous_key = (rows * before).sum(axis=1)
    return [*masses, row_entropy(rows), previous_key]


class Label(NamedTuple):
    """Of one head: what it does, by which kind."""

    name: str
    """One of KINDS; `none`: no score stands out; `unknown`: none could be judged."""
    score: float
    chance: float
    strength: float


class Totals:
    """Sums over the queries of all sequences, for the heads of one layer. A head's averages weigh every query alike."""

    def __init__(self, heads: list[int]) -> None:
        shape = (len(KINDS), len(heads))
        self.heads = heads
        self.sum = np.zeros(shape)
        self.count = np.zeros(shape, dtype=np.int64)
        self.chance = np.zeros(shape)
        self.missing = np.zeros(shape)
        self.lead = np.zeros((len(KINDS), len(KINDS), len(heads)))
        self.plain_sum = np.zeros((MEASURES - len(KINDS), len(heads)))
        self.plain_count = np.zeros((MEASURES - len(KINDS), len(heads)), dtype=np.int64)

    def add(self, seen: QueryMasses, ids: Array | None, *, causal: bool = True) -> None:
        """The queries of one sequence, the first token apart."""
        tokens = seen.mass.shape[2]
        positions = np.arange(tokens)
        kinds = key_kinds(positions, tokens, ids)
        visible = positions + 1 if causal else np.full(tokens, tokens)
        mass = np.where(seen.known, seen.mass, 0.0)
        for kind in range(len(KINDS)):
            keys = (kinds == kind).sum(axis=1)
            used = seen.known[kind] & (keys > 0)
            self.sum[kind] += np.where(used, mass[kind], 0.0).sum(axis=1)
            self.count[kind] += used.sum(axis=1)
            self.chance[kind] += np.where(used, keys / visible, 0.0).sum(axis=1)
            self.missing[kind] += np.where(used, seen.missing[kind], 0.0).sum(axis=1)
            for other in range(len(KINDS)):
                both = used & seen.known[other]
                self.lead[kind, other] += np.where(both, mass[kind] - mass[other], 0.0).sum(axis=1)
        for number, measure in enumerate((ENTROPY, PREVIOUS_KEY)):
            used = seen.known[measure] & (positions > 0)
            self.plain_sum[number] += np.where(used, mass[measure], 0.0).sum(axis=1)
            self.plain_count[number] += used.sum(axis=1)

    def scores(self) -> Array:
        """The mean mass on each kind over the queries that have keys of it, [kinds, H]; NaN where there are none."""
        return _mean(self.sum, self.count)

    def chances(self) -> Array:
        """What uniform attention would have given for the same queries, [kinds, H]."""
        return _mean(self.chance, self.count)

    def entropy(self) -> Array:
        """Mean entropy of the rows, nats, [H]."""
        return _mean(self.plain_sum[0], self.plain_count[0])

    def previous_key(self) -> Array:
        """Mean mass on the key before the query's own, be it the first token or not, [H]."""
        return _mean(self.plain_sum[1], self.plain_count[1])

    def is_lower_bound(self) -> Array:
        """[H]: whether mass was left open beyond rounding."""
        return np.asarray((_mean(self.missing, self.count) > 1e-4).any(axis=0))

    def labels(self) -> list[Label]:
        """A label for each head.

        A score stands out if it is at least STANDS_OUT of the way from uniform attention to 1, over FEWEST_QUERIES
        queries or more, and no other kind of key gets more from the same queries. Of several the strongest is taken,
        and `first_token`, where heads rest that have nothing to do, only if no other stands out.
        """
        score, chance = self.scores(), self.chances()
        strength = (score - chance) / (1 - chance)
        most = strength + _mean(self.missing, self.count) / (1 - chance)
        leads = (self.lead >= 0).all(axis=1)
        return [
            _label(*(each[:, head] for each in (score, chance, strength, most, leads, self.count)))
            for head in range(len(self.heads))
        ]


def _label(score: Array, chance: Array, strength: Array, most: Array, leads: Array, count: Array) -> Label:
    judged = (count >= FEWEST_QUERIES) & np.isfinite(strength)
    nothing = Label("unknown", np.nan, np.nan, np.nan)
    if not judged.any() or (np.isnan(score) & (count > 0)).any():
        return nothing
    standing = [kind for kind in np.flatnonzero(judged & leads & (strength >= STANDS_OUT)).tolist()]
    chosen = max(
        [kind for kind in standing if kind != FIRST] or standing, key=lambda kind: float(strength[kind]), default=None
    )
    if chosen is not None:
        return Label(KINDS[chosen], float(score[chosen]), float(chance[chosen]), float(strength[chosen]))
    strongest = float(strength[judged].max())
    is_open = bool((most[judged] >= STANDS_OUT).any() and (most[judged] > strength[judged] + 1e-4).any())
    return nothing._replace(name="unknown" if is_open else "none", strength=strongest)


def _mean(total: Array, count: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
