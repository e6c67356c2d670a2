"""Pictures of attention: the pattern of one head, head scores by layer, what each generated token was chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.attended import Attended
from ..analysis.attention import SCORES, AttentionPatterns
from ..analysis.attention_sources import head_pattern
from ..analysis.sequences import tokens as tokens_of
from ..errors import OptionError
from ..reader import Run
from .style import CATEGORIES, SEQUENTIAL, new_figure, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

MOST_LABELS = 60
"""Beyond this many tokens along an axis, only every second, third, … is labelled."""
MOST_ROWS = 40
"""Generated tokens in one picture."""
_LETTERS = 95
"""That go into the width of a picture of bars."""


def heat_map(
    weights: Array,
    tokens: Sequence[str],
    *,
    run_name: str,
    title: str = "Attention pattern",
    queries: Sequence[int] | None = None,
) -> Figure:
    """The attention of one head: a row for each query, a column for each key, colour from 0 to the largest weight.

    weights: [Q, K] probabilities; NaN, and keys behind their query, are left white. tokens: a label for each of the K
    positions; `queries`: the positions of the rows (None: 0 … Q - 1). Raises OptionError where the sizes disagree.
    """
    rows = list(range(weights.shape[0])) if queries is None else [int(query) for query in queries]
    if weights.ndim != 2 or len(rows) != weights.shape[0] or len(tokens) < weights.shape[1]:
        raise OptionError(
            f"an attention pattern of shape {list(weights.shape)} needs {weights.shape[-1]} tokens and a position for "
            f"each query; there are {len(tokens)} and {len(rows)}"
        )
    keys = weights.shape[1]
    side = float(np.clip(0.2 * max(keys, len(rows)), 3.0, 12.0))
    figure = new_figure(side * max(keys, 1) / max(keys, len(rows), 1) + 3.4, side + 2.2, title, run_name)
    axes = figure.add_subplot()
    shown = np.ma.masked_invalid(np.asarray(weights, dtype=np.float64))
    shown = np.ma.masked_where((np.arange(keys)[None, :] > np.array(rows)[:, None]) & (shown == 0), shown)
    top = float(shown.max()) if shown.count() else 1.0
    image = axes.imshow(shown, cmap=SEQUENTIAL, vmin=0.0, vmax=top or 1.0, aspect="auto", interpolation="nearest")
    _label_tokens(axes, "x", [(position, tokens[position]) for position in range(keys)])
    _label_tokens(axes, "y", [(query, tokens[query] if query < len(tokens) else "") for query in rows])
    axes.set_xlabel("key: the token looked at (position, token)")
    axes.set_ylabel("query: the token that looks")
    figure.colorbar(image, ax=axes, label="attention weight (probability)", fraction=0.046, pad=0.02)
    return figure


def head_figure(run: Run, run_name: str, *, layer: int, head: int, prompt: int = 0, row: int = 0) -> Figure:
    """The heat map of one head in one sequence of a run. Raises RunError where the run does not hold its pattern."""
    found = head_pattern(run, layer, head, prompt, row)
    texts = tokens_of(run, prompt, row).texts
    place = f"prompt {prompt}" + (f", row {row}" if row else "")
    title = f"Attention of head {layer}.{head} ({place})"
    return heat_map(found.weights[0], texts, run_name=run_name, title=title, queries=found.queries.tolist())


def score_grid(result: AttentionPatterns, run_name: str, scores: Sequence[str] | None = None) -> Figure:
    """A panel for each score, layers down and heads across; a head that the run says nothing of is left white.

    scores: of `analysis.attention.SCORES` (None: those that the run carries, but not the mass on the previous token
    where its score is there, which is the same but for one query). Raises OptionError for others.
    """
    unknown = [name for name in scores or () if name not in SCORES]
    if unknown:
        raise OptionError(f"there is no head score {unknown[0]!r}; available: {', '.join(SCORES)}")
    wanted = (
        list(scores) if scores is not None else [name for name in SCORES if np.isfinite(result.grid(name)[1]).any()]
    )
    if scores is None and "previous_token_score" in wanted:
        wanted.remove("previous")
    if not wanted:
        raise OptionError("this run carries no head score that is a number: there is nothing to draw")
    layers, first = result.grid(wanted[0])
    columns = min(len(wanted), 3)
    lines = -(-len(wanted) // columns)
    width = float(np.clip(0.24 * first.shape[1] + 1.7, 2.6, 4.8))
    height = float(np.clip(0.24 * len(layers) + 1.2, 2.2, 5.6))
    figure = new_figure(max(columns * width + 0.6, 5.0), lines * height + 1.2, "Attention heads: scores", run_name)
    for number, name in enumerate(wanted):
        axes = figure.add_subplot(lines, columns, number + 1)
        _grid_panel(figure, axes, name, layers, result.grid(name)[1])
        if number % columns == 0:
            axes.set_ylabel("layer")
        axes.set_xlabel("head")
    return figure


def attended_figure(result: AttentionPatterns, run_name: str, prompt: int = 0, row: int = 0) -> Figure:
    """What each generated token of a prompt was chosen from: the tokens that its query attended to most, a bar each.

    The bar of the first token, on which heads rest, stands apart in grey. Raises OptionError where nothing is known.
    """
    rows = [each for each in result.attended if (each.prompt, each.row) == (prompt, row)][:MOST_ROWS]
    if not rows:
        raise OptionError(f"this run says nothing of what prompt {prompt}, row {row}, attended to")
    figure = new_figure(9.5, 0.34 * len(rows) + 2.0, f"What each new token was chosen from (prompt {prompt})", run_name)
    axes = figure.add_subplot()
    for line, each in enumerate(rows):
        _bar(axes, line, each)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_row_label(each) for each in rows], fontsize=8)
    totals = [sum(each.weights) + each.first_token for each in rows]
    axes.set_xlim(0.0, max([1.0, *(total for total in totals if np.isfinite(total))]))  # of `max` more than 1
    axes.set_xlabel(f"attention weight, {result.attended_over}")
    axes.set_ylabel("token read → token chosen")
    axes.set_title("grey: the first token; blue: the most attended others; blank: the rest", fontsize=8, loc="right")
    return figure


def figure(result: AttentionPatterns, run_name: str) -> Figure:
    """The picture of the analysis: its head scores by layer; of a run without scores what was attended to.

    Raises OptionError where there is neither.
    """
    return score_grid(result, run_name) if result.heads else attended_figure(result, run_name)


def _grid_panel(figure: Figure, axes: Axes, name: str, layers: Sequence[str], values: Array) -> None:
    """Probabilities are drawn from 0 to 1 in every panel, entropy from 0 to its largest."""
    finite = values[np.isfinite(values)]
    top = float(finite.max(initial=0.0)) or 1.0 if name == "entropy" else 1.0
    image = axes.imshow(np.ma.masked_invalid(values), cmap=SEQUENTIAL, vmin=0.0, vmax=top, aspect="auto")
    axes.set_title(SCORES[name], fontsize=9)
    for axis, labels in (("y", list(layers)), ("x", [str(head) for head in range(values.shape[1])])):
        step = -(-len(labels) // 16)
        shown = range(0, len(labels), step)
        set_ticks = axes.set_yticks if axis == "y" else axes.set_xticks
        set_ticks(list(shown), [token_label(labels[number], 24) for number in shown], fontsize=7)
    bar = figure.colorbar(image, ax=axes, fraction=0.08, pad=0.03)
    bar.ax.tick_params(labelsize=7)


def _bar(axes: Axes, line: int, each: Attended) -> None:
    """The first token in grey, then the most attended ones, each with its name where it fits."""
    left = 0.0
    parts = [("first", each.first_token, "0.75")]
    shades = [CATEGORIES[0], CATEGORIES[5]]
    parts += [
        (text, weight, shades[at % 2]) for at, (text, weight) in enumerate(zip(each.texts, each.weights, strict=True))
    ]
    for at, (text, weight, colour) in enumerate(parts):
        if not np.isfinite(weight):
            axes.text(0.01, line, "not a number", va="center", fontsize=7)
            return
        axes.barh(line, weight, left=left, height=0.8, color=colour, edgecolor="white", linewidth=0.8)
        label = "first" if at == 0 else token_label(text, max(4, int(weight * _LETTERS)))
        if len(label) <= weight * _LETTERS:
            ink = "white" if colour == CATEGORIES[0] else "black"
            axes.text(left + weight / 2, line, label, ha="center", va="center", fontsize=7, color=ink)
        left += weight


def _row_label(each: Attended) -> str:
    chosen = f" → {token_label(each.chosen)}" if each.chosen else ""
    return f"{token_label(each.read)}{chosen}"


def _label_tokens(axes: Axes, axis: str, labels: Sequence[tuple[int, str]]) -> None:
    """Ticks with position and token; of many only every second, third, … in letters that become smaller."""
    step = max(-(-len(labels) // MOST_LABELS), 1)
    shown = range(0, len(labels), step)
    names = [f"{labels[at][0]} {token_label(labels[at][1])}" for at in shown]
    size = 8 if len(labels) <= 30 else 6
    if axis == "x":
        axes.set_xticks(list(shown), names, rotation=90, fontsize=size)
    else:
        axes.set_yticks(list(shown), names, fontsize=size)
