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
        """Takes rows [n, width] and a key for each, int64 [n], none of them negative."""
        if self._k == 0 or rows.size == 0:
            return
        highest = np.fmax.reduce(rows, axis=0)  # NaN only where all are
        columns = np.flatnonzero((highest > self.threshold) & (highest >= self._values[:, -1]))
        if len(columns) == 0:
            return
        values = rows[:, columns].T.astype(np.float64)  # [columns, n]
        values[~np.isfinite(values)] = -np.inf
        least = self._values[columns, -1]
        if len(rows) > self._k:
            least = np.maximum(least, np.partition(values, -self._k, axis=1)[:, -self._k])
        chosen = (values >= least[:, None]) & (values > self.threshold)
        at, row = np.nonzero(chosen)
        columns, first = columns[np.unique(at)], np.unique(at)
        kept = self.keys[columns] != EMPTY
        held, _ = np.nonzero(kept)
        column = np.concatenate([first[held], at])
        value = np.concatenate([self._values[columns][kept], values[at, row]])
        key = np.concatenate([self.keys[columns][kept], keys[row]])
        order = np.lexsort((key, -value, column))
        column, value, key = column[order], value[order], key[order]
        starts = np.searchsorted(column, first)
        rank = np.arange(len(column)) - np.repeat(starts, np.diff(np.append(starts, len(column))))
        best = rank < self._k
        target = columns[np.searchsorted(first, column[best])], rank[best]
        self._values[target] = value[best]
        self.keys[target] = key[best]
