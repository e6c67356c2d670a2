"""Feature detection as tables: what the most selective neurons respond to, and a line for each hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import Cell, Table

if TYPE_CHECKING:
    from .feature_profiles import Context, Profile
    from .feature_results import Features, LayerFeatures

_LINES = 12
_BEFORE, _AFTER = 4, 2  # tokens of a context that a line has room for


def tables_of(features: Features) -> list[Table]:
    """The tables of a result, the most telling first."""
    layers = features.layers
    tables = [_summary(features)]
    reconstructions = [_reconstruction(layer) for layer in layers if layer.reconstruction is not None]
    if reconstructions:
        columns = ["hook", "autoencoder", "architecture", "explained variance", "L0", "MSE", "not finite"]
        note = "L0: features above 0 at a position, on average. Not finite: positions left out of all three numbers."
        tables.insert(0, Table("How well the autoencoder reconstructs", columns, reconstructions, note))
    if any(layer.profiles for layer in layers):
        tables.insert(0, _selective(layers))
    return tables


def _selective(layers: list[LayerFeatures]) -> Table:
    found = [(layer, profile) for layer in layers for profile in layer.profiles]
    found.sort(key=lambda pair: _descending(pair[0].kurtosis[pair[1].neuron]))
    unit = layers[0].unit
    rows = [_line(layer, profile) for layer, profile in found[:_LINES]]
    columns = ["layer", unit, "active at", "kurtosis", "largest", "most active at «…»", "tokens of the highest mean"]
    note = (
        f"Active at: the share of positions with a value above {layers[0].threshold:g}. Kurtosis: excess; the higher, "
        "the more a few positions stand out. Tokens: mean, and how often they are read; at least twice."
    )
    return Table(f"What the most selective {unit}s respond to", columns, rows, note)


def _line(layer: LayerFeatures, profile: Profile) -> list[Cell]:
    number = profile.neuron
    return [
        layer.hook_id if layer.layer is None else layer.layer,
        number,
        _percent(layer.density[number]),
        _number(layer.kurtosis[number]),
        _number(layer.maximum[number]),
        context_text(profile.contexts[0]) if profile.contexts else None,
        ", ".join(f"{shown_text(each.text)} ({each.mean:.3g}, {each.count}×)" for each in profile.tokens[:3]) or None,
    ]


def context_text(context: Context) -> str:
    """A context as one line, the peak between « and »; where the run holds no tokens, which position it is."""
    where = f"prompt {context.prompt}, row {context.row}, position {context.position}"
    if not context.texts or (context.texts[context.peak] == str(context.position)):
        return where
    start = max(context.peak - _BEFORE, 0)
    before = "".join(context.texts[start : context.peak])
    after = "".join(context.texts[context.peak + 1 : context.peak + 1 + _AFTER])
    return f"{'…' if start else ''}{shown_text(before)}«{shown_text(context.texts[context.peak])}»{shown_text(after)}"


def _summary(features: Features) -> Table:
    rows = [_layer_line(layer) for layer in features.layers]
    unit = features.layers[0].unit if features.layers else "neuron"
    columns = ["hook", f"{unit}s", "positions", "dead", "always 0", "median density", "median kurtosis", "not finite"]
    skipped = features.skip_first
    first = "first position" if skipped == 1 else f"first {skipped} positions"
    left_out = f" The {first} of each sequence {'is' if skipped == 1 else 'are'} left out." if skipped else ""
    note = (
        f"Dead: never above the threshold. Not finite: values that are NaN or infinite, in no other number.{left_out}"
    )
    return Table(f"The {unit}s of each hook", columns, rows, note)


def _layer_line(layer: LayerFeatures) -> list[Cell]:
    return [
        layer.hook_id,
        len(layer.mean),
        layer.positions,
        int(layer.dead.sum()),
        int(layer.always_zero.sum()),
        _percent(_median(layer.density)),
        _number(_median(layer.kurtosis)),
        int(layer.not_finite.sum()),
    ]


def _reconstruction(layer: LayerFeatures) -> list[Cell]:
    found = layer.reconstruction
    assert found is not None
    return [
        layer.hook_id,
        found.autoencoder,
        found.architecture,
        _number(found.explained_variance),
        _number(found.l0),
        _number(found.mse),
        found.not_finite,
    ]


def _median(values: np.ndarray[Any, Any]) -> float:
    """Of those that are numbers; NaN without any."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan


def _descending(value: float) -> tuple[bool, float]:
    """A key that sorts the largest first and NaN last."""
    return bool(np.isnan(value)), -float(value)


def _percent(value: float) -> str | None:
    return None if np.isnan(value) else f"{100 * value:.3g} %"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def shown_text(text: str) -> str:
    """A token's text on one line."""
    return "".join(each if each.isprintable() else "↵" if each == "\n" else "�" for each in text)
