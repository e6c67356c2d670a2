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
_ROWS = 256


def key_kinds(queries: Array, keys: Array, ids: Array | None = None) -> Array:
    """The kind of each key for its query, int8: an index of KINDS, or -1. Positions of queries and keys, which are
    broadcast against each other; `ids` are the token ids of all positions.

    A key has one kind: the first token is nothing else, nor is the query's own or the one before it, and an earlier key
    that both holds the query's token and follows one is neither a duplicate nor an induction key. Without ids there are
    none of these two. Query 0, which sees only itself, has keys of no kind, and key -1 is of none.
    """
    query, key = np.broadcast_arrays(np.asarray(queries, np.int64), np.asarray(keys, np.int64))
    kinds = np.full(query.shape, -1, dtype=np.int8)
    if ids is not None:
        token = np.asarray(ids)
        earlier = (key > 0) & (key < query)
        holds = earlier & (token[np.maximum(key, 0)] == token[query])
        follows = earlier & (token[np.maximum(key - 1, 0)] == token[query])
        kinds[holds & ~follows] = DUPLICATE
        kinds[follows & ~holds] = INDUCTION
    kinds[key == query] = CURRENT
    kinds[key == query - 1] = PREVIOUS
    kinds[key == 0] = FIRST
    kinds[(query == 0) | (key < 0)] = -1
    return kinds


def row_entropy(weights: Array) -> Array:
    """-sum p ln p over the last axis, in nats, float64; 0 ln 0 is 0, and NaN stays NaN."""
    p = np.asarray(weights, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        logarithms = np.log(p, out=np.zeros_like(p), where=p != 0)
        return np.asarray(0.0 - (p * logarithms).sum(axis=-1))


class _Rows(NamedTuple):
    """Some queries [Q] of one head, and the positions, weights and kinds of their keys, broadcast to [Q, K]."""

    queries: Array
    keys: Array
    weights: Array
    kinds: Array


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
        self.is_causal = True  # until a query is seen that looks ahead

    def put(self, measure: int, head: int, queries: Array, values: Array, missing: Array | None = None) -> None:
        """`values` and `missing`, [Q], of these queries, where nothing is known yet."""
        row = self.heads.index(head)
        new = ~self.known[measure, row, queries]
        self.mass[measure, row, queries[new]] = values[new]
        self.known[measure, row, queries[new]] = True
        if missing is not None:
            self.missing[measure, row, queries[new]] = missing[new]

    def put_pattern(self, heads: list[int], queries: Array, weights: Array, ids: Array | None) -> None:
        """All measures of a pattern [H, Q, K]. Rows of zeros, of a query that sees no key, are left out."""
        keys = np.arange(weights.shape[2])[None]
        for part in _parts(len(queries)):
            kinds = key_kinds(queries[part, None], keys, ids)
            for number, head in enumerate(heads):
                self._put_rows(head, _Rows(queries[part], keys, weights[number, part], kinds), ids is not None)

    def put_listed(self, heads: list[int], queries: Array, keys: Array, weights: Array, ids: Array | None) -> None:
        """All measures of the keys that `top_k` lists, -1 for none: keys and weights are [H, Q, k]; lower bounds."""
        for number, head in enumerate(heads):
            for part in _parts(len(queries)):
                listed, rows = keys[number, part], weights[number, part]
                missing = np.clip(1.0 - rows.sum(axis=1, dtype=np.float64), 0.0, 1.0)
                kinds = key_kinds(queries[part, None], listed, ids)
                self._put_rows(head, _Rows(queries[part], listed, rows, kinds), ids is not None, missing)

    def _put_rows(self, head: int, part: _Rows, has_ids: bool, missing: Array | None = None) -> None:
        queries, keys, weights, kinds = part
        rows = np.asarray(weights, dtype=np.float64)
        positive = rows != 0
        seen = positive.any(axis=1)
        self.is_causal &= not bool((positive & (keys > queries[:, None])).any())
        masses = _masses(rows, kinds)
        # To query 1 the token before it is the first, and counts as that.
        previous_key = np.where(queries == 1, masses[FIRST], masses[PREVIOUS])
        for measure, values in enumerate([*masses, row_entropy(rows), previous_key]):
            if has_ids or measure not in (DUPLICATE, INDUCTION):
                self.put(measure, head, queries[seen], values[seen], None if missing is None else missing[seen])


def _parts(count: int) -> list[slice]:
    """Rows that are worked on at once: what stands beside a pattern stays small."""
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]


