"""Streaming moments and top-k against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.analysis.moments import Moments
from neuroscope_fast.analysis.top_activations import EMPTY, TopActivations

Array = np.ndarray[Any, Any]


def moments_of(values: list[float]) -> tuple[float, float, float]:
    """Mean, population variance and excess kurtosis by their definitions, in two passes."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return math.nan, math.nan, math.nan
    n = len(values)
    mean = math.fsum(values) / n
    second = math.fsum((value - mean) ** 2 for value in values) / n
    fourth = math.fsum((value - mean) ** 4 for value in values) / n
    if min(values) == max(values):
        return mean, 0.0, math.nan
    return mean, second, fourth / second**2 - 3


def largest_of(values: list[float], keys: list[int], k: int, threshold: float) -> list[tuple[float, int]]:
    able = [(-v, key) for v, key in zip(values, keys, strict=True) if math.isfinite(v) and v > threshold]
    return [(-v, key) for v, key in sorted(able)[:k]]


def check(rows: Array, cuts: list[int], threshold: float = 0.0, k: int = 3) -> None:
    moments = Moments(rows.shape[1], threshold)
    top = TopActivations(rows.shape[1], k, threshold)
    keys = np.arange(len(rows))[::-1].copy()  # the last row has the smallest key
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        moments.add(rows[start:stop])
        top.add(rows[start:stop], keys[start:stop])
    for number in range(rows.shape[1]):
        column = [float(value) for value in rows[:, number]]
        mean, variance, kurtosis = moments_of(column)
        finite = [value for value in column if math.isfinite(value)]
        assert moments.count[number] == len(finite)
        assert moments.not_finite[number] == len(column) - len(finite)
        assert moments.active[number] == sum(value > threshold for value in finite)
        if finite:
            assert moments.mean[number] == pytest.approx(mean, rel=1e-12, abs=1e-12)
            assert moments.minimum[number] == min(finite)
            assert moments.maximum[number] == max(finite)
            assert moments.density[number] == sum(value > threshold for value in finite) / len(finite)
        else:
            assert math.isnan(moments.density[number])
        assert moments.variance[number] == pytest.approx(variance, rel=1e-9, abs=1e-15, nan_ok=True)
        assert moments.kurtosis[number] == pytest.approx(kurtosis, rel=1e-7, abs=1e-7, nan_ok=True)
        expected = largest_of(column, keys.tolist(), k, threshold)
        kept = [(v, key) for v, key in zip(top.values[number], top.keys[number], strict=True) if key != EMPTY]
        assert kept == expected
        assert np.isnan(top.values[number, len(kept) :]).all()
        assert (top.keys[number, len(kept) :] == EMPTY).all()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_loops(count: int, dtype: Any) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 5)).astype(dtype)
    check(rows, [])
    check(rows, [count // 2])
    check(rows, list(range(1, count)))


@pytest.mark.filterwarnings("error")
def test_values_that_are_no_numbers_enter_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6))
    rows[3, 0] = np.nan
    rows[5, 1] = np.inf
    rows[6, 1] = -np.inf
    rows[:, 2] = np.nan
    rows[:39, 3] = np.inf
    rows[:, 4] = -np.inf
    for cuts in ([], [4], [39], list(range(1, 40))):
        check(rows.astype(np.float32), cuts)
        check(rows, cuts, threshold=-math.inf)


def test_equal_values_have_no_kurtosis() -> None:
    for value in (0.0, 0.1, -7.3, 1e30):
        moments = Moments(1)
        for count in (1, 2, 5, 90):
            moments.add(np.full((count, 1), value, np.float32))
        assert moments.variance[0] == 0
        assert math.isnan(moments.kurtosis[0])


def test_no_rows_and_no_columns() -> None:
    moments = Moments(3)
    moments.add(np.zeros((0, 3), np.float32))
    assert np.isnan(moments.variance).all()
    assert np.isnan(moments.kurtosis).all()
    assert np.isnan(moments.density).all()
    Moments(0).add(np.zeros((4, 0), np.float32))
    top = TopActivations(2, 0)
    top.add(np.ones((3, 2)), np.arange(3))
    assert top.keys.shape == (2, 0)


def test_a_large_mean_costs_no_digits() -> None:
    """A sum of squares would lose all of them: 1e8² has no room for a variance of 1 in float64."""
    rows = np.random.default_rng(1).normal(size=(3000, 2)) + np.array([1e8, -1e10])
    for cuts in ([], list(range(7, 3000, 7))):
        moments = Moments(2)
        for start, stop in zip([0, *cuts], [*cuts, 3000], strict=True):
            moments.add(rows[start:stop])
        for number in range(2):
            _, variance, kurtosis = moments_of(rows[:, number].tolist())
            assert moments.variance[number] == pytest.approx(variance, rel=1e-5)
            assert moments.kurtosis[number] == pytest.approx(kurtosis, abs=1e-4)


def test_more_rows_than_a_block() -> None:
    rows = np.random.default_rng(2).standard_t(3, size=(5000, 3)).astype(np.float32)
    check(rows, [], k=10)
    check(rows, [1, 4999], k=10, threshold=2.5)


@given(st.data())
def test_any_cut_gives_the_same(data: st.DataObject) -> None:
    numbers = st.floats(-100, 100, width=16) | st.sampled_from([0.0, 1.0, 1.0, math.nan, math.inf, -math.inf])
    rows = np.array(data.draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)), np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=4)))
    check(rows, cuts, threshold=data.draw(st.sampled_from([0.0, 1.0, -2.0, -math.inf])), k=data.draw(st.integers(1, 4)))


def test_a_threshold_between_two_float32_numbers() -> None:
    below, above = np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))  # float32(0.1) is above 0.1
    rows = np.array([[np.nextafter(below, np.float32(0))], [below], [above]])
    top = TopActivations(1, 3, 0.1)
    top.add(rows, np.arange(3))
    assert top.keys.tolist() == [[2, 1, EMPTY]]
    top = TopActivations(1, 3, float(below))
    top.add(rows, np.arange(3))
    assert top.keys.tolist() == [[2, EMPTY, EMPTY]]
