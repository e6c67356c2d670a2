"""Pictures of circuit discovery: difference maps, effect sizes, the circuit graph, activation patching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.circuit_comparison import Comparison
from ..analysis.circuit_graph import CircuitGraph, Node
from ..errors import OptionError
from .style import CATEGORIES, SEQUENTIAL, new_figure, token_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

MOST_BARS = 40
MOST_EDGES = 120
_MOST_COLUMNS = 60
_HEADS_HIGH = 0.14
"""Inches of a row of one head."""


def figure(result: Comparison | CircuitGraph, run_name: str) -> Figure:
    """The picture of a result: effect sizes of a comparison, or a graph."""
    if isinstance(result, CircuitGraph):
        return graph_figure(result, run_name)
    return effects_figure(result, run_name)


def difference_figure(comparison: Comparison, run_name: str) -> Figure:
    """|a - b| / |a| of each component at each position, a panel for each kind of component; rows run upwards."""
    panels: dict[str, list[int]] = {}
    for number, component in enumerate(comparison.components):
        kind = " ".join(filter(None, (component.component, component.reduction)))
        panels.setdefault(kind, []).append(number)
    panels = {kind: rows for kind, rows in panels.items() if np.isfinite(comparison.difference[rows]).any()}
    if not panels:
        raise OptionError("no component could be compared position by position: there is no map to draw")
    columns = comparison.difference.shape[1]
    across = min(3, len(panels))
    by_head = [kind for kind, rows in panels.items() if comparison.components[rows[0]].head is not None]
    lines = [
        some[first : first + across]
        for some in (by_head, [kind for kind in panels if kind not in by_head])
        for first in range(0, len(some), across)
    ]
    heights = [min(max(1.9, 0.9 + _HEADS_HIGH * max(len(panels[kind]) for kind in line)), 10) for line in lines]
    wide = across * min(max(1.4 + 0.2 * columns, 2.4), 12)
    title = "Difference of the groups by layer and position"
    drawn = new_figure(max(wide + 0.8, 5.5), sum(heights) + 0.6, title, run_name)
    grids = drawn.add_gridspec(len(heights), across, height_ratios=heights)
    finite = comparison.difference[np.isfinite(comparison.difference)]
    top = max(float(np.quantile(finite, 0.98)), 1e-9)
    image: Any = None
    counted = {"start": "position (token)", "end": "position from the end", "last": "position"}
    placed = [(row, column, kind) for row, kinds in enumerate(lines) for column, kind in enumerate(kinds)]
    for line, column, kind in placed:
        rows = panels[kind]
        axes = drawn.add_subplot(grids[line, column])
        values = comparison.difference[rows]
        image = axes.imshow(values, aspect="auto", origin="lower", cmap=SEQUENTIAL, vmin=0, vmax=top)
        axes.set_facecolor("0.85")  # what could not be compared
        axes.set_title(kind, fontsize=10)
        names = [_place(comparison, row) for row in rows]
        _ticks(axes.yaxis, names, most=max(8, int(heights[line] / 0.13)))
        _ticks(axes.xaxis, [token_label(label) for label in comparison.labels], most=_MOST_COLUMNS)
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
        axes.tick_params(axis="y", labelsize=6.5)
        axes.set_xlabel(counted[comparison.alignment], fontsize=8)
        axes.set_ylabel("layer.head" if "." in names[0] else "layer", fontsize=8)
    bar = drawn.colorbar(image, ax=drawn.axes, extend="max", shrink=min(1.0, 3 / sum(heights)), aspect=25)
    bar.set_label("|a - b| / |a|   (no unit)", fontsize=8)
    return drawn


def effects_figure(comparison: Comparison, run_name: str) -> Figure:
    """Effect sizes as bars, the strongest components; filled and marked by what survives correction."""
    effects = np.asarray(comparison.effects)
    known = np.flatnonzero(~np.isnan(effects))
    if not known.size:
        raise OptionError("there is no effect size: a standard deviation needs more prompts")
    order = known[np.lexsort((-np.abs(effects[known]), comparison.p_family[known]))][:MOST_BARS]
    shown = order[::-1]
    finite = effects[shown][np.isfinite(effects[shown])]
    limit = 1.15 * max(float(np.abs(finite).max(initial=0.0)), 1e-9)
    values = np.clip(effects[shown], -limit, limit)
    family, rate = comparison.p_family[shown] <= comparison.alpha, comparison.q[shown] <= comparison.alpha
    colours = np.where(family, CATEGORIES[0], np.where(rate, CATEGORIES[1], "0.8"))
    drawn = new_figure(7.5, max(2.8, 1.6 + 0.2 * len(shown)), "Components that differ between the groups", run_name)
    axes = drawn.add_subplot()
    axes.barh(range(len(shown)), values, color=list(colours), edgecolor="0.3", linewidth=0.5, height=0.75)
    for row, value in enumerate(values):
        mark = "**" if family[row] else "*" if rate[row] else ""
        if mark:
            axes.annotate(
                mark,
                (value, row),
                xytext=(3 if value >= 0 else -3, -2),
                textcoords="offset points",
                ha="left" if value >= 0 else "right",
                va="center",
                fontsize=9,
            )
    axes.set_yticks(range(len(shown)), [comparison.components[c].name for c in shown], fontsize=7.5)
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.margins(x=0.08, y=0.01)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    names = {
        "d_z": "Cohen's d_z (standard deviations of the differences; right: first group more)",
        "g": "Hedges' g (standard deviations; right: first group more)",
        "R²": "R² (share of the variation in one direction)",
    }
    axes.set_xlabel(names[comparison.effect_name], fontsize=8)
    level = f"{comparison.alpha:g}"
    _legend(
        axes,
        [
            (CATEGORIES[0], f"** family-wise p ≤ {level} (maximum statistic)"),
            (CATEGORIES[1], f"* false discovery rate ≤ {level} (Benjamini-Hochberg)"),
            ("0.8", "neither"),
        ],
    )
    if comparison.smallest_p > comparison.alpha:
        note = f"too few prompts: the smallest possible p is {comparison.smallest_p:.3g}"
        axes.set_title(note, fontsize=9, color=CATEGORIES[4])
    return drawn


def graph_figure(graph: CircuitGraph, run_name: str) -> Figure:
    """Layers upwards, each with attention (its heads side by side) below the MLP; edges as wide as their share."""
    drawn_links = sorted(graph.links, key=lambda each: abs(each.share))[-MOST_EDGES:]
    ends = {end for link in drawn_links for end in (link.source, link.target)}
    nodes = [node for node in graph.nodes if node.kind != "input" or node.id in ends]
    levels = sorted({_level(node) for node in nodes})
    height = {level: number for number, level in enumerate(levels)}
    places = _layout(nodes, height)
    widest = max(abs(x) for x, _ in places.values()) + 0.8
    drawn = new_figure(max(6.5, 2.0 * widest), 1.5 + 0.55 * len(levels), "Circuit graph", run_name)
    axes = drawn.add_subplot()
    most = max((abs(link.share) for link in graph.links), default=1.0)
    for link in drawn_links:
        _edge(axes, places[link.source], places[link.target], link.share, abs(link.share) / most)
    for node in nodes:
        x, y = places[node.id]
        fill = {"head": "#CFE4F2", "attention": "#CFE4F2", "mlp": "#FBE3B8"}.get(node.kind, "0.92")
        text = node.id if node.kind in ("head", "input", "output") else node.id.replace("attention", "attn")
        box = {
            "boxstyle": "round,pad=0.3",
            "facecolor": fill,
            "edgecolor": CATEGORIES[4] if node.significant else "0.35",
            "linewidth": 2.0 if node.significant else 0.8,
        }
        axes.text(x, y, text, ha="center", va="center", fontsize=8, zorder=3, bbox=box, parse_math=False)
    axes.set_xlim(-widest, widest)
    axes.set_ylim(-0.6, len(levels) - 0.4)
    axes.set_xticks([])
    axes.set_yticks(range(len(levels)), [_level_name(nodes, level) for level in levels], fontsize=8)
    axes.set_ylabel("layer (the model runs upwards)", fontsize=8)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    _legend(
        axes,
        [
            ("#CFE4F2", "attention"),
            ("#FBE3B8", "MLP"),
            (CATEGORIES[0], f"edge: adds to what is met, widest {most:.2f}"),
            (CATEGORIES[4], "dashed edge: takes from what is met"),
            ("black", "thick frame: differs significantly"),
        ],
    )
    edges = f"edges from {graph.least_share:g}"
    if len(drawn_links) < len(graph.links):
        edges = f"the {MOST_EDGES} strongest of {len(graph.links)} edges"
    axes.set_title(f"{graph.note}\n{edges}; 11.3: layer.head", fontsize=8, color="0.3")
    return drawn


def _level(node: Node) -> tuple[float, int]:
    if node.layer is None:
        return (-1.0, 0) if node.kind == "input" else (float("inf"), 0)
    return float(node.layer), int(node.kind == "mlp")


def _level_name(nodes: Sequence[Node], level: tuple[float, int]) -> str:
    first = next(node for node in nodes if _level(node) == level)
    if first.layer is None:
        return ""
    return f"{first.layer} {'MLP' if level[1] else 'attention'}"


def _layout(nodes: Sequence[Node], height: dict[tuple[float, int], int]) -> dict[str, tuple[float, float]]:
    """Attention to the left and MLPs to the right of the middle, where the input and the output stand."""
    rows: dict[tuple[float, int], list[Node]] = {}
    for node in nodes:
        rows.setdefault(_level(node), []).append(node)
    places = {}
    for level, row in rows.items():
        ordered = sorted(row, key=lambda node: -1 if node.head is None else node.head)
        for number, node in enumerate(ordered):
            middle = number - (len(ordered) - 1) / 2
            aside = 0.0 if node.layer is None else 1.6 if node.kind == "mlp" else -0.8
            # every second row a little aside, so that no edge runs through a node on its way upwards
            shift = 0.22 * (-1) ** height[level] if node.layer is not None else 0.0
            places[node.id] = (aside + middle * 0.95 + shift, float(height[level]))
    return places


def _edge(axes: Any, start: tuple[float, float], end: tuple[float, float], share: float, strength: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    far = end[1] - start[1] > 1.5
    bend = 0.0 if not far else (0.18 if start[0] + end[0] > 0 else -0.18)
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=7,
            connectionstyle=f"arc3,rad={bend}",
            linewidth=0.4 + 4.0 * strength,
            linestyle="-" if share > 0 else (0, (3, 2)),
            color=CATEGORIES[0] if share > 0 else CATEGORIES[4],
            alpha=0.25 + 0.6 * strength,
            shrinkA=9,
            shrinkB=9,
            zorder=1 + strength,
        )
    )


def _place(comparison: Comparison, row: int) -> str:
    component = comparison.components[row]
    place = component.layer_name if component.layer is None else str(component.layer)
    return place if component.head is None else f"{place}.{component.head}"


def _ticks(axis: Any, labels: list[str], *, most: int) -> None:
    """Every label, or every n-th where they would not fit."""
    every = -(-len(labels) // most)
    axis.set_ticks(range(0, len(labels), every), labels[::every])


def _legend(axes: Any, entries: list[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, edgecolor="0.3", linewidth=0.5, label=label) for colour, label in entries]
    axes.figure.legend(
        handles=handles, loc="outside lower left", fontsize=7, frameon=False, ncols=2 if len(entries) > 3 else 1
    )
