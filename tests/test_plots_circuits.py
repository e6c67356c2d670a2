"""Pictures of circuit discovery: what they show of the results, small and large ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from memory_runs import Hook, memory_run
from neuroscope_fast.analysis.circuit_comparison import Comparison
from neuroscope_fast.analysis.circuit_graph import CircuitGraph, Link, Node
from neuroscope_fast.analysis.circuits import compare
from neuroscope_fast.analysis.interventions import Site
from neuroscope_fast.analysis.patching import Ablation, Patching
from neuroscope_fast.errors import OptionError
from neuroscope_fast.plots import circuits, patching
from neuroscope_fast.plots.style import save
from neuroscope_fast.reader import Run


def run(seed: int, layers: int, prompts: int, louder: float = 1.0) -> Run:
    generator = torch.Generator().manual_seed(seed)
    hooks = {}
    for layer in range(layers):
        for component, shape in (("mlp", (5,)), ("head_output", (2, 5))):
            tensors = [[torch.randn(1, 3, *shape, generator=generator)] for _ in range(prompts)]
            for steps in tensors:
                steps[0] *= louder if (layer, component) == (layers - 1, "mlp") else 1.0
            hooks[f"{component}.{layer}"] = Hook(f"model.layers.{layer}", component, tensors)
    return memory_run(hooks)


def comparison(layers: int = 3, prompts: int = 8) -> Comparison:
    return compare(run(1, layers, prompts, louder=9.0), run(2, layers, prompts))


def texts(figure: object) -> list[str]:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    assert isinstance(figure, Figure)
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]  # type: ignore[attr-defined]


def graph(layers: int, heads: int) -> CircuitGraph:
    nodes = [Node("input", "input", None, None, 1.0, 0.0, False)]
    for layer in range(layers):
        nodes += [Node(f"{layer}.{head}", "head", layer, head, 1.0, 0.1, head == 0) for head in range(heads)]
        nodes.append(Node(f"{layer} mlp", "mlp", layer, None, 1.0, 0.1, False))
    nodes.append(Node("output", "output", None, None, 1.0, 1.0, False))
    links = [
        Link(one.id, two.id, 0.4 if one.kind == "input" else 0.3 if number % 3 else -0.2, 0.5)
        for number, (one, two) in enumerate(
            (one, two) for place, one in enumerate(nodes) for two in nodes[place + 1 :] if one.layer != two.layer
        )
    ]
    return CircuitGraph(nodes, links, 0.05, 0, "overlap of activation differences")


def test_effects_show_the_strongest_and_what_holds(tmp_path: Path) -> None:
    found = comparison()
    figure = circuits.figure(found, "runs/a")
    [axes] = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[-1] == "2 mlp"  # on top
    assert len(axes.patches) == len(found.components)
    assert axes.patches[-1].get_width() == pytest.approx(found.effects.max())
    assert "**" in texts(figure)
    assert any("d_z" in text for text in texts(figure))
    assert "run: runs/a" in texts(figure)
    save(figure, tmp_path / "a.png")


def test_effects_of_many_components_are_cut(tmp_path: Path) -> None:
    figure = circuits.effects_figure(comparison(layers=40), "r")
    assert len(figure.axes[0].patches) == circuits.MOST_BARS
    save(figure, tmp_path / "a.svg")


def test_too_few_prompts_are_said_on_the_picture() -> None:
    assert any(
        "smallest possible p is 0.25" in text for text in texts(circuits.effects_figure(comparison(prompts=3), "r"))
    )
    with pytest.raises(OptionError, match="needs more prompts"):
        circuits.effects_figure(comparison(prompts=1), "r")


def test_infinite_effects_are_drawn_at_the_edge(tmp_path: Path) -> None:
    one, two = (
        memory_run({"mlp": Hook("layers.0", "mlp", [[torch.full((1, 2, 4), size)]] * 6)}) for size in (2.0, 1.0)
    )
    found = compare(one, two)
    assert np.isinf(found.effects).all()
    save(circuits.effects_figure(found, "r"), tmp_path / "a.png")


def test_maps_show_the_values_by_layer_and_position(tmp_path: Path) -> None:
    found = comparison()
    figure = circuits.difference_figure(found, "r")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert set(panels) == {"mlp", "head_output"}
    rows = [number for number, each in enumerate(found.components) if each.component == "head_output"]
    shown = panels["head_output"].images[0].get_array()
    assert np.array_equal(np.asarray(shown), found.difference[rows])
    assert [label.get_text() for label in panels["head_output"].get_yticklabels()] == [
        f"{layer}.{head}" for layer in range(3) for head in range(2)
    ]
    save(figure, tmp_path / "a.html")


def test_the_graph_has_every_node_once_and_layers_upwards(tmp_path: Path) -> None:
    some = graph(layers=5, heads=6)
    figure = circuits.figure(some, "r")
    [axes] = figure.axes
    height = {text.get_text(): text.get_position() for text in axes.texts}
    assert {name.replace(" attn", "") for name in height} == {node.id for node in some.nodes}
    assert len(set(height.values())) == len(some.nodes)  # none lies on another
    assert height["input"][1] < height["0.3"][1] < height["0 mlp"][1] < height["1.0"][1] < height["output"][1]
    assert any(f"{circuits.MOST_EDGES} strongest of {len(some.links)} edges" in text for text in texts(figure))
    save(figure, tmp_path / "a.png")


def test_a_graph_without_edges_is_drawn(tmp_path: Path) -> None:
    nodes = [Node("input", "input", None, None, 1.0, 0.0, False), Node("output", "output", None, None, 1.0, 1.0, False)]
    figure = circuits.graph_figure(CircuitGraph(nodes, [], 0.05, 0, "n"), "r")
    assert [text.get_text() for text in figure.axes[0].texts] == ["output"]
    save(figure, tmp_path / "a.png")


def result(positions: list[int] | None, heads: int = 3) -> Patching:
    sites = [Site(f"l.{layer}", "mlp", layer) for layer in range(2)]
    sites += [Site(f"l.{layer}", "head_output", layer, head) for layer in range(2) for head in range(heads)]
    columns = 1 if positions is None else len(positions)
    values = np.arange(len(sites) * columns, dtype=float).reshape(len(sites), columns) / 10
    labels = ["all"] if positions is None else [f"$to{p}\n" for p in positions]
    return Patching("denoising", sites, positions, labels, 3.0, -1.0, values, values, values[..., None], [1], [2], "")


def test_patching_of_all_positions_shows_heads_side_by_side(tmp_path: Path) -> None:
    found = result(None)
    figure = patching.figure(found, "r")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    shown = np.asarray(panels["head_output"].images[0].get_array())
    assert np.array_equal(shown, found.normalised[2:, 0].reshape(2, 3))
    assert panels["head_output"].get_xlabel() == "head"
    assert "0.70" in texts(figure)
    save(figure, tmp_path / "a.png")


def test_patching_by_position_shows_tokens(tmp_path: Path) -> None:
    found = result([0, 1, 2])
    figure = patching.figure(found, "r")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert np.array_equal(np.asarray(panels["mlp"].images[0].get_array()), found.normalised[:2])
    assert [label.get_text() for label in panels["mlp"].get_xticklabels()] == [f"\\$to{p}↵" for p in range(3)]
    save(figure, tmp_path / "a.png")


def test_ablations_are_bars_beside_the_whole_model(tmp_path: Path) -> None:
    sites = [Site(f"l.{layer}", "mlp", layer) for layer in range(3)]
    found = Ablation("zero", "accuracy", sites, 0.9, np.array([0.5, 0.1, 0.8]), 0.0)
    figure = patching.figure(found, "r")
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all of them", "2 mlp", "0 mlp", "1 mlp"]
    assert [bar.get_width() for bar in axes.patches] == [0.0, 0.8, 0.5, 0.1]
    save(figure, tmp_path / "a.png")
