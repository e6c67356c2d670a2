"""Pictures of information flow: the stream's norm at each layer and position, and what each block adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.flow import Flow
from .style import CATEGORIES, SEQUENTIAL, new_figure, of_sequence, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 60
"""So many tokens can be written on an axis and read."""


def figure(flow: Flow, run_name: str) -> Figure:
    """A heat map of the stream's norm (layer by position), and by layer the medians over positions of the norms and
    the cosines of what attention and MLP add.
    """
    many = len(flow.positions)
    width = min(max(9.0, 4.0 + 0.24 * many), 22.0)
    height = min(max(6.4, 3.6 + 0.24 * len(flow.layers)), 16.0)
    title = f"Information flow along the residual stream{of_sequence(flow.prompt, flow.row)}"
    drawn = new_figure(width, height, title, run_name)
    grid = drawn.add_gridspec(2, 2, height_ratios=(1.5, 1))
    _norms(drawn, drawn.add_subplot(grid[0, :]), flow)
    _sizes(drawn.add_subplot(grid[1, 0]), flow)
    _cosines(drawn.add_subplot(grid[1, 1]), flow)
    return drawn


def _norms(drawn: Figure, axes: Axes, flow: Flow) -> None:
    from matplotlib.colors import LogNorm

    known = not np.isnan(flow.entry_norm).all()
    values = np.vstack([flow.entry_norm, flow.stream_norm]) if known else flow.stream_norm
    labels = (["in"] if known else []) + [str(layer) for layer in flow.layers]
    # The embeddings are small: the scale is that of what is behind layers.
    positive = flow.stream_norm[np.isfinite(flow.stream_norm) & (flow.stream_norm > 0)]
    scale = LogNorm(float(positive.min()), float(positive.max())) if len(positive) else None
    image = axes.imshow(values, aspect="auto", origin="lower", cmap=SEQUENTIAL, norm=scale, interpolation="nearest")
    axes.set_title("Norm of the stream behind each layer", fontsize=10)
    axes.set_ylabel("layer (in: before the first)")
    label_layers(axes, labels)
    label_tokens(axes, flow.tokens, flow.positions)
    below = known and len(positive) and np.nanmin(flow.entry_norm) < positive.min()
    label = "Euclidean norm, log scale"
    bar = drawn.colorbar(image, ax=axes, label=label, pad=0.01, fraction=0.04, extend="min" if below else "neither")
    if scale is not None:  # within a decade the ticks of a logarithmic scale would name one number
        ticks = np.geomspace(positive.min(), positive.max(), 5)
        bar.set_ticks(list(ticks), labels=[f"{tick:.0f}" if tick >= 100 else f"{tick:.3g}" for tick in ticks])
        bar.minorticks_off()


def _sizes(axes: Axes, flow: Flow) -> None:
    lines = [
        ("stream", flow.stream_norm, CATEGORIES[6], "--", "s"),
        ("attention adds", flow.attention_norm, CATEGORIES[0], "-", "o"),
        ("MLP adds", flow.mlp_norm, CATEGORIES[1], "-", "^"),
    ]
    for name, values, colour, dash, marker in lines:
        _line(axes, flow.layers, _medians(values), name, (colour, dash, marker))
    if any((values > 0).any() for _, values, *_ in lines):
        axes.set_yscale("log")
        axes.set_ylabel("median Euclidean norm, log scale")
    _finish(axes, "Size of what each block adds")


def _cosines(axes: Axes, flow: Flow) -> None:
    lines = [
        ("attention, to what enters", flow.attention_before, CATEGORIES[0], "-", "o"),
        ("attention, to what leaves", flow.attention_after, CATEGORIES[0], ":", "."),
        ("MLP, to what enters", flow.mlp_before, CATEGORIES[1], "-", "^"),
        ("MLP, to what leaves", flow.mlp_after, CATEGORIES[1], ":", "."),
    ]
    for name, values, colour, dash, marker in lines:
        _line(axes, flow.layers, _medians(values), name, (colour, dash, marker))
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("median cosine to the stream")
    _finish(axes, "Direction of what each block adds")


def _line(axes: Axes, layers: Any, values: Any, name: str, look: tuple[str, str, str]) -> None:
    colour, dash, marker = look
    if np.isfinite(values).any():
        axes.plot(layers, values, color=colour, linestyle=dash, marker=marker, markersize=4, label=name)


def _finish(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.get_lines() and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, framealpha=0.8)
    else:
        axes.text(0.5, 0.5, "not in this run", ha="center", transform=axes.transAxes, color="0.4")


def _medians(values: Any) -> Any:
    return np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values])


def label_tokens(axes: Axes, tokens: list[str], positions: Any) -> None:
    """What is read at each position, along the bottom; of many every so many-th."""
    step = max(1, -(-len(tokens) // _MOST_LABELS))
    at = range(0, len(tokens), step)
    labels = [
        f"{token_label(tokens[each])} {positions[each]}" if step > 1 else token_label(tokens[each]) for each in at
    ]
    axes.set_xticks(list(at), labels, rotation=90 if len(tokens) > 6 else 0, fontsize=7)
    axes.set_xlabel("token read" + (" and its position" if step > 1 else ""))


def label_layers(axes: Axes, labels: list[str]) -> None:
    """The names of the layers from the bottom up; of many every so many-th."""
    step = max(1, -(-len(labels) // 40))
    axes.set_yticks(list(range(0, len(labels), step)), labels[::step], fontsize=7)
