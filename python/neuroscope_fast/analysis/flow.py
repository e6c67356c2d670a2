"""Information flow: how large the residual stream is at each layer and position, what attention and MLP write to it.

Norms are Euclidean, in the units of the activations. Cosines are between what a sublayer adds and the stream that
enters its layer ("before") or leaves it ("after"); for both sublayers the layer's, so that sequential and parallel
blocks (GPT-NeoX, Phi) are measured alike. The stream as a sum of what every block writes: Elhage et al. 2021, *A
Mathematical Framework for Transformer Circuits*, https://transformer-circuits.pub/2021/framework/index.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..reader import Run
from .residual_stream import PARTS, ResidualStream, optional_readout
from .sequences import tokens
from .tables import Cell, Table

if TYPE_CHECKING:
    from torch import nn

    from ..readout import Readout

Array = np.ndarray[Any, Any]


class Flow(msgspec.Struct, frozen=True):
    """The stream of one sequence: L layers, T positions. Numbers that the run does not hold are NaN."""

    prompt: int
    row: int
    positions: Array
    """int64 [T]"""
    tokens: list[str]
    """What is read at each position."""
    layers: Array
    """int64 [L]"""
    entry_norm: Array
    """[T]: of the stream before the first of the layers."""
    stream_norm: Array
    """[L, T]: of the stream behind each layer."""
    attention_norm: Array
    """[L, T]: of what attention adds."""
    mlp_norm: Array
    attention_before: Array
    """[L, T]: cosine of what attention adds to the stream that enters the layer."""
    attention_after: Array
    """… to the stream that leaves it."""
    mlp_before: Array
    mlp_after: Array
    deviation: Array
    """[L]: how far input + attention + MLP is from the layer's output, of its norm, at most."""
    contributions: str
    """What is taken for contributions, and whether they add up, in words."""

    def tables(self) -> list[Table]:
        """What stands out, then every layer."""
        return [self._highlights(), self._by_layer()]

    def _highlights(self) -> Table:
        growth = np.vstack([self.entry_norm, self.stream_norm])
        rows: list[list[Cell]] = []
        first, last = _median(growth[0]), _median(growth[-1])
        where = f"layer {self.layers[-1]}"
        rows.append(
            [f"size of the stream behind {where}", last, f"it enters layer {self.layers[0]} with {_text(first)}"]
        )
        at = _largest(self.stream_norm)
        if at is not None:
            layer, position = at
            token = f"{self.tokens[position]!r}, position {self.positions[position]}"
            times = self.stream_norm[layer, position] / _median(self.stream_norm[layer])
            rows.append([
                "largest stream at one position",
                float(self.stream_norm[layer, position]),
                f"at {token}, behind layer {self.layers[layer]}: {_text(times)} × the median there",
            ])  # fmt: skip
        for name, norm, before in (
            ("attention", self.attention_norm, self.attention_before),
            ("MLP", self.mlp_norm, self.mlp_before),
        ):
            share = _medians(norm / self.stream_norm)
            if np.isfinite(share).any():
                layer = int(np.nanargmax(share))
                rows.append([
                    f"largest share written by one {name}",
                    float(share[layer]),
                    f"layer {self.layers[layer]}: its norm, of that of the stream behind it",
                ])  # fmt: skip
            turned = _medians(before)
            if np.isfinite(turned).any() and np.nanmin(turned) < 0:
                layer = int(np.nanargmin(turned))
                rows.append([
                    f"{name} that takes most away",
                    float(turned[layer]),
                    f"layer {self.layers[layer]}: its cosine to the stream that enters",
                ])  # fmt: skip
        return Table("What stands out in the residual stream", ["what", "value", "where"], rows, self.contributions)

    def _by_layer(self) -> Table:
        columns = [
            "layer",
            "stream",
            "attention",
            "cos before",
            "cos after",
            "MLP",
            "cos before",
            "cos after",
            "off by",
        ]
        values = [
            _medians(each)
            for each in (
                self.stream_norm,
                self.attention_norm,
                self.attention_before,
                self.attention_after,
                self.mlp_norm,
                self.mlp_before,
                self.mlp_after,
            )
        ]
        rows: list[list[Cell]] = [
            [int(layer), *(float(each[number]) for each in values), float(self.deviation[number])]
            for number, layer in enumerate(self.layers)
        ]
        note = (
            "Euclidean norms and cosines to the stream that enters and leaves the layer; medians over "
            f"{len(self.positions)} positions. Off by: |input + attention + MLP - output| / |output|, at most."
        )
        return Table("The residual stream, layer by layer", columns, rows, note)


def information_flow(run: Run, prompt: int = 0, row: int = 0, *, model: nn.Module | Readout | None = None) -> Flow:
    """Norms of the residual stream and of what attention and MLP add to it.

    Needs `residual`; `attention` and `mlp` for the contributions. The readout of the run, or that of `model`, tells
    which norms stand behind them; without it the captured outputs of `layernorm` may. Raises RunError.
    """
    stream = ResidualStream(run, prompt, row, optional_readout(run, model))
    shape = len(stream.layers), len(stream.positions)
    names = ("stream_norm", *(f"{part}_{what}" for part in PARTS for what in ("norm", "before", "after")))
    found = {name: np.full(shape, np.nan) for name in names}
    deviation = np.array([stream.checked.get(layer, np.nan) for layer in stream.layers])
    entry = before = stream.before(stream.layers[0])
    for number, layer in enumerate(stream.layers):
        after = stream.after(layer)
        if after is not None:
            found["stream_norm"][number] = norms(after)
        for part in PARTS:
            added = stream.added(layer, part)
            if added is not None:
                found[f"{part}_norm"][number] = norms(added)
                for side, other in (("before", before), ("after", after)):
                    if other is not None:
                        found[f"{part}_{side}"][number] = cosines(added, other)
        if number + 1 < len(stream.layers):
            following = stream.layers[number + 1]
            before = after if following == layer + 1 else stream.before(following)
    texts = tokens(run, prompt, row).texts
    return Flow(
        prompt=prompt,
        row=row,
        positions=stream.positions,
        tokens=[texts[position] if position < len(texts) else str(position) for position in stream.positions],
        layers=np.array(stream.layers),
        entry_norm=np.full(shape[1], np.nan) if entry is None else norms(entry),
        deviation=deviation,
        contributions=stream.describe(),
        **found,
    )


def norms(rows: Array) -> Array:
    """Euclidean norms of rows [T, D], in float64."""
    result: Array = np.sqrt(np.square(rows.astype(np.float64)).sum(1))
    return result


def cosines(rows: Array, others: Array) -> Array:
    """Cosine of each row to the row beside it; NaN where one is zero or not finite."""
    one, two = rows.astype(np.float64), others.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Array = (one * two).sum(1) / (norms(one) * norms(two))
    return result


def _largest(values: Array) -> tuple[int, int] | None:
    if not np.isfinite(values).any():
        return None
    at = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    return at // values.shape[1], at % values.shape[1]


def _medians(values: Array) -> Array:
    return np.array([_median(row) for row in values])


def _median(values: Array) -> float:
    """Over what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _text(value: float) -> str:
    return "an unknown size" if np.isnan(value) else f"{value:.3g}"
