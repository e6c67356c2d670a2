"""The picture of direct logit attribution: bars of the components' shares, and a grid of the heads'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..analysis.attribution import Attribution
from .style import DIVERGING, new_figure, of_sequence, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BARS = 20


def figure(found: Attribution, run_name: str, number: int = 0) -> Figure:
    """Of the position of this number: the largest shares as bars, the rest summed, and every head's share."""
    with_heads = len(found.head_layers) > 0
    bars = min(len(found.components), _BARS + 1)
    height = max(4.2, 1.8 + 0.26 * max(bars, len(found.head_layers) if with_heads else 0))
    over = "" if found.against is None else f" over “{_quoted(found.against_token)}”"
    title = (
        f"Direct logit attribution: “{_quoted(found.target_tokens[number])}”{over} after "
        f"“{_quoted(found.tokens[number])}” (position {found.positions[number]}){of_sequence(found.prompt, found.row)}"
    )
    drawn = new_figure(12.0 if with_heads else 7.5, min(height, 16.0), title, run_name)
    if with_heads:
        left, right = drawn.subplots(1, 2, width_ratios=(1.3, 1))
        _grid(drawn, right, found, number)
    else:
        left = drawn.add_subplot()
    _bars(left, found, number)
    return drawn


def _quoted(text: str) -> str:
    return token_label(text).replace(r"\$", "$")  # titles are never taken for formulas


def _bars(axes: Axes, found: Attribution, number: int) -> None:
    from matplotlib import colormaps

    values = found.values[:, number]
    order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1.0), kind="stable")
    shown, others = order[:_BARS], order[_BARS:]
    shares = [(found.components[each], float(values[each])) for each in shown]
    if len(others):
        shares.append((f"the other {len(others)}", float(values[others].sum())))
    shares = [(name, value) for name, value in shares if np.isfinite(value)]
    against, for_it = colormaps[DIVERGING]([0.12, 0.85])  # the grid's
    colours = [for_it if value >= 0 else against for _, value in shares]
    places = np.arange(len(shares))
    axes.barh(places, [value for _, value in shares], color=colours)
    axes.set_yticks(places, [name for name, _ in shares], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    for place, (_, value) in zip(places, shares, strict=True):
        axes.annotate(
            f"{value:+.2f}", (value, place), xytext=(3 if value >= 0 else -3, 0), textcoords="offset points",
            ha="left" if value >= 0 else "right", va="center", fontsize=7,
        )  # fmt: skip
    axes.margins(x=0.16)
    what = "logit" if found.against is None else "logit difference"
    axes.set_xlabel(f"share in the {what}, which is {found.logits[number]:.2f}")
    axes.set_title("Embedding, attention and MLP of each layer", fontsize=10)
    if not shares:
        axes.text(0.5, 0.5, "no finite shares", ha="center", transform=axes.transAxes, color="0.4")


def _grid(drawn: Figure, axes: Axes, found: Attribution, number: int) -> None:
    values = found.heads[:, :, number]
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    image = axes.imshow(
        values, aspect="auto", origin="lower", cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set_facecolor("0.75")  # of a head that was not captured; white is a share of 0
    axes.set_title("Heads (grey: no share is known)" if len(finite) < values.size else "Heads", fontsize=10)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    step = max(1, -(-values.shape[1] // 32))
    axes.set_xticks(range(0, values.shape[1], step))
    axes.set_yticks(range(len(found.head_layers)), [str(layer) for layer in found.head_layers], fontsize=7)
    if values.size <= 512:
        for layer, head in np.ndindex(values.shape):
            value = values[layer, head]
            if np.isfinite(value) and abs(value) >= 0.1 * limit:
                colour = "white" if abs(value) > 0.6 * limit else "black"
                axes.text(head, layer, f"{value:+.2g}", ha="center", va="center", fontsize=6.5, color=colour)
    label = "share in the logit" if found.against is None else "share in the difference of the logits"
    drawn.colorbar(image, ax=axes, label=label, pad=0.02, fraction=0.06)
