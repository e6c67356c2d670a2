"""The pictures of information flow, logit lens and attribution: what they say, and awkward sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import neuroscope_fast as nsf
import numpy as np
import pytest
from flow_runs import hooks_of
from matplotlib.figure import Figure
from neuroscope_fast.analysis.attribution import Attribution, logit_attribution
from neuroscope_fast.analysis.flow import Flow, information_flow
from neuroscope_fast.analysis.logit_lens import LogitLens, logit_lens
from neuroscope_fast.plots import attribution as attribution_plot
from neuroscope_fast.plots import flow as flow_plot
from neuroscope_fast.plots import logit_lens as lens_plot
from neuroscope_fast.plots.style import save

NASTY = ["<script>alert(1)</script>", "$x$", "\n", "", "\x1b[31m", "語", "&amp;"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> nsf.Run:
    hooks = [*hooks_of("llama", "residual", "attention", "mlp", "head_output"), "model.embed_tokens:embedding"]
    folder = tmp_path_factory.mktemp("demo") / "run"
    return nsf.generate("demo", "The capital of France is", hooks, folder, max_new_tokens=3, store_readout=True)


def texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [each.get_text() for each in figure.findobj(Text)]  # type: ignore[attr-defined]


def written(figure: Figure, folder: Path) -> None:
    """In every format."""
    for suffix in (".png", ".svg", ".html"):
        save(figure, folder / f"picture{suffix}")
        assert (folder / f"picture{suffix}").stat().st_size > 1000
    assert "<script" not in (folder / "picture.html").read_text()


def test_flow(run: nsf.Run, tmp_path: Path) -> None:
    flow = information_flow(run)
    figure = flow_plot.figure(flow, "my run")
    found = texts(figure)
    assert "run: my run" in found
    assert "·France" in found
    assert {"layer", "median cosine to the stream", "Euclidean norm, log scale", "in"} <= set(found)
    sizes, cosines = (axes for axes in figure.axes if axes.get_lines())
    np.testing.assert_allclose(sizes.get_lines()[1].get_ydata(), np.median(flow.attention_norm, axis=1))
    np.testing.assert_allclose(cosines.get_lines()[2].get_ydata(), np.median(flow.mlp_before, axis=1))
    image = figure.axes[0].get_images()[0].get_array()
    assert image is not None
    np.testing.assert_array_equal(np.asarray(image), np.vstack([flow.entry_norm, flow.stream_norm]))
    written(figure, tmp_path)


def flow_of(layers: int, positions: int, value: float = 1.0, tokens: list[str] | None = None) -> Flow:
    arrays: dict[str, Any] = {
        name: np.full((layers, positions), value)
        for name in Flow.__struct_fields__
        if name.startswith(("attention_", "mlp_", "stream_"))
    }
    return Flow(
        prompt=0,
        row=0,
        positions=np.arange(positions),
        tokens=tokens or ["t"] * positions,
        layers=np.arange(layers),
        entry_norm=np.full(positions, value),
        deviation=np.full(layers, value),
        contributions="",
        **arrays,
    )


@pytest.mark.parametrize(("layers", "positions", "value"), [(1, 1, 1.0), (80, 500, 3.0), (2, 3, np.nan), (2, 3, 0.0)])
def test_flow_of_awkward_sizes(tmp_path: Path, layers: int, positions: int, value: float) -> None:
    figure = flow_plot.figure(flow_of(layers, positions, value), "r")
    written(figure, tmp_path)
    if np.isnan(value):
        assert "not in this run" in texts(figure)


def test_texts_of_tokens_are_never_markup(tmp_path: Path) -> None:
    figure = flow_plot.figure(flow_of(2, len(NASTY), tokens=NASTY), "<b>run</b>")
    assert r"\$x\$" in texts(figure)
    written(figure, tmp_path)


def test_logit_lens(run: nsf.Run, tmp_path: Path) -> None:
    lens = logit_lens(run)
    figure = lens_plot.figure(lens, "my run")
    found = texts(figure)
    for layer in range(len(lens.streams)):
        assert lens.text(lens.top_ids[layer, 0, 0])[:1].replace(" ", "·") in {text[:1] for text in found}
    assert "probability of the likeliest token" in found
    axes = figure.axes[0]
    assert len(axes.patches) == (lens.choice_rank == 1).sum()
    assert len(axes.texts) == lens.choice_rank.size
    written(figure, tmp_path)


def lens_of(layers: int, positions: int, *, known: bool = True) -> LogitLens:
    shape = (layers, positions)
    return LogitLens(
        prompt=0,
        row=0,
        positions=np.arange(positions),
        tokens=[NASTY[at % len(NASTY)] for at in range(positions)],
        streams=[str(layer) for layer in range(layers)],
        top_ids=np.full((*shape, 1), 0 if known else -1),
        top_probabilities=np.full((*shape, 1), 0.5 if known else np.nan),
        texts={0: NASTY[0]},
        choices=np.full(positions, 0 if known else -1),
        choice_probability=np.full(shape, 0.5),
        choice_rank=np.full(shape, 1 if known else -1),
        entropy=np.zeros(shape),
        divergence=np.zeros(shape),
        logits_off_by=0.0,
    )


@pytest.mark.parametrize(
    ("layers", "positions", "known"), [(1, 1, True), (33, 500, True), (2, 3, False), (4, 60, True)]
)
def test_logit_lens_of_awkward_sizes(tmp_path: Path, layers: int, positions: int, known: bool) -> None:
    figure = lens_plot.figure(lens_of(layers, positions, known=known), "r")
    written(figure, tmp_path)
    assert ("n/a" in texts(figure)) == (not known)
    assert bool(figure.axes[0].texts) == (positions <= 60)


def test_attribution(run: nsf.Run, tmp_path: Path) -> None:
    found = logit_attribution(run, against=" the")
    figure = attribution_plot.figure(found, "my run", 1)
    shown = texts(figure)
    assert f"the other {len(found.components) - 20}" in shown
    assert any(text.startswith("Direct logit attribution") and "over “·the”" in text for text in shown)
    bars, grid = figure.axes[:2]
    widths = [patch.get_width() for patch in bars.patches]  # type: ignore[attr-defined]
    assert sum(widths) == pytest.approx(found.values[:, 1].sum())
    assert widths[0] == pytest.approx(max(found.values[:, 1], key=abs))
    image = grid.get_images()[0].get_array()
    assert image is not None
    np.testing.assert_array_equal(np.asarray(image), found.heads[:, :, 1])
    written(figure, tmp_path)


@pytest.mark.parametrize("change", ["no heads", "not finite", "nasty", "zero"])
def test_awkward_attributions(run: nsf.Run, tmp_path: Path, change: str) -> None:
    found: Attribution = logit_attribution(run)
    if change == "no heads":
        found = msgspec.structs.replace(found, head_layers=found.head_layers[:0], heads=found.heads[:0])
    elif change == "not finite":
        found = msgspec.structs.replace(found, values=found.values * np.nan, heads=found.heads * np.nan)
    elif change == "zero":
        found = msgspec.structs.replace(found, values=found.values * 0, heads=found.heads * 0)
    else:
        found = msgspec.structs.replace(found, target_tokens=NASTY[:1] * 3, tokens=NASTY[1:2] * 3)
    figure = attribution_plot.figure(found, "r")
    written(figure, tmp_path)
    assert ("no finite shares" in texts(figure)) == (change == "not finite")
    titles = [text for text in texts(figure) if text.startswith("Heads")]
    assert titles == {"no heads": [], "not finite": ["Heads (grey: no share is known)"]}.get(change, ["Heads"])
