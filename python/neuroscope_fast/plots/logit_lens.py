"""The picture of the logit lens: a table of layers by positions with the likeliest token in each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..analysis.logit_lens import LogitLens
from .flow import label_layers, label_tokens
from .style import CATEGORIES, SEQUENTIAL, new_figure, of_sequence, token_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TEXTS = 60
"""Positions up to which cells hold their token: more would not be read."""
_DARK = 0.55
"""Cividis is light from here on."""


def figure(lens: LogitLens, run_name: str) -> Figure:
    """Cells are coloured by the probability of their likeliest token; one with a frame names the token that the model
    chooses in the end. The choice stands on top.
    """
    layers, positions = lens.choice_rank.shape
    written = positions <= _MOST_TEXTS
    width = min(max(7.0, 2.2 + (0.62 if written else 0.1) * positions), 40.0 if written else 22.0)
    height = min(max(4.0, 2.2 + 0.26 * layers), 24.0)
    title = f"Logit lens: the likeliest next token at each layer{of_sequence(lens.prompt, lens.row)}"
    drawn = new_figure(width, height, title, run_name)
    axes = drawn.add_subplot()
    likeliest = lens.top_probabilities[:, :, 0]
    image = axes.imshow(
        likeliest, aspect="auto", origin="lower", cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_ylabel("stream behind layer")
    label_layers(axes, lens.streams)
    label_tokens(axes, lens.tokens, lens.positions)
    if written:
        _write(axes, lens, likeliest)
        above = axes.secondary_xaxis("top")
        above.set_xticks(range(positions), [token_label(lens.text(each), 9) for each in lens.choices], fontsize=7)
        above.tick_params(rotation=90 if positions > 6 else 0)
        above.set_xlabel("the model's own choice (framed where it is the likeliest already)", fontsize=8)
    drawn.colorbar(image, ax=axes, label="probability of the likeliest token", pad=0.01, fraction=0.04)
    return drawn


def _write(axes: object, lens: LogitLens, likeliest: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

    assert isinstance(axes, Axes)
    for layer, position in np.ndindex(likeliest.shape):
        share = likeliest[layer, position]
        if np.isnan(share):
            axes.text(position, layer, "n/a", ha="center", va="center", fontsize=6, color="0.4")
            continue
        colour = "black" if share > _DARK else "white"
        label = token_label(lens.text(lens.top_ids[layer, position, 0]), 9)
        axes.text(position, layer, label, ha="center", va="center", fontsize=6.5, color=colour)
        if lens.choice_rank[layer, position] == 1:
            axes.add_patch(
                Rectangle((position - 0.48, layer - 0.46), 0.96, 0.92, fill=False, edgecolor=CATEGORIES[4], lw=1.5)
            )
