"""What a comparison of two groups of prompts found."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from .circuit_groups import Component
from .tables import Cell, Table

Array = np.ndarray[Any, Any]
Measure = Literal["norm", "direction"]

CONSISTENT = 0.9
"""A component is consistently more active in a group if this share of the group lies above the other's median."""


class Comparison(msgspec.Struct, frozen=True):
    """C components compared in a first group (clean) and a second one (corrupted).

    Of the test: `effects` is Cohen's d_z (pairs) or Hedges' g (groups), positive where the first group has more, and
    for `direction` R², without sign. `p` is of each component alone, `p_family` corrected by the maximum statistic
    (Westfall & Young: the probability of even one false finding), `q` by Benjamini & Hochberg (the share of false
    ones among the findings).
    """

    paired: bool
    measure: Measure
    effect_name: str
    components: list[Component]
    first: Array
    """The summaries as numbers (norms, masses), float64 [C, sequences of the first group]; `second` of the second."""
    second: Array
    effects: Array
    p: Array
    p_family: Array
    q: Array
    arrangements: int
    exact: bool
    smallest_p: float
    alpha: float
    alignment: Literal["start", "end", "last"]
    positions: list[int]
    """The P positions of the maps, counted from the start, or negative from the end."""
    labels: list[str]
    """Their tokens where all pairs have the same one there, else their numbers."""
    difference: Array
    """|a - b| / |a|, the mean over pairs, [C, P]; of independent groups that of the groups' mean vectors. NaN where a
    position was not captured or rows of patterns have other lengths."""
    cosine: Array
    """a · b / (|a| |b|), likewise; NaN too where a vector is zero."""
    above_median: Array
    """[C, 2]: share of the first group above the second's median, and of the second above the first's."""
    above_all: Array
    """[C, 2]: the same, above all of the other group."""
    left_out: list[str]
    """Hooks that were not compared, each with the reason."""

    def found(self) -> list[Component]:
        """The components whose difference holds after the correction for all of them (`p_family`)."""
        return [component for component, p in zip(self.components, self.p_family, strict=True) if p <= self.alpha]

    def consistent(self) -> list[int]:
        """For each component 1 where it is consistently more active in the first group, -1 in the second, else 0."""
        above, below = (self.above_median >= CONSISTENT).T
        return [int(sign) for sign in above.astype(int) - below.astype(int)]

    def verdict(self) -> str:
        """What the test can say and says, in a sentence or two."""
        how = "all" if self.exact else "random ones with the observed"
        unit = "pairs" if self.paired else "sequences"
        size = str(self.first.shape[1]) if self.paired else f"{self.first.shape[1]} and {self.second.shape[1]}"
        smallest = f"with {size} {unit} the smallest p is {self.smallest_p:.3g}"
        if self.smallest_p > self.alpha:
            return f"no component can be significant at {self.alpha:g}: {smallest}; take more prompts"
        return (
            f"{len(self.found())} of {len(self.components)} components differ at a family-wise {self.alpha:g} "
            f"(maximum statistic), {int((self.q <= self.alpha).sum())} at a false discovery rate of {self.alpha:g} "
            f"(Benjamini-Hochberg); {smallest} ({self.arrangements} arrangements, {how})"
        )

    def tables(self) -> list[Table]:
        """The components that differ most, and those consistently active in one group."""
        order = np.lexsort((-np.nan_to_num(np.abs(self.effects), nan=-1.0, posinf=np.inf), self.p, self.p_family))
        groups = ("first", "second")
        rows: list[list[Cell]] = []
        for c in order[:12]:
            means = [float(values[c].mean()) for values in (self.first, self.second)]
            tested: list[Cell] = [float(each[c]) for each in (self.effects, self.p, self.p_family, self.q)]
            rows.append([self.components[c].name, *means, *tested, _number(self.difference[c, -1])])
        summary = "norm or mass off the first token, at the last position of the prompt"
        columns = ["component", "mean, first", "mean, second", self.effect_name, "p", "p, FWER", "q, FDR", "|a-b|/|a|"]
        tables = [
            Table("Components that differ between the groups", columns, rows, f"means: {summary}. {self.verdict()}.")
        ]
        signs = self.consistent()
        steady: list[list[Cell]] = [
            [
                self.components[c].name,
                groups[0 if signs[c] > 0 else 1],
                float(self.above_median[c, 0 if signs[c] > 0 else 1]),
                float(self.above_all[c, 0 if signs[c] > 0 else 1]),
            ]
            for c in order
            if signs[c]
        ]
        note = f"{len(steady)} of {len(signs)}; described, not tested: with few prompts chance alone gives some"
        columns = ["component", "more active in", "share above the other's median", "above all of the other"]
        tables.append(Table("Components consistently active in one group", columns, steady[:12], note))
        if self.left_out:
            tables.append(Table("Not compared", ["hook and reason"], [[reason] for reason in self.left_out]))
        return tables


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
