"""What a model looks at: scores and a label for each attention head, and what each new token was chosen from.

`attention(run)` works from whole patterns, and as far as they carry it from the reductions `entropy`, `sink`,
`previous`, `top_k`, `mean` and `max`. Definitions: docs/attention_patterns.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..reader import Run
from .attended import Attended, attended
from .attention_scores import CURRENT, DUPLICATE, FEWEST_QUERIES, FIRST, INDUCTION, PREVIOUS, STANDS_OUT
from .attention_sources import Layer, measure, sequences_of, sources, wanted
from .sequences import prompt_numbers, rows, tokens
from .tables import Cell, Table

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

COLUMNS = ("previous-token", "induction", "duplicate", "first", "previous", "current", "entropy")
"""The same, as short as a column of a table wants them."""

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
        """What the heads do, what each new token was chosen from, and all scores. `most`: rows of the last two."""
        found = [_labels_table(self.heads)] if self.heads else []
        if self.attended:
            found.append(_attended_table(self.attended, self.attended_over, most))
        if self.heads:
            found.append(_scores_table(self.heads, most))
        if self.notes:
            note = " ".join([*(each.note for each in found[:1]), *(f"{note}." for note in self.notes)])
            found[:1] = [msgspec.structs.replace(each, note=note) for each in found[:1]]
        return found


def attention(
    run: Run,
    prompt: int | None = None,
    row: int | None = None,
    *,
    layer: int | None = None,
    head: int | None = None,
    top: int = 5,
) -> AttentionPatterns:
    """Head scores, and the `top` tokens that each new token was chosen from.

    prompt, row: look at this prompt, or this row of batches, alone (None: at all). layer, head: choose whose attention
    the latter is (None: the mean over the heads of each layer, then over the layers). Raises MissingActivations where
    the run holds no attention patterns and no reductions of them, RunError where it does not hold the prompt, layer or
    head.
    """
    among = sources(run)
    chosen = sequences_of(run, prompt, row)
    layers = measure(run, among, chosen)
    looked = attended(run, among, chosen, layer=layer, head=head, top=top)
    heads = [score for each in layers for score in _scores(each)]
    heads.sort(key=lambda each: (math.isnan(each.strength), each.label == "none", -each.strength))
    notes = [*_notes(run, heads), *([looked.note] if looked.note else [])]
    return AttentionPatterns(heads, looked.queries, looked.over, notes)


def _scores(layer: Layer) -> list[HeadScore]:
    totals = layer.totals
    scores, counts = totals.scores(), totals.count
    entropy, previous, bounds = totals.entropy(), totals.previous_key(), totals.is_lower_bound()
    return [
        HeadScore(
            layer=layer.number,
            layer_name=layer.module,
            head=head,
            label=label.name,
            label_score=label.score,
            chance=label.chance,
            strength=label.strength,
            entropy=float(entropy[number]),
            first=float(scores[FIRST, number]),
            previous=float(previous[number]),
            current=float(scores[CURRENT, number]),
            previous_token_score=float(scores[PREVIOUS, number]),
            induction_score=float(scores[INDUCTION, number]),
            duplicate_token_score=float(scores[DUPLICATE, number]),
            queries=int(totals.queries[number]),
            induction_queries=int(counts[INDUCTION, number]),
            duplicate_queries=int(counts[DUPLICATE, number]),
            lower_bound=bool(bounds[number]),
        )
        for number, (head, label) in enumerate(zip(totals.heads, totals.labels(), strict=True))
    ]


def _notes(run: Run, heads: list[HeadScore]) -> list[str]:
    """What is not in the scores, and how to have it."""
    if not heads:
        mend = f"capture whole patterns with --hook '{wanted(run)}'"
        return [f"The run holds attention reduced over the heads, and so nothing of single ones: {mend}"]
    found = []
    absent = [SCORES[name] for name in ("entropy", "first", "previous") if _none_has(heads, name)]
    if _none_has(heads, "current"):  # the one score that nothing but whole patterns and top_k carry
        absent += ["mass on the current token", "induction and duplicate-token scores"]
    if absent:
        found.append(f"Not in this run: {', '.join(absent)}; capture --hook '{wanted(run)}'")
    if not _none_has(heads, "current"):
        found += _notes_on_repeats(run, heads)
    if any(head.lower_bound for head in heads):
        found.append("Scores are lower bounds: of each query the run lists the largest weights alone (top_k)")
    return found


def _notes_on_repeats(run: Run, heads: list[HeadScore]) -> list[str]:
    kinds = (("induction", "induction_queries"), ("duplicate-token", "duplicate_queries"))
    few = [name for name, count in kinds if max(getattr(head, count) for head in heads) < FEWEST_QUERIES]
    if not few:
        return []
    sequences = [tokens(run, prompt, row) for prompt in prompt_numbers(run) for row in range(rows(run, prompt))]
    if not all(each.ids for each in sequences):
        return [
            f"Without token ids there are no {' and '.join(few)} scores: capture with nsf.generate, or give "
            "Capture.add_generation the token_ids"
        ]
    return [
        f"Fewer than {FEWEST_QUERIES} queries can show {' or '.join(few)}: no head is labelled by it; capture prompts "
        "in which more tokens come again"
    ]


def _none_has(heads: list[HeadScore], score: str) -> bool:
    return all(math.isnan(getattr(head, score)) for head in heads)


def _labels_table(heads: list[HeadScore]) -> Table:
    """A row for each label: which heads have it."""
    lines: list[list[Cell]] = []
    for label, meaning in LABELS.items():
        having = [head for head in heads if head.label == label]
        if not having:
            continue
        shown = ", ".join(
            head.name + ("" if math.isnan(head.label_score) else f" ({head.label_score:.2f})") for head in having[:5]
        )
        more = f" and {len(having) - 5} more" if len(having) > 5 else ""
        chance = None if math.isnan(having[0].chance) else having[0].chance
        lines.append([label.replace("_", " "), meaning, len(having), shown + more, chance])
    columns = ["label", "what such a head does", "heads", "strongest: layer.head (its score)", "uniform attention"]
    rule = (
        f"A score gives a label if it is at least {STANDS_OUT:g} of the way from uniform attention to 1 and no other "
        "kind of key gets more from the same queries."
    )
    return Table("What the attention heads do", columns, lines, rule)


def _attended_table(looked: list[Attended], over: str, most: int) -> Table:
    lines: list[list[Cell]] = [
        [
            each.prompt,
            f"{each.query} {each.read!r}",
            repr(each.chosen) if each.chosen else None,
            ", ".join(
                f"{position} {text!r} {weight:.2f}"
                for position, text, weight in zip(each.positions, each.texts, each.weights, strict=True)
            ),
            each.first_token,
        ]
        for each in looked[:most]
    ]
    columns = ["prompt", "token read", "token chosen", "attended to most, the first token apart", "on the first token"]
    note = f"Weights: {over}. The query at the token read chose the next one.{_more(looked, most)}"
    return Table("What each new token was chosen from", columns, lines, note)


def _scores_table(heads: list[HeadScore], most: int) -> Table:
    lines: list[list[Cell]] = [
        [head.name, head.label.replace("_", " "), *(_cell(getattr(head, score)) for score in SCORES)]
        for head in heads[:most]
    ]
    note = (
        "Scores of kinds of heads, then the mass on the first, previous and current token, and entropy in nats. "
        f"Averages over {max(head.queries for head in heads)} queries; induction over "
        f"{max(head.induction_queries for head in heads)}, duplicate-token over "
        f"{max(head.duplicate_queries for head in heads)}, which have such keys.{_more(heads, most)}"
    )
    return Table("Scores of each head, the strongest first", ["head", "label", *COLUMNS], lines, note)


def _more(items: Sequence[object], most: int) -> str:
    return f" {len(items) - most} more rows are in the result." if len(items) > most else ""


def _cell(value: float) -> Cell:
    return value if math.isfinite(value) else None
