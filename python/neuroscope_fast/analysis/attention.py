"""What a model looks at: scores and a label for each attention head, and what each new token was chosen from.

`attention(run)` works from whole patterns, and as far as they carry it from the reductions `entropy`, `sink`,
`previous`, `top_k`, `mean` and `max`. Definitions: docs/attention_patterns.md.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from ..reader import Run
from .attended import Attended, attended
from .attention_scores import DUPLICATE, FEWEST_QUERIES, FIRST, INDUCTION, PREVIOUS, STANDS_OUT, CURRENT, Totals
from .attention_sources import Places, measure
from .tables import Table

Array = np.ndarray[Any, Any]

SCORES: dict[str, str] = {
    "previous_token_score": "previous-token score",
    "induction_score": "induction score",
    "duplicate_token_score": "duplicate-token score",
    "first": "mass on the first token",
    "previous": "mass on the previous token",
    "current": "mass on the current token",
    "entropy": "entropy (nats)",
}
"""The scores of a head, and what they are called."""

LABELS: dict[str, str] = {
    "previous_token": "looks at the token before its own",
    "induction": "looks at what followed the same token earlier: it can copy a sequence on",
    "duplicate_token": "looks at earlier places of the same token",
    "current_token": "looks at its own token",
    "first_token": "rests on the first token",
    "none": "no score stands out",
    "unknown": "could not be judged",
}
"""The labels of heads, and what each means."""


class HeadScore(msgspec.Struct, frozen=True, kw_only=True):
    """One head, averaged over the queries of all prompts; NaN is what the run does not carry.

    layer: None where the module's path has no number. label: one of LABELS. label_score: the score that gave it,
    chance: what uniform attention would have had for it, strength: (score - chance) / (1 - chance), of heads labelled
    `none` that of the strongest score. entropy: nats. first, previous, current, and the three scores: probabilities.
    queries: over which the masses are averaged; induction_queries, duplicate_queries: those scores. lower_bound: the
    run lists only the largest weights of each query, and the rest of the attention is not counted.
    """

    layer: int | None
    layer_name: str
    head: int
    label: str
    label_score: float
    chance: float
    strength: float
    entropy: float
    first: float
    previous: float
    current: float
    previous_token_score: float
    induction_score: float
    duplicate_token_score: float
    queries: int
    induction_queries: int
    duplicate_queries: int
    lower_bound: bool

    @property
    def name(self) -> str:
        """`layer.head`."""
        return f"{self.layer_name if self.layer is None else self.layer}.{self.head}"


class AttentionPatterns(msgspec.Struct, frozen=True):
    """heads: the strongest first, those that could not be judged last. attended: what each new token was chosen from.
    attended_over: what its weights are a mean of. notes: what the run does not carry, and the mend.
    """

    heads: list[HeadScore]
    attended: list[Attended]
    attended_over: str
    notes: list[str]

    def ranked(self, score: str) -> list[HeadScore]:
        """The heads of which this score, a name of SCORES, is a number, the highest first."""
        known = [head for head in self.heads if math.isfinite(getattr(head, score))]
        return sorted(known, key=lambda head: -float(getattr(head, score)))

    def grid(self, score: str) -> tuple[list[str], Array]:
        """Names of the layers, and the score float64 [layers, heads]; NaN where there is no number or no such head."""
        places = sorted({(head.layer is None, head.layer or 0, head.layer_name) for head in self.heads})
        rows = {name: number for number, (_, _, name) in enumerate(places)}
        values = np.full((len(places), max((head.head + 1 for head in self.heads), default=0)), np.nan)
        for head in self.heads:
            values[rows[head.layer_name], head.head] = getattr(head, score)
        return [name if is_unnumbered else str(layer) for is_unnumbered, layer, name in places], values

    def tables(self, most: int = 12) -> list[Table]:
        """What the heads do, what each new token was chosen from, and all scores. `most`: rows of the second."""
        found = [_labels_table(self.heads, self.notes)] if self.heads else []
        if self.attended:
            found.append(_attended_table(self.attended[:most], self.attended_over, len(self.attended) - most))
        return [*found, _scores_table(self.heads)] if self.heads else found


def attention(run: Run, *, layer: int | None = None, head: int | None = None, top: int = 5) -> AttentionPatterns:
    """Head scores, and the `top` tokens that each new token was chosen from.

    layer, head: choose whose attention the latter is (None: the mean over the heads of each layer, then over the
    layers). Raises MissingActivations where the run holds no attention patterns and no reductions of them, RunError
    where it does not hold the layer or head.
    """
    places = measure(run)
    looked, over, about = attended(run, layer=layer, head=head, top=top)
    heads = [score for place in places.layers for score in _scores(place.layer, place.layer_name, place.totals)]
    heads.sort(key=lambda each: (math.isnan(each.strength), each.label == "none", -each.strength))
    return AttentionPatterns(heads, looked, over, [*_notes(places, heads), *about])
