"""The k largest values of many columns and where they stood, as rows come in."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

EMPTY = -1
"""The key where a column has had fewer than k values above the threshold."""


class TopActivations:
    """Keeps, for each of `width` columns, the `k` largest finite values above `threshold`, largest first.

    values: float64 [width, k], NaN where there were fewer. keys: int64 [width, k], what was given with the row. Of
    equal values those with the smallest keys are kept, the smallest first, in whatever order rows came.
    """

    def __init__(self, width: int, k: int, threshold: float = 0.0):
        self.threshold = threshold
        self._k = k
        self._values = np.full((width, k), -np.inf)
        self.keys = np.full((width, k), EMPTY, np.int64)

    @property
    def values(self) -> Array:
        return np.where(self.keys == EMPTY, np.nan, self._values)

    def add(self, rows: Array, keys: Array) -> None:
        """Takes rows [n, width] of a float dtype and a key for each, int64 [n], none of them negative."""
        if self._k == 0 or rows.size == 0:
            return
        row, column = np.nonzero(rows >= self._least(rows.dtype))
        row, column = self._thinned(rows, row, column)
        value = rows[row, column].astype(np.float64)
        finite = np.isfinite(value)
        self._keep(column[finite], value[finite], keys[row[finite]])

    def _least(self, dtype: np.dtype[Any]) -> Array:
        """The smallest value of each column that can still be among its largest."""
        lowest = np.asarray(self.threshold, dtype)
        if float(lowest) <= self.threshold:
            lowest = np.nextafter(lowest, np.asarray(np.inf, dtype))
        least: Array = np.maximum(self._values[:, -1].astype(dtype), lowest)
        return least

    def _thinned(self, rows: Array, row: Array, column: Array) -> tuple[Array, Array]:
        """Without those that k others of the same column in these rows are larger than: sorting is what takes time."""
        crowded = np.bincount(column, minlength=rows.shape[1]) > self._k
        if not crowded.any():
            return row, column
        values = rows[:, crowded].T.copy()
        values[~np.isfinite(values)] = -np.inf
        least = np.full(rows.shape[1], -np.inf, rows.dtype)
        least[crowded] = np.partition(values, -self._k, axis=1)[:, -self._k]
        large = rows[row, column] >= least[column]
        return row[large], column[large]

    def _keep(self, column: Array, value: Array, key: Array) -> None:
        """Sorts new values in among those of their columns."""
        columns = np.unique(column)
        held, place = np.nonzero(self.keys[columns] != EMPTY)
        column = np.concatenate([columns[held], column])
        value = np.concatenate([self._values[columns[held], place], value])
        key = np.concatenate([self.keys[columns[held], place], key])
        order = np.lexsort((key, -value, column))
        column, value, key = column[order], value[order], key[order]
        rank = np.arange(len(column)) - np.searchsorted(column, column)
        best = rank < self._k
        self._values[column[best], rank[best]] = value[best]
        self.keys[column[best], rank[best]] = key[best]
