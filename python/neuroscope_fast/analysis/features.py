"""Feature detection: what each neuron of a layer responds to, over all prompts of a run.

For every neuron the density, moments and top activating positions; for the most selective ones a profile with
contexts, histogram and tokens. The same for the features of a sparse autoencoder. One pass over the records, block by
block (and a second for the profiles), with memory for the neurons and not for the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import OptionError, RunError
from ..reader import Run
from .encoded_features import Measure, encoded, hook_of, need_fit
from .feature_profiles import FirstPass, Profile, profiles_of
from .feature_results import Features, LayerFeatures, most_selective
from .moments import Moments
from .position_blocks import Block, PositionBlocks
from .sequences import find, layer_number, layers_pattern, missing
from .sparse_autoencoder import SparseAutoencoder
from .top_activations import TopActivations

Array = np.ndarray[Any, Any]


class _Options(NamedTuple):
    top: int
    threshold: float
    skip_first: int
    profiles: int
    neurons: Sequence[int] | None
    before: int
    after: int
    bins: int


def detect_features(
    run: Run,
    hooks: Sequence[str] | None = None,
    *,
    component: str | None = None,
    autoencoder: SparseAutoencoder | None = None,
    top: int = 10,
    threshold: float = 0.0,
    skip_first: int = 1,
    profiles: int = 6,
    neurons: Sequence[int] | None = None,
    before: int = 8,
    after: int = 4,
    bins: int = 60,
    progress: Callable[[str], None] | None = None,
) -> Features:
    """Statistics, top activations and profiles of the neurons of a run's hooks.

    Args:
        hooks: ids of the hooks to look at. None: all of `component`, or else those of `neuron`, or else of `mlp`; of an
            autoencoder the one that its configuration names.
        autoencoder: look at the features that it finds in what the hook holds. One hook only.
        top: how many top activations of each neuron are kept.
        threshold: a neuron is active at a position where its value is above this. 0 is where ReLU, GELU and SiLU turn,
            and above 0 a feature of an autoencoder is on. A gated neuron (SwiGLU) may be as strongly negative as
            positive: of these density and top activations show the positive half, the moments both.
        skip_first: positions left out at the start of each sequence. 1 by default: at the first token many models hold
            activations that are orders of magnitude larger than elsewhere (Sun et al. 2024, Massive Activations in
            Large Language Models, arXiv 2402.17762).
        profiles: how many of the most selective neurons of each hook are looked at closely; `neurons`: these instead,
            numbered from 0.
        before, after: tokens shown around a top activation.
        bins: of the histograms.
        progress: called with the id of each hook before it is read.

    Raises MissingActivations where the run holds nothing to look at, OptionError for values that cannot be, RunError
    where records are not of rows, positions and neurons, or not as wide as the autoencoder.
    """
    counts = {"top": top, "skip_first": skip_first, "profiles": profiles, "before": before, "after": after}
    for name, value in counts.items():
        if value < 0:
            raise OptionError(f"{name} is {value}: it cannot be negative")
    if bins < 1:
        raise OptionError(f"bins is {bins}: a histogram has at least one")
    if np.isnan(threshold):
        raise OptionError("threshold is NaN: no value is above it")
    options = _Options(top, threshold, skip_first, profiles, neurons, before, after, bins)
    chosen = _hooks(run, hooks, component, autoencoder)
    layers = []
    for hook_id in chosen:
        if progress is not None:
            progress(hook_id)
        layers.append(_look_at(run, hook_id, autoencoder, options))
    return Features(layers, skip_first)


def _hooks(
    run: Run, hooks: Sequence[str] | None, component: str | None, autoencoder: SparseAutoencoder | None
) -> list[str]:
    if hooks is not None and (isinstance(hooks, str) or not hooks):
        raise OptionError("hooks is a list of at least one hook id")
    chosen: list[str]
    if hooks is not None:
        chosen = list(hooks)
    elif autoencoder is not None and component is None:
        chosen = [hook_of(run, autoencoder)]
    else:
        components = ["neuron", "mlp"] if component is None else [component]
        chosen = next(([each.hook_id for each in found] for name in components if (found := find(run, name))), [])
        if not chosen:
            raise missing("feature detection", [f"{layers_pattern(run)}:{components[0]}"])
    if autoencoder is not None and len(chosen) > 1:
        raise OptionError(f"an autoencoder is of one hook, and these are {len(chosen)}: choose one with hooks")
    return chosen


def _look_at(run: Run, hook_id: str, autoencoder: SparseAutoencoder | None, options: _Options) -> LayerFeatures:
    source = PositionBlocks(run, hook_id, options.skip_first)
    record = run[hook_id].outputs.records[0]
    if autoencoder is not None:
        need_fit(source, record, autoencoder)
    elif record.component == "head_output":
        raise RunError(f"{hook_id} holds the outputs of heads, which have no neurons: choose a hook of neuron or mlp")
    width = source.width if autoencoder is None else autoencoder.d_sae
    chosen = _chosen(options, width)
    moments = Moments(width, options.threshold)
    largest = TopActivations(width, options.top, options.threshold)
    measured = None if autoencoder is None else Measure(autoencoder, source.width)
    positions = 0
    for block in _blocks(source, autoencoder, measured):
        moments.add(block.values)
        largest.add(block.values, block.keys)
        positions += len(block.keys)
    top_prompts, top_rows, top_positions = source.places(largest.keys)
    kurtosis = moments.kurtosis
    known = moments.count > 0
    minimum, maximum = np.where(known, moments.minimum, np.nan), np.where(known, moments.maximum, np.nan)
    if chosen is None:
        chosen = most_selective(kurtosis, moments.active, minimum, maximum, options.profiles)
    profiles: list[Profile] = []
    if chosen:
        everything = PositionBlocks(run, hook_id)  # what stands around a top activation may be a first position
        profiles = profiles_of(
            run,
            everything,
            _blocks(everything, autoencoder, None),
            chosen,
            FirstPass(minimum[chosen], maximum[chosen], largest.values[chosen], largest.keys[chosen]),
            skip_first=options.skip_first,
            before=options.before,
            after=options.after,
            bins=options.bins,
        )
    plain = "neuron" if record.component == "neuron" else "dimension"
    return LayerFeatures(
        hook_id=hook_id,
        layer=layer_number(record.layer_name),
        component=record.component,
        unit=plain if autoencoder is None else "feature",
        positions=positions,
        threshold=options.threshold,
        mean=np.where(known, moments.mean, np.nan),
        variance=moments.variance,
        kurtosis=kurtosis,
        minimum=minimum,
        maximum=maximum,
        density=moments.density,
        active=moments.active,
        not_finite=moments.not_finite,
        dead=known & (moments.active == 0),
        always_zero=known & (minimum == 0) & (maximum == 0),
        top_values=largest.values,
        top_prompts=top_prompts,
        top_rows=top_rows,
        top_positions=top_positions,
        profiles=profiles,
        reconstruction=None if measured is None else measured.result(),
    )


def _chosen(options: _Options, width: int) -> list[int] | None:
    """The neurons that were asked for."""
    if options.neurons is None:
        return None
    wrong = [number for number in options.neurons if not 0 <= number < width]
    if wrong:
        raise OptionError(f"there is no neuron {wrong[0]}: the hook has {width}, counted from 0")
    return list(dict.fromkeys(options.neurons))


def _blocks(source: PositionBlocks, autoencoder: SparseAutoencoder | None, measured: Measure | None) -> Iterable[Block]:
    return source if autoencoder is None else encoded(source, autoencoder, measured)