def _masses(rows: Array, kinds: Array) -> Array:
    """The mass on each kind, [kinds, Q]; a row in which anything is NaN is NaN in each."""
    query, key = np.nonzero(kinds >= 0)  # few of the keys are of a kind
    places = query * len(KINDS) + kinds[query, key]
    sums = np.bincount(places, weights=rows[query, key], minlength=len(rows) * len(KINDS))
    sums = sums.reshape(-1, len(KINDS)).astype(np.float64)  # of nothing numpy counts in integers
    sums[np.isnan(rows.sum(axis=1))] = np.nan
    return np.asarray(sums.T)


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

    def add(self, seen: QueryMasses, ids: Array | None) -> None:
        """The queries of one sequence, the first token apart."""
        positions = np.arange(seen.mass.shape[2])
        visible = positions + 1 if seen.is_causal else np.full(len(positions), len(positions))
        keys_of = _count_kinds(len(positions), ids)
        mass = np.where(seen.known, seen.mass, 0.0)
        for kind in range(len(KINDS)):
            keys = keys_of[kind]
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

    @property
    def queries(self) -> Array:
        """The queries that most of the averages are over, [H]."""
        return np.asarray(np.maximum(self.count[FIRST], self.plain_count.max(axis=0)))

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
        leads = np.asarray((self.lead >= 0).all(axis=1))
        by_kind: list[Array] = [score, chance, strength, most, leads, self.count]
        return [_label(_OfHead(*(each[:, head] for each in by_kind))) for head in range(len(self.heads))]


class _OfHead(NamedTuple):
    """Of one head, each [kinds]. most: what the strength would be if all that was left open were of the kind; leads:
    whether no other kind gets more from the same queries.
    """

    score: Array
    chance: Array
    strength: Array
    most: Array
    leads: Array
    queries: Array


def _label(found: _OfHead) -> Label:
    score, chance, strength, most, leads, queries = found
    judged = (queries >= FEWEST_QUERIES) & np.isfinite(strength)
    nothing = Label("unknown", np.nan, np.nan, np.nan)
    if not judged.any() or (np.isnan(score) & (queries > 0)).any():
        return nothing
    standing = list(np.flatnonzero(judged & leads & (strength >= STANDS_OUT)).tolist())
    chosen = max(
        [kind for kind in standing if kind != FIRST] or standing, key=lambda kind: float(strength[kind]), default=None
    )
    if chosen is not None:
        return Label(KINDS[chosen], float(score[chosen]), float(chance[chosen]), float(strength[chosen]))
    strongest = float(strength[judged].max())
    is_open = bool((most[judged] >= STANDS_OUT).any() and (most[judged] > strength[judged] + 1e-4).any())
    return nothing._replace(name="unknown" if is_open else "none", strength=strongest)


def _count_kinds(tokens: int, ids: Array | None) -> Array:
    """How many keys of each kind a query has, [kinds, tokens]."""
    counts = np.zeros((len(KINDS), tokens), dtype=np.int64)
    positions = np.arange(tokens)
    for part in _parts(tokens):
        kinds = key_kinds(positions[part, None], positions[None], ids)
        for kind in range(len(KINDS)):
            counts[kind, part] = (kinds == kind).sum(axis=1)
    return counts


def _mean(total: Array, count: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
