"""Pictures of feature detection: what is drawn, and that awkward results can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from activation_runs import cut, entry_of, record_of, run_of
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from neuroscope_fast.analysis.feature_results import Features
from neuroscope_fast.analysis.features import detect_features
from neuroscope_fast.errors import OptionError
from neuroscope_fast.plots.features import contexts_figure, figure, histograms_figure, selectivity_figure
from neuroscope_fast.plots.style import save
from test_analysis_features import sequences

WORDS = ["The", " cat", " sat", "$x$", " \n", " on_\\", "", "\x1b[31m", "猫", "<script>"]


def found(layers: int = 1, **options: Any) -> Features:
    ids = {word: number for number, word in enumerate(WORDS)}
    prompts = sequences([[len(WORDS)], [len(WORDS) - 1]], 6)
    entries = [entry_of(0, [WORDS], ids), entry_of(1, [WORDS[::-1]], ids)]
    records = [
        record for layer in range(layers) for record in cut(prompts, hook_id=f"n{layer}", layer_name=f"h.{layer}")
    ]
    return detect_features(run_of(records, entries), **options)


def texts(drawn: Figure) -> list[str]:
    return [text.get_text() for axes in drawn.axes for text in axes.texts]


def test_contexts(tmp_path: Path) -> None:
    result = found(before=3, after=2)
    drawn = contexts_figure(result, "runs/a $ name")
    assert drawn.get_suptitle() == "What the most selective neurons respond to"
    (layer,) = result.layers
    profile = layer.profiles[0]
    shown = texts(drawn)
    assert f"layer 0, neuron {profile.neuron}" in shown
    assert f"active at {100 * layer.density[profile.neuron]:.3g} % of positions" in shown
    assert "$x$" in shown
    assert " ↵" in shown
    assert not any("\x1b" in text or "\n" in text for text in shown)
    boxes = [patch for patch in drawn.axes[0].patches if isinstance(patch, Rectangle)]
    peaks = [box for box in boxes if box.get_edgecolor() == to_rgba("0.25")]
    shown_contexts = [context for each in layer.profiles[:5] for context in each.contexts[:3]]
    assert len(peaks) == len(shown_contexts)
    assert all(box.get_x() == 0 for box in peaks)
    first = [box for box in boxes if box.get_y() == peaks[0].get_y()]
    strength = [abs(box.get_facecolor()[0] - box.get_facecolor()[2]) for box in first]
    assert max(strength) == strength[first.index(peaks[0])]
    for suffix in ("png", "svg", "html"):
        save(drawn, tmp_path / f"x.{suffix}")
    assert "<script>" not in (tmp_path / "x.html").read_text()


def test_a_long_token_stays_in_its_column() -> None:
    prompts = sequences([[4]], 2)
    ids = {"a" * 300: 1, "b": 2}
    entry = entry_of(0, [["b", "a" * 300, "a" * 300, "b"]], ids)
    drawn = contexts_figure(detect_features(run_of(cut(prompts), [entry]), neurons=[0]), "run")
    low, high = drawn.axes[0].get_xlim()
    for patch in drawn.axes[0].patches:
        assert low < patch.get_x() <= patch.get_x() + patch.get_width() <= high


def test_histograms(tmp_path: Path) -> None:
    result = found()
    drawn = histograms_figure(result, "run", neurons=4)
    assert len(drawn.axes) == 4
    ordered = sorted(result.layers[0].profiles, key=lambda each: -result.layers[0].kurtosis[each.neuron])
    for axes, profile in zip(drawn.axes, ordered, strict=False):
        (steps,) = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        values, edges, _ = steps.get_data()
        assert values.tolist() == profile.histogram.tolist()
        assert edges.tolist() == profile.edges.tolist()
        assert axes.get_yscale() == "log"
        assert f"neuron {profile.neuron}" in axes.get_title()
        assert axes.get_ylabel() == "positions"
    save(drawn, tmp_path / "x.png")


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_selectivity(layers: int, tmp_path: Path) -> None:
    result = found(layers)
    drawn = selectivity_figure(result, "run")
    assert len(drawn.axes) == layers
    for axes, layer in zip(drawn.axes, result.layers, strict=True):
        offsets = np.asarray(axes.collections[0].get_offsets())
        assert offsets[:, 0] == pytest.approx(100 * layer.density)
        assert offsets[:, 1] == pytest.approx(layer.kurtosis)
        assert [text.get_text() for text in axes.texts] == [
            str(neuron) for neuron in layer.most_selective(3 if layers == 1 else 1)
        ]
    save(drawn, tmp_path / "x.png")


def test_neurons_of_equal_values_are_counted_and_not_drawn(tmp_path: Path) -> None:
    values = torch.zeros(1, 6, 3)
    values[0, :, 1] = torch.nan
    values[0, :, 2] = torch.arange(6.0)
    result = detect_features(run_of([record_of(values)]), neurons=[0, 1, 2])
    drawn = selectivity_figure(result, "run")
    assert drawn.axes[0].get_title() == "layer 0, 1 dead, 2 not drawn"
    for number, make in enumerate((selectivity_figure, histograms_figure, contexts_figure)):
        save(make(result, "run"), tmp_path / f"{number}.png")
    assert "no finite activation" in texts(contexts_figure(result, "run"))


def test_one_dead_neuron(tmp_path: Path) -> None:
    result = detect_features(run_of([record_of(torch.zeros(1, 3, 1))]))
    save(selectivity_figure(result, "run"), tmp_path / "x.png")
    for make in (contexts_figure, histograms_figure):
        with pytest.raises(OptionError, match="no profiles to draw"):
            make(result, "run")
    with pytest.raises(OptionError, match="no layers"):
        selectivity_figure(msgspec.structs.replace(result, layers=[]), "run")


def test_the_figure_of_a_result() -> None:
    assert figure(found(), "run").get_suptitle() == "What the most selective neurons respond to"
    assert figure(found(profiles=0), "run").get_suptitle() == "How selective the neurons are"


def test_without_tokens_positions_are_drawn(tmp_path: Path) -> None:
    drawn = contexts_figure(detect_features(run_of(cut(sequences([[5]], 3))), neurons=[0, 1, 2]), "run")
    save(drawn, tmp_path / "x.png")
    assert {" 1", " 2", " 3", " 4"} <= set(texts(drawn))
    unknown = detect_features(run_of([record_of(torch.rand(1, 4, 3), positions=[])]), neurons=[0])
    assert "(its position is not known)" in texts(contexts_figure(unknown, "run"))
