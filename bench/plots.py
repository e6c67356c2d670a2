"""Pictures of benchmark results: bars for sections of rows, lines where sections have an `x`, and dots, a line of the
picture for each section, where they have a `line`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442", "#000000")
"""Okabe and Ito's palette, which colour-blind people can tell apart."""


def draw(content: dict[str, Any], path: Path, *, log: bool = False) -> None:
    """Draws a benchmark's results: one panel for each group of sections that share an axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    groups: dict[str, list[dict[str, Any]]] = {}
    for section in content["sections"]:
        groups.setdefault(section.get("panel", section["name"]), []).append(section)
    heights = [_height(sections) for sections in groups.values()]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(9, 1.2 + sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (name, sections), axis in zip(groups.items(), axes[:, 0], strict=True):
        if all("x" in section for section in sections):
            _lines(axis, sections, log=log)
        elif all("line" in section for section in sections):
            _dots(axis, sections, log=log)
        else:
            _bars(axis, sections, log=log)
        axis.set_title(name, loc="left", fontsize=10)
    origin = content["provenance"]
    quick = "; QUICK: tiny sizes, the figures mean nothing" if content["quick"] else ""
    figure.suptitle(f"{content['question']}: {content['asked']}", fontsize=11)
    figure.supxlabel(f"{origin['cpu']}, {origin['cores']} cores; commit {origin['commit']}{quick}", fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _height(sections: list[dict[str, Any]]) -> float:
    """Inches: those of a panel with lines or a few bars, or more where many sections have a line each."""
    return max(2.9, 0.8 + 0.24 * len(sections)) if all("line" in section for section in sections) else 2.9


def _dots(axis: Any, sections: list[dict[str, Any]], *, log: bool) -> None:
    series: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for place, section in enumerate(sections):
        for row in section["rows"]:
            if "refused" not in row:
                series.setdefault(row["name"], []).append((place, row))
    for number, (name, points) in enumerate(series.items()):
        middles = [row["median"] for _, row in points]
        spread = [[row["median"] - row["p20"] for _, row in points], [row["p80"] - row["median"] for _, row in points]]
        axis.errorbar(middles, [place for place, _ in points], xerr=spread, fmt="o", markersize=5, label=name,
                      color=COLOURS[number % len(COLOURS)], alpha=0.9)  # fmt: skip
    axis.set_yticks(range(len(sections)), [section["line"] for section in sections], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", alpha=0.3)
    axis.set_xlabel(sections[0]["unit"], fontsize=8)
    axis.set_xscale("log") if log else axis.set_xlim(left=0)
    axis.legend(fontsize=7)


def _bars(axis: Any, sections: list[dict[str, Any]], *, log: bool) -> None:
    rows = [row for section in sections for row in section["rows"] if "refused" not in row]
    places = range(len(rows))
    middles = [row["median"] for row in rows]
    below = [max(0.0, row["median"] - row["p20"]) for row in rows]
    above = [max(0.0, row["p80"] - row["median"]) for row in rows]
    axis.barh(places, middles, xerr=[below, above], color=COLOURS[0], ecolor=COLOURS[5], height=0.65)
    axis.set_yticks(places, [row["name"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(sections[0]["unit"], fontsize=8)
    if log and middles and min(middles) > 0:
        axis.set_xscale("log")
    for place, row in zip(places, rows, strict=True):
        axis.annotate(f" {row['median']:.3g}", (max(row["p80"], row["median"]), place), va="center", fontsize=7)


def _lines(axis: Any, sections: list[dict[str, Any]], *, log: bool) -> None:
    series: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for section in sections:
        for row in section["rows"]:
            if "refused" not in row:
                series.setdefault(row["name"], []).append((section["x"], row))
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        xs = [x for x, _ in points]
        axis.plot(xs, [row["median"] for _, row in points], marker="o", markersize=3, color=colour, label=name)
        axis.fill_between(xs, [row["p20"] for _, row in points], [row["p80"] for _, row in points], color=colour,
                          alpha=0.2)  # fmt: skip
    if log:
        axis.set_xscale("log")
        axis.set_yscale("log")
    axis.set_xlabel(sections[0].get("x_label", ""), fontsize=8)
    axis.set_ylabel(sections[0]["unit"], fontsize=8)
    axis.legend(fontsize=7)
