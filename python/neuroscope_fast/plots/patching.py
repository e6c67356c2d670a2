"""Pictures of activation patching and of ablation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.interventions import Site
from ..analysis.patching import Ablation, Patching
from .style import CATEGORIES, DIVERGING, new_figure, token_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]


def figure(result: Patching | Ablation, run_name: str) -> Figure:
    """The picture of a result."""
    if isinstance(result, Ablation):
        return ablation_figure(result, run_name)
    return patching_figure(result, run_name)


def patching_figure(result: Patching, run_name: str) -> Figure:
    """A heat map for each component: by layer and position, or, where all positions were patched at once, by layer
    and head; 0 as corrupted, 1 as clean."""
    kinds = list(dict.fromkeys(site.component for site in result.sites))
    maps = [(kind, *_grid(result, kind)) for kind in kinds]
    tallest = max(len(grid) for _, grid, _, _ in maps)
    widths = [max(1.2, 0.3 * grid.shape[1]) for _, grid, _, _ in maps]
    verb = "restored" if result.direction == "denoising" else "left"
    title = f"Activation patching, {result.direction}: share of the logit difference that is {verb}"
    drawn = new_figure(min(sum(widths) + 1.1 * len(maps) + 1.3, 16), 1.9 + 0.2 * tallest, title, run_name)
    grids = drawn.add_gridspec(1, len(maps), width_ratios=widths)
    limit = max(1.0, float(np.nanquantile(np.abs(result.normalised), 0.99)))
    image: Any = None
    for number, (kind, grid, rows, columns) in enumerate(maps):
        axes = drawn.add_subplot(grids[0, number])
        image = axes.imshow(grid, aspect="auto", origin="lower", cmap=DIVERGING, vmin=-limit, vmax=limit)
        axes.set_facecolor("0.85")
        axes.set_title(kind, fontsize=10)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90 if result.positions else 0)
        by_head = "." not in rows[0] and kind == "head_output"
        axes.set_xlabel("head" if by_head else "position patched", fontsize=8)
        axes.set_ylabel("layer.head" if "." in rows[0] else "layer", fontsize=8)
        if grid.size <= 120:
            _write_values(axes, grid, limit)
    bar = drawn.colorbar(image, ax=drawn.axes, extend="both", aspect=25)
    bar.set_label("0 = corrupted, 1 = clean", fontsize=8)
    return drawn


def ablation_figure(result: Ablation, run_name: str) -> Figure:
    """The metric without each site, beside that of the whole model."""
    order = np.argsort(result.values, kind="stable")[:40][::-1]
    title = f"{result.kind.capitalize()} ablation, one component at a time"
    drawn = new_figure(7.5, max(2.6, 1.5 + 0.2 * (len(order) + 1)), title, run_name)
    axes = drawn.add_subplot()
    names = ["all of them", *(result.sites[site].name for site in order)]
    values = [result.together, *result.values[order]]
    colours = [CATEGORIES[4], *([CATEGORIES[0]] * len(order))]
    axes.barh(range(len(names)), values, color=colours, edgecolor="0.3", linewidth=0.5, height=0.75)
    axes.axvline(result.baseline, color="0.1", linewidth=1.2, linestyle="--")
    axes.annotate(
        "the whole model", (result.baseline, len(names) - 0.4), fontsize=7, ha="right", va="bottom", color="0.1"
    )
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_xlabel(f"{result.metric} without the component", fontsize=8)
    axes.margins(y=0.02)
    return drawn


def _grid(result: Patching, kind: str) -> tuple[Array, list[str], list[str]]:
    """Values, labels of the rows and of the columns of one component."""
    chosen = [number for number, site in enumerate(result.sites) if site.component == kind]
    labels = [token_label(label) for label in result.labels]
    if kind != "head_output" or result.positions is not None:
        return result.normalised[chosen], [_row(result.sites[number]) for number in chosen], labels
    layers = list(dict.fromkeys(_layer(result.sites[number]) for number in chosen))
    heads = list(dict.fromkeys(result.sites[number].head for number in chosen))
    grid = np.full((len(layers), len(heads)), np.nan)
    for number in chosen:
        site = result.sites[number]
        grid[layers.index(_layer(site)), heads.index(site.head)] = result.normalised[number, 0]
    return grid, layers, ["all" if head is None else str(head) for head in heads]


def _layer(site: Site) -> str:
    return site.layer_name if site.layer is None else str(site.layer)


def _row(site: Site) -> str:
    return _layer(site) if site.head is None else f"{_layer(site)}.{site.head}"


def _write_values(axes: Any, grid: Array, limit: float) -> None:
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
