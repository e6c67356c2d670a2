"""Permutation tests against brute force, corrections against sums done by hand, and what they give where there is
nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from neuroscope_fast.analysis.permutation import (
    benjamini_hochberg,
    cohens_dz,
    hedges_g,
    independent_test,
    paired_test,
)
from neuroscope_fast.errors import OptionError


def grams(vectors: np.ndarray) -> np.ndarray:
    """[C, n, D] to [C, n, n]"""
    return np.einsum("cid,cjd->cij", vectors, vectors)


def t_statistic(values: list[float]) -> float:
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    if squares == 0:
        return math.inf if mean else 0.0
    return abs(mean) / math.sqrt(squares / (len(values) - 1) / len(values))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_paired_p_is_that_of_all_sign_flips_of_the_t_statistic(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.4, 1, (3, count))
    found = paired_test(grams(differences[..., None]))
    for component, values in enumerate(differences):
        flipped = [
            t_statistic([sign * value for sign, value in zip(signs, values, strict=True)])
            for signs in itertools.product((1, -1), repeat=count)
        ]
        observed = t_statistic(list(values))
        p = sum(each >= observed - 1e-9 for each in flipped) / len(flipped)
        assert found.p[component] == pytest.approx(p)
    assert (found.arrangements, found.exact, found.smallest_p) == (2**count, True, 2 / 2**count)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (3, 4), (1, 3), (4, 4)])
def test_independent_p_is_that_of_all_labellings_of_the_t_statistic(first: int, second: int) -> None:
    random = np.random.default_rng(first * 10 + second)
    everything = random.normal(0, 1, (3, first + second))
    found = independent_test(grams(everything[..., None]), first)

    def between(values: np.ndarray, chosen: tuple[int, ...]) -> float:
        one = [value for place, value in enumerate(values) if place in chosen]
        two = [value for place, value in enumerate(values) if place not in chosen]
        return abs(sum(one) / len(one) - sum(two) / len(two))  # grows with |t|: the sum of squares is one and the same

    labellings = list(itertools.combinations(range(first + second), first))
    for component, values in enumerate(everything):
        observed = between(values, tuple(range(first)))
        p = sum(between(values, chosen) >= observed - 1e-9 for chosen in labellings) / len(labellings)
        assert found.p[component] == pytest.approx(p)
    assert found.smallest_p == (2 if first == second else 1) / len(labellings)
    assert found.exact


def test_vectors_are_tested_by_the_length_of_their_mean() -> None:
    vectors = np.random.default_rng(3).normal(0.3, 1, (2, 5, 4))
    found = paired_test(grams(vectors))
    for component, rows in enumerate(vectors):
        lengths = [
            float(np.linalg.norm(np.array(signs) @ rows)) for signs in itertools.product((1, -1), repeat=len(rows))
        ]
        assert found.p[component] == pytest.approx(sum(each >= lengths[0] - 1e-9 for each in lengths) / 32)
        share = lengths[0] ** 2 / (len(rows) * sum(float(row @ row) for row in rows))
        assert found.statistic[component] == pytest.approx(share)


def test_the_permanova_statistic_is_between_over_total() -> None:
    vectors = np.random.default_rng(4).normal(0, 1, (1, 7, 3))
    found = independent_test(grams(vectors), 3)
    rows = vectors[0]
    centre = rows.mean(0)
    total = sum(float(((row - centre) ** 2).sum()) for row in rows)
    between = sum(len(group) * float(((group.mean(0) - centre) ** 2).sum()) for group in (rows[:3], rows[3:]))
    assert found.statistic[0] == pytest.approx(between / total)


def test_the_family_p_is_that_of_the_largest_statistic() -> None:
    differences = np.random.default_rng(5).normal(0.5, 1, (4, 6))
    found = paired_test(grams(differences[..., None]))
    largest = []
    observed = []
    for number, signs in enumerate(itertools.product((1, -1), repeat=6)):
        each = [
            sum(s * d for s, d in zip(signs, row, strict=True)) ** 2 / (6 * sum(d * d for d in row))
            for row in differences
        ]
        largest.append(max(each))
        if number == 0:
            observed = each
    for component, value in enumerate(observed):
        assert found.p_family[component] == pytest.approx(sum(big >= value - 1e-9 for big in largest) / 64)
    assert (found.p_family >= found.p).all()


def test_random_arrangements_count_the_observed_one() -> None:
    differences = np.full((1, 40, 1), 1.0) + np.random.default_rng(0).normal(0, 0.01, (1, 40, 1))
    found = paired_test(grams(differences), permutations=99, seed=1)
    assert not found.exact
    assert found.arrangements == 100
    assert found.p[0] == found.smallest_p == 0.01  # never 0
    again = paired_test(grams(differences), permutations=99, seed=1)
    assert (again.p == found.p).all()


def test_random_arrangements_come_near_to_all_of_them() -> None:
    values = np.random.default_rng(8).normal(0.3, 1, (5, 14))  # 16,384 arrangements: too many to enumerate
    found = paired_test(grams(values[..., None]), permutations=20_000, seed=2)
    signs = np.array(list(itertools.product((1, -1), repeat=14)))
    for component, row in enumerate(values):
        exact = (np.abs(signs @ row) >= abs(row.sum()) - 1e-9).mean()
        assert found.p[component] == pytest.approx(exact, abs=0.02)


def test_nothing_differs() -> None:
    for found in (paired_test(np.zeros((2, 4, 4))), independent_test(np.ones((2, 5, 5)), 2)):
        assert (found.statistic == 0).all()
        assert (found.p == 1).all()
        assert (found.p_family == 1).all()
        assert (found.q == 1).all()


def test_three_pairs_cannot_be_significant() -> None:
    found = paired_test(np.ones((1, 3, 3)))
    assert found.smallest_p == found.p[0] == 0.25


def test_one_pair_has_p_1() -> None:
    assert paired_test(np.ones((1, 1, 1))).p[0] == 1


@pytest.mark.parametrize("paired", [True, False])
def test_p_is_uniform_where_there_is_no_effect(paired: bool) -> None:
    random = np.random.default_rng(11)
    values = random.normal(0, 1, (400, 12, 1))
    found = paired_test(grams(values)) if paired else independent_test(grams(values), 6)
    ordered = np.sort(found.p)
    distance = np.abs(ordered - np.arange(1, 401) / 400).max()
    assert distance < 1.63 / math.sqrt(400)  # Kolmogorov-Smirnov at 0.01; the seed is fixed


def test_the_family_p_holds_the_rate_of_any_false_finding() -> None:
    random = np.random.default_rng(12)
    false = [paired_test(grams(random.normal(0, 1, (30, 8, 1)))).p_family.min() <= 0.05 for _ in range(300)]
    assert sum(false) / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_planted_effect_is_found_and_only_that() -> None:
    random = np.random.default_rng(13)
    values = random.normal(0, 1, (40, 12, 1))
    values[17] += 3
    found = paired_test(grams(values))
    assert np.flatnonzero(found.p_family <= 0.05).tolist() == [17]


def test_benjamini_hochberg_by_hand() -> None:
    # sorted: 0.01, 0.02, 0.03, 0.5; times 4 / rank: 0.04, 0.04, 0.04, 0.5
    assert benjamini_hochberg(np.array([0.03, 0.5, 0.01, 0.02])).tolist() == pytest.approx([0.04, 0.5, 0.04, 0.04])
    # 0.04 * 3 / 1 = 0.12 and 0.045 * 3 / 2 = 0.0675 sink to 0.05 * 3 / 3
    assert benjamini_hochberg(np.array([0.04, 0.045, 0.05])).tolist() == pytest.approx([0.05, 0.05, 0.05])
    assert benjamini_hochberg(np.array([1.0])).tolist() == [1.0]
    assert benjamini_hochberg(np.array([])).tolist() == []


def test_benjamini_hochberg_rejects_as_the_step_up_rule() -> None:
    random = np.random.default_rng(14)
    for _ in range(20):
        p = random.uniform(0, 0.2, 15).round(2)
        ordered = sorted(p)
        passing = [k for k in range(1, 16) if ordered[k - 1] <= 0.05 * k / 15]
        limit = ordered[passing[-1] - 1] if passing else -1.0
        assert ((benjamini_hochberg(p) <= 0.05 + 1e-12) == (p <= limit)).all()


@pytest.mark.parametrize("bad", [[math.nan], [-0.1], [1.1]])
def test_benjamini_hochberg_refuses_what_is_no_probability(bad: list[float]) -> None:
    with pytest.raises(OptionError, match="between 0 and 1"):
        benjamini_hochberg(np.array(bad))


def test_effect_sizes_by_hand() -> None:
    assert cohens_dz(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert cohens_dz(np.array([-1.0, -2.0, -3.0])) == pytest.approx(-2.0)
    # means 2 and 5, each sum of squares 2, 4 degrees of freedom: sd 1, d = -3; J(4) = gamma(2) / (sqrt(2) gamma(1.5))
    expected = -3 * math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))
    assert hedges_g(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])) == pytest.approx(expected)


def test_effect_sizes_at_their_limits() -> None:
    assert cohens_dz(np.zeros(3)) == 0
    assert cohens_dz(np.full(3, 0.1)) == math.inf
    assert cohens_dz(np.full(3, -0.1)) == -math.inf
    assert math.isnan(cohens_dz(np.array([1.0])))
    assert math.isnan(hedges_g(np.array([1.0, 2.0]), np.array([3.0])))
    assert hedges_g(np.ones(3), np.ones(3)) == 0
    assert hedges_g(np.ones(3), np.zeros(3)) == math.inf


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(OptionError, match="finite"):
        paired_test(np.full((1, 2, 2), np.nan))
    with pytest.raises(OptionError, match="at least one sequence"):
        paired_test(np.zeros((1, 0, 0)))
    with pytest.raises(OptionError, match="two groups"):
        independent_test(np.ones((1, 3, 3)), 3)
    with pytest.raises(OptionError, match="permutations is 0"):
        paired_test(np.ones((1, 20, 20)), permutations=0)
