"""Pictures of attention: what they show is what was measured, and labels stay readable from one token to hundreds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_runs import Hook, causal, made_run, steps_of
from neuroscope_fast.analysis.attention import SCORES, attention
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.plots import attention as plots
from neuroscope_fast.plots.style import save
from neuroscope_fast.reader import Run

LAYERS = ("model.layers.3.self_attn", "model.layers.7.self_attn")
IDS = [0, *range(1, 9), *range(1, 9)]


def a_run(**changes: Any) -> Run:
    patterns = [causal(3, 16, seed=number) for number in range(2)]
    hooks = {name: Hook(name, [steps_of(each, 12)], **changes) for name, each in zip(LAYERS, patterns, strict=True)}
    return made_run(hooks, [IDS], prompt_tokens=12)


def tick_texts(axes: Any, axis: str) -> list[str]:
    return [label.get_text() for label in (axes.get_xticklabels() if axis == "x" else axes.get_yticklabels())]


@pytest.mark.parametrize("size", [1, 2, 5, 60, 61, 500])
def test_a_heat_map_shows_every_weight_and_at_most_sixty_labels(size: int) -> None:
    weights = causal(1, size)[0, 0].numpy()
    axes, bar = plots.heat_map(weights, [f" t{n}" for n in range(size)], run_name="r").axes
    shown = axes.images[0].get_array()
    assert shown.shape == (size, size)
    assert np.allclose(np.tril(shown.filled(0)), weights)
    assert shown.mask.sum() == size * (size - 1) // 2  # what a query cannot see is white
    for axis in "xy":
        texts = tick_texts(axes, axis)
        step = -(-size // 60)
        assert texts == [f"{n} ·t{n}" for n in range(0, size, step)]
        assert len(texts) <= 60
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert "probability" in bar.get_ylabel()


def test_a_heat_map_leaves_what_is_no_number_white_and_draws_only_zeros() -> None:
    weights = causal(1, 4)[0, 0].numpy()
    weights[2, 1] = math.nan
    assert plots.heat_map(weights, ["a"] * 4, run_name="r").axes[0].images[0].get_array().mask[2, 1]
    blank = plots.heat_map(np.full((2, 2), math.nan), ["a"] * 2, run_name="r").axes[0].images[0]
    assert blank.get_array().mask.all()
    assert plots.heat_map(np.zeros((2, 2)), ["a"] * 2, run_name="r").axes[0].images[0].get_clim() == (0, 1)


def test_chosen_queries_are_labelled_by_their_own_tokens() -> None:
    weights = causal(1, 9)[0, 0, 5:].numpy()
    axes = plots.heat_map(weights, list("abcdefghi"), run_name="r", queries=[5, 6, 7, 8]).axes[0]
    assert tick_texts(axes, "y") == ["5 f", "6 g", "7 h", "8 i"]
    assert axes.images[0].get_array().mask.sum() == 3 + 2 + 1


def test_sizes_that_disagree_are_refused() -> None:
    with pytest.raises(OptionError, match="needs 3 tokens"):
        plots.heat_map(np.eye(3), ["a", "b"], run_name="r")
    with pytest.raises(OptionError, match="a position for each query"):
        plots.heat_map(np.eye(3), ["a", "b", "c"], run_name="r", queries=[1])


def test_texts_are_shown_as_texts(tmp_path: Path) -> None:
    hostile = ["<script>alert(1)</script>", "$x^2$", "\n\x1b[2J"]
    figure = plots.heat_map(np.tril(np.ones((3, 3))), hostile, run_name="<b>$r$", title="</title><script>")
    save(figure, tmp_path / "a.html")
    assert "<script" not in (tmp_path / "a.html").read_text()
    assert tick_texts(figure.axes[0], "x") == ["0 <script>ale…", r"1 \$x^2\$", r"2 ↵\x1b[2J"]


def test_the_figure_of_a_head_is_that_heads_pattern() -> None:
    run = a_run(heads=[4, 0, 2])
    figure = plots.head_figure(run, "r", layer=7, head=0)
    expected = causal(3, 16, seed=1)[0, 1].numpy()
    assert np.allclose(figure.axes[0].images[0].get_array().filled(0), expected)
    assert "7.0" in figure.get_suptitle()
    assert tick_texts(figure.axes[0], "y")[9] == "9 t1"
    with pytest.raises(RunError, match="layer 7 head 1: capture it with --hook"):
        plots.head_figure(run, "r", layer=7, head=1)
    with pytest.raises(RunError, match="nothing of prompt 5"):
        plots.head_figure(run, "r", layer=7, head=0, prompt=5)


def test_the_grid_shows_the_scores_by_layer_and_head() -> None:
    result = attention(a_run())
    panels = plots.score_grid(result, "r").axes
    titles = {axes.get_title(): axes for axes in panels if axes.get_title()}
    assert set(titles) == set(SCORES.values()) - {SCORES["previous"]}
    for name, title in SCORES.items():
        if title in titles:
            layers, values = result.grid(name)
            assert layers == ["3", "7"]
            assert np.array_equal(titles[title].images[0].get_array(), values, equal_nan=True)
            assert tick_texts(titles[title], "y") == ["3", "7"]
    (one,) = [axes for axes in plots.score_grid(result, "r", ["induction_score"]).axes if axes.get_title()]
    assert one.get_title() == "induction score"
    with pytest.raises(OptionError, match="no head score 'inductoin'; available: previous_token_score"):
        plots.score_grid(result, "r", ["inductoin"])


def test_heads_that_were_not_captured_are_white_in_the_grid() -> None:
    figure = plots.score_grid(attention(a_run(heads=[4, 0, 2])), "r", ["first"])
    assert figure.axes[0].images[0].get_array().mask.tolist() == [[False, True, False, True, False]] * 2


def test_bars_are_what_was_attended() -> None:
    result = attention(a_run())
    axes = plots.attended_figure(result, "r").axes[0]
    drawn = [patch.get_width() for patch in axes.patches]
    expected = [weight for each in result.attended for weight in (each.first_token, *each.weights)]
    assert drawn == pytest.approx(expected)
    assert tick_texts(axes, "y") == [f"t{IDS[q]} → t{IDS[q + 1]}" for q in range(11, 16)]
    with pytest.raises(OptionError, match="prompt 3"):
        plots.attended_figure(result, "r", prompt=3)


def test_a_query_that_is_no_number_says_so() -> None:
    pattern = causal(1, 16)
    pattern[0, 0, 13, 3] = math.nan
    run = made_run({"a": Hook(LAYERS[0], [steps_of(pattern, 12)])}, [IDS], prompt_tokens=12)
    axes = plots.attended_figure(attention(run), "r").axes[0]
    assert [text.get_text() for text in axes.texts].count("not a number") == 1


def test_a_run_of_means_has_a_picture_too(tmp_path: Path) -> None:
    whole = causal(1, 16)
    steps = [(start, tensor[:, 0]) for start, tensor in steps_of(whole, 12)]
    run = made_run({"m": Hook(LAYERS[0], [steps], reduction="mean")}, [IDS], prompt_tokens=12)
    save(plots.figure(attention(run), "r"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(OptionError, match="nothing to draw"):
        plots.score_grid(attention(run), "r")
