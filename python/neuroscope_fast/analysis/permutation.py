"""Effect sizes, permutation tests, and what is left of them after many comparisons.

One statistic serves both designs and any number of dimensions, and depends only on inner products:

paired        R² = |sum s_i d_i|² / (n sum |d_i|²), d_i the difference of pair i and s_i = ±1 its sign. Of numbers it
              grows with |t| of the paired t-test; of vectors it is the share of the differences that lies in one
              common direction.
independent   R² = between-group / total sum of squares: the statistic of PERMANOVA (Anderson 2001, "A new method for
              non-parametric multivariate analysis of variance", Austral Ecology 26). Of numbers it grows with |t|.

Under the null hypothesis the pairs' signs, or the labels of the sequences, could as well have been others: their
arrangements give the statistic's distribution. All of them where there are few, else random ones with the observed
one counted among them (Phipson & Smyth 2010, "Permutation p-values should never be zero", SAGMB 9).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from ..errors import OptionError

Array = np.ndarray[Any, Any]

MOST_ENUMERATED = 10_000
"""Up to so many arrangements are all looked at."""

_TIE = 1e-9
"""Statistics that differ by less than this share are one and the same, summed in another order."""

_NOTHING = 1e-13
"""A sum of squares about the mean that is smaller than this share of that about zero is rounding."""


class Tested(NamedTuple):
    """What permutations say of C components."""

    statistic: Array
    """R², [C], 0 to 1; 0 where nothing differs at all."""
    p: Array
    """[C], each component by itself; two-sided."""
    p_family: Array
    """[C], corrected by the largest statistic of all components in each arrangement (single-step maxT, Westfall &
    Young 1993, "Resampling-Based Multiple Testing"): holds the probability of even one false finding."""
    q: Array
    """[C], corrected after Benjamini & Hochberg 1995: holds the share of false ones among the findings."""
    arrangements: int
    """How many were looked at, the observed one among them."""
    exact: bool
    """Whether these are all there are."""
    smallest_p: float
    """No p can be smaller with so few sequences, or so few arrangements."""


def paired_test(grams: Array, *, permutations: int = MOST_ENUMERATED, seed: int = 0) -> Tested:
    """Sign flips. grams: [C, n, n], the inner products of the n pairs' differences, for each component."""
    grams = _checked(grams)
    count = grams.shape[1]
    exact = 2**count <= MOST_ENUMERATED
    if exact:
        arrangements = np.array(list(itertools.product((1.0, -1.0), repeat=count)))  # the observed one first
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (_positive(permutations), count))
        arrangements = np.vstack([np.ones(count), 1.0 - 2.0 * drawn])
    smallest = 2.0 / len(arrangements) if exact else 1.0 / len(arrangements)  # all signs turned: the same R²
    totals = count * np.trace(grams, axis1=1, axis2=2)
    return _tested(grams, arrangements, totals, exact, min(smallest, 1.0))


def independent_test(grams: Array, first: int, *, permutations: int = MOST_ENUMERATED, seed: int = 0) -> Tested:
    """Shuffled labels. grams: [C, n, n], the inner products of all sequences, the `first` ones of the first group in
    front; they need not be centred.
    """
    grams = _checked(grams)
    count = grams.shape[1]
    second = count - first
    if first < 1 or second < 1:
        raise OptionError("each of the two groups needs at least one sequence")
    exact = math.comb(count, first) <= MOST_ENUMERATED
    if exact:
        chosen = np.array(list(itertools.combinations(range(count), first)))  # the observed one first
    else:
        random = np.random.default_rng(seed)
        shuffled = np.array([random.permutation(count)[:first] for _ in range(_positive(permutations))])
        chosen = np.vstack([np.arange(first), shuffled])
    labels = np.full((len(chosen), count), -1.0 / second)
    np.put_along_axis(labels, chosen, 1.0 / first, axis=1)
    mirrored = exact and first == second  # both groups exchanged: the same R²
    smallest = (2.0 if mirrored else 1.0) / len(labels)
    centred = grams - grams.mean(1, keepdims=True) - grams.mean(2, keepdims=True) + grams.mean((1, 2), keepdims=True)
    squares = np.trace(centred, axis1=1, axis2=2)
    squares[squares <= _NOTHING * np.trace(grams, axis1=1, axis2=2)] = 0.0
    totals = squares * count / (first * second)
    return _tested(centred, labels, totals, exact, min(smallest, 1.0))


def _tested(grams: Array, arrangements: Array, totals: Array, exact: bool, smallest: float) -> Tested:
    components = len(grams)
    observed, reached = np.zeros(components), np.zeros(components)
    largest = np.zeros(len(arrangements))
    for number, (gram, total) in enumerate(zip(grams, totals, strict=True)):
        if total > 0:
            found = np.maximum(((arrangements @ gram) * arrangements).sum(1), 0.0) / total
            observed[number] = found[0]
            reached[number] = np.count_nonzero(found >= found[0] * (1 - _TIE))
            np.maximum(largest, found, out=largest)
        else:
            reached[number] = len(arrangements)
    family = [np.count_nonzero(largest >= value * (1 - _TIE)) for value in observed]
    # The observed arrangement is among those counted, which is the +1 of Phipson and Smyth.
    p = reached / len(arrangements)
    return Tested(
        observed,
        p,
        np.array(family, dtype=np.float64) / len(arrangements),
        benjamini_hochberg(p),
        len(arrangements),
        exact,
        smallest,
    )


def benjamini_hochberg(p: Array) -> Array:
    """Adjusted p-values, [C]: those up to q are findings of which at most the share q is false, on average.

    Raises OptionError for values that are no probabilities.
    """
    p = np.asarray(p, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():  # NaN fails too
        raise OptionError("p-values lie between 0 and 1")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]  # each at most its larger neighbour's
    return np.minimum(adjusted, 1.0)


def cohens_dz(differences: Array) -> float:
    """Mean over standard deviation (n - 1) of the differences of pairs [n] (Cohen 1988).

    0 where none differs, infinite where all differ alike, NaN for fewer than two.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return math.nan
    return _ratio(float(differences.mean()), float(differences.std(ddof=1)))


def hedges_g(first: Array, second: Array) -> float:
    """Difference of the means over the pooled standard deviation, times Hedges' exact correction for small groups
    (Hedges 1981, "Distribution theory for Glass's estimator of effect size").

    0 where all are alike, infinite where only the groups differ, NaN for fewer than four in all.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    freedom = len(first) + len(second) - 2
    if freedom < 2 or not len(first) or not len(second):
        return math.nan
    squares = ((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum()
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return _ratio(float(first.mean() - second.mean()), math.sqrt(squares / freedom)) * correction


def _ratio(mean: float, deviation: float) -> float:
    if mean == 0:
        return 0.0
    if deviation <= abs(mean) * 1e-12:  # what summing leaves of a deviation that is none
        return math.copysign(math.inf, mean)
    return mean / deviation


def _checked(grams: Array) -> Array:
    grams = np.asarray(grams, dtype=np.float64)
    if grams.ndim != 3 or grams.shape[1] != grams.shape[2] or not grams.shape[1]:
        raise OptionError(f"a test needs inner products [components, n, n] of at least one sequence, not {grams.shape}")
    if not np.isfinite(grams).all():
        raise OptionError("a test needs finite values: NaN and infinity cannot be ranked")
    return grams


def _positive(permutations: int) -> int:
    if permutations < 1:
        raise OptionError(f"permutations is {permutations}; it counts arrangements and is at least 1")
    return permutations
