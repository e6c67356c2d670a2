"""Pictures of feature detection: top activating contexts, histograms, and how selective the neurons of a layer are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.feature_profiles import Context, Profile
from ..analysis.feature_results import Features, LayerFeatures
from ..analysis.feature_tables import shown_text
from ..errors import OptionError
from .style import CATEGORIES, DIVERGING, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT_SIZE = 8  # points
_CHARACTER = 0.602 * _FONT_SIZE / 72  # inches; DejaVu Sans Mono
_LINE = 0.19  # inches
_LABEL, _BEFORE, _AFTER = 34, 46, 40  # characters: of the neuron's facts, and of the context on either side of the peak
_STRONGEST = 0.75  # of the colours' range: beyond it black letters cannot be read


def contexts_figure(features: Features, run_name: str, neurons: int = 5, contexts: int = 3) -> Figure:
    """The top activating contexts of the most selective neurons: a line for each, aligned at the peak, every token
    shaded by the neuron's activation there over its largest. Raises OptionError where the result has no profiles.
    """
    chosen = _profiles(features, neurons)
    unit = chosen[0][0].unit
    lines = len(chosen) * (contexts + 0.6)
    width = (_LABEL + _BEFORE + _AFTER) * _CHARACTER + 0.4
    height = lines * _LINE + 1.35
    figure = new_figure(width, height, f"What the most selective {unit}s respond to", run_name)
    figure.set_layout_engine("none")  # a character takes as much of the axes as it does of the paper
    axes = figure.add_axes((0.2 / width, 0.8 / height, 1 - 0.4 / width, lines * _LINE / height))
    axes.set(xlim=(-_LABEL - _BEFORE, _AFTER), ylim=(lines, 0))
    axes.axis("off")
    for number, (layer, profile) in enumerate(chosen):
        top = number * (contexts + 0.6)
        facts = _facts(layer, profile.neuron)
        for line in range(max(contexts, len(facts))):
            if line < len(facts):
                weight = "bold" if line == 0 else "normal"
                _write(axes, -_LABEL - _BEFORE, top + line, facts[line], weight=weight)
            if line < min(contexts, len(profile.contexts)):
                _draw_context(axes, top + line, profile.contexts[line], float(layer.maximum[profile.neuron]))
        if number:
            axes.axhline(top - 0.3, color="0.75", linewidth=0.6)
    _add_scale(figure, (0.2 / width, 0.42 / height, 2.4 / width, 0.12 / height), unit)
    return figure


def histograms_figure(features: Features, run_name: str, neurons: int = 6) -> Figure:
    """How often the most selective neurons take which activation; counts on a logarithmic scale. Raises OptionError
    where the result has no profiles.
    """
    chosen = _profiles(features, neurons)
    unit = chosen[0][0].unit
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    title = f"Activations of the most selective {unit}s"
    figure = new_figure(3.4 * columns + 0.4, 2.3 * rows + 0.7, title, run_name)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.remove()
    for axes, (layer, profile) in zip(grid.flat, chosen, strict=False):
        axes.stairs(profile.histogram, profile.edges, fill=True, color=CATEGORIES[0])
        axes.axvline(layer.threshold, color=CATEGORIES[4], linewidth=1, linestyle="--")
        axes.set_ylim(0.7, max(2, 1.5 * int(profile.histogram.max(initial=1))))
        axes.set_yscale("log")
        axes.set_title(" · ".join(_facts(layer, profile.neuron)[:2]), fontsize=8, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.set_xlabel(f"activation (dashed: the threshold, {layer.threshold:g})", fontsize=8)
        axes.set_ylabel("positions", fontsize=8)
    return figure


def selectivity_figure(features: Features, run_name: str) -> Figure:
    """Each neuron by its density and its excess kurtosis, a panel for each layer; the number of the most selective one
    stands beside it, of a single layer those of three. Neurons of equal values have no kurtosis: they are counted, and
    not drawn.
    """
    layers = features.layers
    if not layers:
        raise OptionError("the result has no layers to draw")
    unit = layers[0].unit
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    size = (2.6, 2.0) if len(layers) > 1 else (6.5, 4.2)
    figure = new_figure(size[0] * columns + 0.5, size[1] * rows + 0.9, f"How selective the {unit}s are", run_name)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(layers) :]:
        axes.remove()
    for axes, layer in zip(grid.flat, layers, strict=False):
        drawn = ~np.isnan(layer.kurtosis)
        told = [_place(layer), f"{int(layer.dead.sum())} dead"]
        told += [f"{int((~drawn).sum())} not drawn"] if not drawn.all() else []
        axes.scatter(
            100 * layer.density[drawn], layer.kurtosis[drawn], s=6, color=CATEGORIES[0], alpha=0.6, linewidths=0
        )
        for neuron in layer.most_selective(3 if len(layers) == 1 else 1):
            place = 100 * layer.density[neuron], layer.kurtosis[neuron]
            axes.scatter(*place, s=10, color=CATEGORIES[4], linewidths=0)
            axes.annotate(str(neuron), place, (3, 0), textcoords="offset points", fontsize=7, va="center")
        axes.axhline(0, color="0.5", linewidth=0.7, linestyle=":")
        axes.set_title(", ".join(told), fontsize=8, parse_math=False)
        axes.tick_params(labelsize=7)
    grid[0, 0].set_yscale("symlog", linthresh=2, linscale=0.5)
    highest = max((float(layer.kurtosis[~np.isnan(layer.kurtosis)].max(initial=0)) for layer in layers), default=0.0)
    grid[0, 0].set_ylim(-2.5, 2 * highest + 2)  # no distribution has less than -2
    grid[0, 0].set_xlim(-3, 103)
    figure.supxlabel(f"density: share of positions with an activation above {layers[0].threshold:g} (%)", fontsize=9)
    figure.supylabel("excess kurtosis (0: normal distribution)", fontsize=9)
    return figure


def figure(result: Features, run_name: str) -> Figure:
    """The picture that says most: the contexts, or the selectivity where the result has no profiles."""
    has_profiles = any(layer.profiles for layer in result.layers)
    return contexts_figure(result, run_name) if has_profiles else selectivity_figure(result, run_name)


def _profiles(features: Features, count: int) -> list[tuple[LayerFeatures, Profile]]:
    """The profiles of the highest kurtosis."""
    found = [(layer, profile) for layer in features.layers for profile in layer.profiles]
    if not found:
        raise OptionError("the result has no profiles to draw: ask for some, or choose neurons")
    found.sort(key=lambda pair: -np.nan_to_num(pair[0].kurtosis[pair[1].neuron], nan=-np.inf))
    return found[:count]


def _place(layer: LayerFeatures) -> str:
    return layer.hook_id if layer.layer is None else f"layer {layer.layer}"


def _facts(layer: LayerFeatures, neuron: int) -> list[str]:
    density, kurtosis = layer.density[neuron], layer.kurtosis[neuron]
    return [
        f"{_place(layer)[: _LABEL - 16]}, {layer.unit} {neuron}",
        f"active at {100 * density:.3g} % of positions" if not np.isnan(density) else "no finite activation",
        f"kurtosis {kurtosis:.3g}, largest {layer.maximum[neuron]:.3g}",
    ]


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y + 0.5, text, family="monospace", fontsize=_FONT_SIZE, va="center", parse_math=False, **style)


def _draw_context(axes: Axes, y: float, context: Context, largest: float) -> None:
    if not context.texts:
        _write(axes, 0, y, "(its position is not known)", color="0.4")
        return
    texts = [shown_text(text) or "∅" for text in context.texts]
    if context.texts[context.peak] == str(context.position):  # the run holds no tokens: these are positions
        texts = [f" {text}" for text in texts]
    start = -sum(map(len, texts[: context.peak]))
    for number, (text, activation) in enumerate(zip(texts, context.activations.tolist(), strict=True)):
        share = activation / largest if largest else np.nan
        _draw_token(axes, (start, y), text, share, is_peak=number == context.peak)
        start += len(text)


def _draw_token(axes: Axes, place: tuple[int, float], text: str, share: float, *, is_peak: bool) -> None:
    """`share`: the activation over the neuron's largest; NaN where there is none."""
    import matplotlib
    from matplotlib.patches import Rectangle

    x, y = place
    first, last = max(-_BEFORE - x, 0), max(_AFTER - x, 0)  # what there is room for
    text, x = text[first:last], x + first
    if not text:
        return
    known = not np.isnan(share)
    if known:
        colour = matplotlib.colormaps[DIVERGING](_shade(share))
        edge = "0.25" if is_peak else "none"
        box = Rectangle((x, y + 0.06), len(text), 0.88, facecolor=colour, edgecolor=edge, linewidth=0.8)
        axes.add_patch(box)
    _write(axes, x, y, text, color="black" if known else "0.45")


def _shade(share: float) -> float:
    return 0.5 + 0.5 * _STRONGEST * float(np.clip(share, -1, 1))


def _add_scale(figure: Figure, place: tuple[float, float, float, float], unit: str) -> None:
    import matplotlib

    axes = figure.add_axes(place)
    shares = np.linspace(-1, 1, 101)
    axes.imshow(
        matplotlib.colormaps[DIVERGING]([[_shade(share) for share in shares]]), aspect="auto", extent=(-1, 1, 0, 1)
    )
    axes.set_yticks([])
    axes.set_xticks([-1, 0, 1])
    axes.tick_params(labelsize=7, length=2, pad=1)
    axes.text(1.08, 0.5, f"activation, over the {unit}'s largest", fontsize=7, va="center", parse_math=False)
