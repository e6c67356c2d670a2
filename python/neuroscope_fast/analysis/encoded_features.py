"""The features of a sparse autoencoder in place of the activations that a hook captured, and how well it reconstructs
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import OptionError, RunError
from ..reader import Run
from ..records import Record
from .feature_results import Reconstruction
from .moments import Moments
from .position_blocks import Block, PositionBlocks
from .sequences import find, layers_pattern, missing
from .sparse_autoencoder import SparseAutoencoder

Array = np.ndarray[Any, Any]

_ENCODED = 1 << 24  # features that are in memory at a time

# Where TransformerLens' names of hook points are in a run, as (component, layers further on).
_HOOK_POINTS = {
    "hook_resid_post": ("residual", 0),
    "hook_resid_pre": ("residual", -1),
    "hook_mlp_out": ("mlp", 0),
    "mlp.hook_post": ("neuron", 0),
    "hook_attn_out": ("attention", 0),
    "attn.hook_z": ("head_output", 0),
}


def hook_of(run: Run, autoencoder: SparseAutoencoder) -> str:
    """The hook that holds what an autoencoder was trained on, as its configuration names it."""
    name = autoencoder.configuration.hook_name
    parts = (name or "").split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal() and parts[2] in _HOOK_POINTS:
        component, further = _HOOK_POINTS[parts[2]]
        layer = int(parts[1]) + further
        held = next((each.hook_id for each in find(run, component) if each.layer == layer), None)
        if held is not None:
            return held
        if layer >= 0:
            raise missing(f"the autoencoder of {name}", [f"{layers_pattern(run).replace('*', str(layer))}:{component}"])
    trained = f"was trained on {name}" if name else "does not say where it was trained"
    raise OptionError(f"{autoencoder.name} {trained}: choose the hook to encode, one of {', '.join(run.hooks[:8])}")


def need_fit(source: PositionBlocks, record: Record, autoencoder: SparseAutoencoder) -> None:
    """RunError where a hook, of which `record` is one, does not hold what the autoencoder encodes."""
    if source.width != autoencoder.d_in:
        raise RunError(
            f"{autoencoder.name} encodes {autoencoder.d_in} numbers a position, {source.hook_id} holds {source.width}"
        )
    if (record.component == "head_output") != (autoencoder.configuration.reshape_activations == "hook_z"):
        raise RunError(
            f"{autoencoder.name} has reshape_activations {autoencoder.configuration.reshape_activations!r}, which "
            f"does not fit the {record.component} of {source.hook_id}: hook_z is for head_output, none for all else"
        )
    if record.heads is not None and list(record.heads) != list(range(record.shape[-2])):
        raise RunError(
            f"{source.hook_id} holds the heads {list(record.heads)}: an autoencoder needs all, in their order"
        )


class Measure:
    """How well an autoencoder reconstructs, block by block."""

    def __init__(self, autoencoder: SparseAutoencoder, width: int):
        self._autoencoder = autoencoder
        self._given = Moments(width)
        self._squares = 0.0
        self._active = 0
        self._not_finite = 0

    def add(self, given: Array, decoded: Array, features: Array) -> None:
        whole = np.isfinite(given).all(axis=1)
        self._not_finite += int((~whole).sum())
        error = given[whole].astype(np.float64) - decoded[whole]
        self._squares += float(np.square(error).sum())
        self._active += int((features[whole] > 0).sum())
        self._given.add(given[whole])

    def result(self) -> Reconstruction:
        count = int(self._given.count[0])
        total = float((self._given.variance * count).sum()) if count else 0.0
        return Reconstruction(
            autoencoder=self._autoencoder.name,
            architecture=self._autoencoder.configuration.architecture,
            positions=count,
            mse=self._squares / (count * self._autoencoder.d_in) if count else np.nan,
            explained_variance=1 - self._squares / total if total > 0 else np.nan,
            l0=self._active / count if count else np.nan,
            not_finite=self._not_finite,
        )


def encoded(source: PositionBlocks, autoencoder: SparseAutoencoder, measured: Measure | None) -> Iterator[Block]:
    """The features of an autoencoder in place of what they were found in."""
    import torch

    step = max(_ENCODED // autoencoder.d_sae, 1)
    for block in source:
        for start in range(0, len(block.keys), step):
            given = block.values[start : start + step]
            with torch.no_grad():
                if measured is None:
                    features = autoencoder.encode(torch.from_numpy(given)).numpy()
                else:
                    found, decoded = autoencoder.forward(torch.from_numpy(given))
                    features = found.numpy()
                    measured.add(given, decoded.numpy(), features)
            yield Block(features, block.keys[start : start + step])
