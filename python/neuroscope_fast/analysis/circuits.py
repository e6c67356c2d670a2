"""Circuit discovery: which components behave differently on two groups of prompts.

Every captured component (each head by itself) is compared in two ways. *Maps* say by layer, head and position how far
its activation on a prompt lies from that on the matched prompt. A *test* says of one summary a prompt whether the
groups differ by more than chance: see `permutation` for the statistics, and `COMPONENTS` below for the summary.

The summary is taken at the last position of the prompt, where the next token is predicted, and which prompts of any
length have in common:

norm       a vector's Euclidean norm: how much the component writes (or, of the stream, how much stands there). Blind
           to direction.
direction  the vector itself: whether the groups differ in one common direction, of any norm.

An attention pattern is summarised by the weight that the last query gives to keys other than the first one. A head
that has nothing to do rests on the first token (Xiao et al. 2023, "Efficient Streaming Language Models with Attention
Sinks"); this is how much it does not. Numbers that were captured in place of a pattern stand for themselves, and the
mass on the first token (`sink`) is subtracted from 1, to mean the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import OptionError
from ..reader import Run
from .circuit_comparison import Comparison, Measure
from .circuit_groups import Component, Groups, Place, Values, compared, make_groups, places, read
from .permutation import MOST_ENUMERATED, Tested, cohens_dz, hedges_g, independent_test, paired_test

Array = np.ndarray[Any, Any]

ROUNDING = 1e-5
"""Values that differ by less than this share of their size are taken as equal: the same computation in batches of
other shapes differs by as much in float32."""


def compare(
    run: Run,
    other: Run | None = None,
    *,
    prompts: Sequence[int] | None = None,
    other_prompts: Sequence[int] | None = None,
    paired: bool = True,
    components: Sequence[str] | None = None,
    measure: Measure = "norm",
    permutations: int = MOST_ENUMERATED,
    seed: int = 0,
    alpha: float = 0.05,
) -> Comparison:
    """Compare two runs (`run` clean, `other` corrupted), or two sets of prompts of one run.

    Args:
        prompts, other_prompts: prompt numbers of the first and the second group; None takes all of the run. Rows of a
            batch are sequences of their own.
        paired: the first prompt is matched with the other's first, and so on; False: two independent groups.
        components: only these (`head_output`, `mlp`, …); None takes all that were captured.
        measure: what is tested, see the top of this module.
        permutations: random arrangements, where there are more than 10,000 in all; `seed` draws them.

    Raises OptionError for groups that cannot be, MissingActivations where the runs have nothing in common, RunError for
    NaN and infinities in what is compared.
    """
    if measure not in ("norm", "direction"):
        raise OptionError(f"measure is {measure!r}; it is norm or direction")
    if not 0 < alpha < 1:
        raise OptionError(f"alpha is {alpha}; it lies between 0 and 1")
    everything = places(run, other or run)
    groups = make_groups(run, other, prompts=prompts, other_prompts=other_prompts, paired=paired)
    chosen = [place for place in everything if components is None or place.components[0].component in components]
    if not chosen:
        there = sorted({place.components[0].component for place in everything})
        raise OptionError(f"the runs hold none of {', '.join(components or ())}; they hold {', '.join(there)}")
    known = compared(everything)
    left_out = [f"{hook_id}: not compared, or not in both runs" for hook_id in run if hook_id not in known]
    collected: list[_Compared] = []
    for place in chosen:
        found = _compare_place(groups, place, measure)
        if isinstance(found, str):
            left_out.append(f"{place.hooks[0]}: {found}")
        else:
            collected += found
    if not collected:
        raise OptionError(f"nothing can be compared at the last position of the prompts: {'; '.join(left_out)}")
    return _tested(groups, collected, left_out, measure=measure, permutations=permutations, seed=seed, alpha=alpha)


class _Compared(NamedTuple):
    component: Component
    first: Array
    second: Array
    gram: Array
    difference: Array
    cosine: Array


def _tested(
    groups: Groups,
    found: list[_Compared],
    left_out: list[str],
    *,
    measure: Measure,
    permutations: int,
    seed: int,
    alpha: float,
) -> Comparison:
    grams = np.array([each.gram for each in found])
    tested: Tested
    if groups.paired:
        tested = paired_test(grams, permutations=permutations, seed=seed)
        sizes = [cohens_dz(_rounded(each.first, each.second)) for each in found]
    else:
        tested = independent_test(grams, len(groups.first), permutations=permutations, seed=seed)
        sizes = [hedges_g(each.first, each.second) if each.gram.any() else 0.0 for each in found]
    name = "R²" if measure == "direction" else "d_z" if groups.paired else "g"
    return Comparison(
        groups.paired,
        measure,
        name,
        [each.component for each in found],
        np.array([each.first for each in found]),
        np.array([each.second for each in found]),
        tested.statistic if measure == "direction" else np.array(sizes),
        tested.p,
        tested.p_family,
        tested.q,
        tested.arrangements,
        tested.exact,
        tested.smallest_p,
        alpha,
        groups.alignment,
        groups.positions,
        _labels(groups),
        np.array([each.difference for each in found]),
        np.array([each.cosine for each in found]),
        np.array([_above(each.first, each.second, median=True) for each in found]),
        np.array([_above(each.first, each.second, median=False) for each in found]),
        left_out,
    )


def _compare_place(groups: Groups, place: Place, measure: Measure) -> list[_Compared] | str:
    """The components of a place, or why they cannot be compared."""
    ends: list[list[Array]] = [[], []]  # of each group the values at the last position, [C, …] each
    differences, cosines = [], []
    for number in range(max(len(groups.first), len(groups.second))):
        pair: list[Values] = []
        for side, sequences in enumerate((groups.first, groups.second)):
            if number >= len(sequences):
                continue
            values = read(sequences[number], place, 1 if side else 0)
            at = np.flatnonzero(values.positions == sequences[number].length - 1)
            if not at.size:
                return f"the last position of {sequences[number]} was not captured"
            ends[side].append(values.values[at[0]])
            pair.append(values)
        if groups.paired:
            difference, cosine = _distances(groups, number, *pair)
            differences.append(difference)
            cosines.append(cosine)
    if groups.paired:
        maps = np.mean(differences, axis=0), _mean_of_defined(np.array(cosines))
    else:
        maps = _mean_distances(*ends)
    result = []
    for index, component in enumerate(place.components):
        first, second = (np.array([_number_of(each[index], component) for each in side]) for side in ends)
        if measure == "norm" or component.component == "attention_pattern":
            vectors = first[:, None], second[:, None]
        else:
            vectors = np.array([each[index] for each in ends[0]]), np.array([each[index] for each in ends[1]])
        gram = _gram(*vectors, paired=groups.paired)
        result.append(_Compared(component, first, second, gram, maps[0][index], maps[1][index]))
    return result


def _number_of(values: Array, component: Component) -> float:
    """The summary of one component at the last position, its values [D]."""
    if component.reduction is not None:
        return float(1 - values[0] if component.reduction == "sink" else values[0])
    if component.component == "attention_pattern":
        return float(values[1:].sum())
    return float(np.linalg.norm(values))


def _rounded(first: Array, second: Array) -> Array:
    """first - second, [n] or [n, D], 0 where it is rounding."""
    difference = first - second
    columns = (array.reshape(len(array), -1) for array in (difference, first, second))
    size, one, two = (np.linalg.norm(each, axis=1) for each in columns)
    difference[size <= ROUNDING * np.maximum(one, two)] = 0.0
    return difference


def _gram(first: Array, second: Array, *, paired: bool) -> Array:
    """Inner products of the differences of pairs, or of all sequences about their mean; zeros where all is rounding."""
    if paired:
        vectors = _rounded(first, second)
    else:
        everything = np.concatenate([first, second])
        vectors = everything - everything.mean(0)
        sizes = np.linalg.norm(everything, axis=1)
        if (np.linalg.norm(vectors, axis=1) <= ROUNDING * sizes).all():
            vectors[:] = 0.0
    gram: Array = vectors @ vectors.T
    return gram


def _distances(groups: Groups, number: int, one: Values, other: Values) -> tuple[Array, Array]:
    """Relative difference and cosine of one pair at the positions of the groups, each [C, P]."""
    shape = (one.values.shape[1], len(groups.positions))
    difference, cosine = np.full(shape, np.nan), np.full(shape, np.nan)
    if one.values.shape[2] != other.values.shape[2]:
        return difference, cosine
    lengths = groups.first[number].length, groups.second[number].length
    for column, position in enumerate(groups.positions):
        at = [
            np.flatnonzero(values.positions == (position if position >= 0 else length + position))
            for values, length in zip((one, other), lengths, strict=True)
        ]
        if at[0].size and at[1].size:
            difference[:, column], cosine[:, column] = _distance(one.values[at[0][0]], other.values[at[1][0]])
    return difference, cosine


def _distance(first: Array, second: Array) -> tuple[Array, Array]:
    """|a - b| / |a| and the cosine of the rows of two arrays [C, D]; 0 and NaN where both are zero."""
    apart, one, two = (np.linalg.norm(each, axis=1) for each in (first - second, first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(apart == 0, 0.0, apart / one)
        cosine = (first * second).sum(1) / (one * two)
    return relative, cosine


def _mean_distances(first: list[Array], second: list[Array]) -> tuple[Array, Array]:
    if len({each.shape for each in [*first, *second]}) > 1:  # rows of patterns over prompts of several lengths
        undefined = np.full((len(first[0]), 1), np.nan)
        return undefined, undefined
    relative, cosine = _distance(np.mean(first, axis=0), np.mean(second, axis=0))
    return relative[:, None], cosine[:, None]


def _mean_of_defined(values: Array) -> Array:
    """The mean over pairs [N, C, P] of those that have a value; NaN where none has."""
    counts = np.isfinite(values).sum(0)
    sums = np.where(np.isfinite(values), values, 0.0).sum(0)
    mean: Array = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return mean


def _above(first: Array, second: Array, *, median: bool) -> list[float]:
    limits = [float(np.median(other) if median else other.max()) for other in (second, first)]
    return [float((own > limit).mean()) for own, limit in zip((first, second), limits, strict=True)]


def _labels(groups: Groups) -> list[str]:
    from .sequences import tokens

    if groups.alignment == "last":
        return ["last"]
    texts = [tokens(each.run, each.prompt, each.row).texts[: each.length] for each in [*groups.first, *groups.second]]
    shown = []
    for position in groups.positions:
        here = {text[position] for text in texts}
        shown.append(here.pop() if len(here) == 1 else str(position))
    return shown
