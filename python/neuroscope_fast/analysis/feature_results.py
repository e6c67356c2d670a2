"""What feature detection gives: typed results, and the order of neurons by selectivity."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from .feature_profiles import Profile
from .feature_tables import tables_of
from .tables import Table

Array = np.ndarray[Any, Any]

LEAST_ACTIVE = 2
"""Positions at which a neuron must be active to be called selective: of one, nothing can be said."""


class Reconstruction(msgspec.Struct, frozen=True):
    """How well a sparse autoencoder gives back what it was given, over `positions` positions.

    `mse`: the mean squared error of one number. `explained_variance`: 1 - sum |x - x̂|² / sum |x - mean of x|²,
    NaN where all positions are equal. `l0`: features above 0 at a position, on average. `not_finite`: positions left
    out, since what was captured there is NaN or infinite.
    """

    autoencoder: str
    architecture: str
    positions: int
    mse: float
    explained_variance: float
    l0: float
    not_finite: int


class LayerFeatures(msgspec.Struct, frozen=True):
    """The neurons of one hook (`unit`: "neuron", "dimension" of what is no neuron, "feature" of an autoencoder).

    Of each of N neurons, over its finite values, arrays [N]: `mean`, population `variance`, excess `kurtosis` of the
    population (NaN where all values are equal), `minimum`, `maximum` (NaN without a value), `density` (the share of
    values above `threshold`), `active` (how many), `not_finite` (values that are NaN or infinite, which are in no other
    number), `dead` (never above the threshold) and `always_zero`. `top_*` [N, k]: the largest values above the
    threshold, largest first and of equal ones the first of the run; NaN and -1 where there were fewer. Their positions
    are counted from the first real token of the sequence; -1 too where the run does not say.
    """

    hook_id: str
    layer: int | None
    component: str
    unit: str
    positions: int
    threshold: float
    mean: Array
    variance: Array
    kurtosis: Array
    minimum: Array
    maximum: Array
    density: Array
    active: Array
    not_finite: Array
    dead: Array
    always_zero: Array
    top_values: Array
    top_prompts: Array
    top_rows: Array
    top_positions: Array
    profiles: list[Profile]
    reconstruction: Reconstruction | None = None

    def most_selective(self, count: int) -> list[int]:
        """The neurons of the highest kurtosis, highest first, of those that are active at least twice and whose largest
        value is above 0 and further from it than the smallest: what stands out is then what the contexts show.
        """
        return most_selective(self.kurtosis, self.active, self.minimum, self.maximum, count)


class Features(msgspec.Struct, frozen=True):
    """Feature detection of a run: one entry for each hook. `skip_first`: positions left out at the start of each
    sequence.
    """

    layers: list[LayerFeatures]
    skip_first: int

    def tables(self) -> list[Table]:
        """What the most selective neurons respond to, then a line for each hook."""
        return tables_of(self)


def most_selective(kurtosis: Array, active: Array, minimum: Array, maximum: Array, count: int) -> list[int]:
    """What `LayerFeatures.most_selective` says, of arrays [N]."""
    with np.errstate(invalid="ignore"):
        upward = maximum > np.maximum(-minimum, 0)
    (able,) = np.nonzero(~np.isnan(kurtosis) & (active >= LEAST_ACTIVE) & upward)
    order = np.argsort(-kurtosis[able], kind="stable")
    return [int(number) for number in able[order][:count]]
