"""Mean, variance and kurtosis of many columns in one pass over their rows, without keeping the rows.

Each block of rows gives its count, mean and sums of powers of the deviations from that mean; blocks are joined with the
formulas of Chan, Golub & LeVeque 1979 (second power) and Pébay 2008, SAND2008-6212, eq. 3.1 (third and fourth), which
subtract no large numbers from each other. All in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_CACHED = 1 << 18  # elements of a block whose float64 copies stay in the processor's cache


class Moments:
    """Running statistics of `width` columns; `add` rows in as many blocks as they come in.

    Values that are NaN or infinite are counted in `not_finite` and enter nothing else. A column is active in a row
    where its value is above `threshold`.
    """

    def __init__(self, width: int, threshold: float = 0.0):
        self.threshold = threshold
        self.count = np.zeros(width, np.int64)  # finite values
        self.active = np.zeros(width, np.int64)
        self.not_finite = np.zeros(width, np.int64)
        self.minimum = np.full(width, np.inf)
        self.maximum = np.full(width, -np.inf)
        self.mean = np.zeros(width)
        self._second = np.zeros(width)  # sums of powers of the deviations from the mean
        self._third = np.zeros(width)
        self._fourth = np.zeros(width)

    def add(self, rows: Array) -> None:
        """Takes rows of shape [n, width], of any float dtype."""
        width = len(self.count)
        step = min(max(_CACHED // max(width, 1), 16), 1024)
        for start in range(0, len(rows), step):
            self._add_block(rows[start : start + step])

    def _add_block(self, rows: Array) -> None:
        wide = rows.astype(np.float64)
        count: Array | int = len(rows)
        with np.errstate(invalid="ignore", over="ignore"):
            total = wide.sum(axis=0)
        lowest, highest = wide, wide
        finite = None
        if not np.isfinite(total).all():  # so some value is not, or float64 values have overflowed their sum
            finite = np.isfinite(wide)
            count = finite.sum(axis=0)
            lowest, highest = np.where(finite, wide, np.inf), np.where(finite, wide, -np.inf)
            wide[~finite] = 0
            total = wide.sum(axis=0)
        self.active += (highest > self.threshold).sum(axis=0)
        self.not_finite += len(rows) - count
        np.minimum(self.minimum, lowest.min(axis=0), out=self.minimum)
        np.maximum(self.maximum, highest.max(axis=0), out=self.maximum)
        mean = total / np.maximum(count, 1)
        wide -= mean
        if finite is not None:
            wide[~finite] = 0
        squares = wide * wide
        second = squares.sum(axis=0)
        third = np.einsum("ij,ij->j", squares, wide)
        fourth = np.einsum("ij,ij->j", squares, squares)
        self._join(count, mean, second, third, fourth)

    def _join(self, count: Array | int, mean: Array, second: Array, third: Array, fourth: Array) -> None:
        a, b = self.count.astype(np.float64), np.asarray(count, np.float64)
        n = np.maximum(a + b, 1)
        delta = mean - self.mean
        share = delta / n  # δ / n of the paper
        square = share * share
        ab = a * b
        self._fourth += (
            fourth
            + ab * (a * a - ab + b * b) * square * share * delta
            + 6 * square * (a * a * second + b * b * self._second)
            + 4 * share * (a * third - b * self._third)
        )
        self._third += third + ab * (a - b) * square * delta + 3 * share * (a * second - b * self._second)
        self._second += second + ab * share * delta
        self.mean += b * share
        self.count += count

    @property
    def variance(self) -> Array:
        """Population variance: the mean square of the deviations. NaN without a value."""
        with np.errstate(invalid="ignore"):
            return np.where(self._constant, np.where(self.count > 0, 0.0, np.nan), self._second / self.count)

    @property
    def kurtosis(self) -> Array:
        """Excess kurtosis of the population, μ₄ / μ₂² - 3: 0 for a normal distribution, and the higher the more
        a few values stand out. NaN for a column of equal values.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            kurtosis = self.count * self._fourth / (self._second * self._second) - 3
        return np.where(self._constant, np.nan, kurtosis)

    @property
    def density(self) -> Array:
        """The share of finite values that are above the threshold. NaN without a value."""
        with np.errstate(invalid="ignore"):
            return self.active / self.count

    @property
    def _constant(self) -> Array:
        # Not `second == 0`: the rounded mean of equal values can differ from them in the last bit.
        return self.minimum >= self.maximum
