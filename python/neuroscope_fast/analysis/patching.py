"""Which components matter: activation patching and ablation, with the model at hand.

Activation patching (Meng et al. 2022, "Locating and Editing Factual Associations in GPT"; Wang et al. 2022,
"Interpretability in the Wild") runs the model on one prompt with the activation that a component has on another.
*Denoising* puts clean activations into the corrupted run and finds what suffices to restore the answer; *noising* puts
corrupted ones into the clean run and finds what it cannot do without. The metric is the logit difference between the
right and the wrong answer at the last position, which Heimersheim & Nanda 2024 ("How to use and interpret activation
patching") recommend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import nn

from ..errors import OptionError
from ..reader import Run
from .interventions import Patch, Site, patched
from .logit_metric import logit_difference
from .patch_values import Ids, PatchValues, capture_sites
from .sequences import prompt_numbers
from .tables import Cell, Table

Array = np.ndarray[Any, Any]
Direction = Literal["denoising", "noising"]
Progress = Callable[[int, int], None]


class Patching(msgspec.Struct, frozen=True):
    """Activation patching of S sites at P columns of positions, over N pairs of prompts."""

    direction: Direction
    sites: list[Site]
    positions: list[int] | None
    """The position patched in each column, negative ones counted from the end; None: one column, all positions."""
    labels: list[str]
    """Of the columns."""
    clean: float
    """Mean logit difference right - wrong of the clean prompts, in logits; `corrupted`: of the corrupted ones."""
    corrupted: float
    raw: Array
    """Mean logit difference with the patch, [S, P]."""
    normalised: Array
    """(raw - corrupted) / (clean - corrupted), [S, P]: 0 as corrupted, 1 as clean. It can lie outside."""
    by_pair: Array
    """The logit differences with the patch, [S, P, N]."""
    right: list[int]
    """Token id of the right answer of each pair; `wrong`: of the wrong one."""
    wrong: list[int]
    note: str = ""

    def tables(self) -> list[Table]:
        """For each component the sites that do most: that restore most, or whose loss costs most."""
        effect = self.normalised if self.direction == "denoising" else 1 - self.normalised
        share = "restored" if self.direction == "denoising" else "destroyed"
        note = f"logit difference: clean {self.clean:.3f}, corrupted {self.corrupted:.3f}; {share} 1 = all of it"
        tables = []
        for component in dict.fromkeys(site.component for site in self.sites):
            best = [s for s in np.argsort(-effect.max(1), kind="stable") if self.sites[s].component == component]
            rows: list[list[Cell]] = []
            for site in best[:8]:
                column = int(effect[site].argmax())
                place = self.labels[column], float(self.raw[site, column]), float(effect[site, column])
                rows.append([self.sites[site].name, *place])
            title = f"Activation patching ({self.direction}), {component}: what matters most"
            columns = ["component", "position", "logit difference", share]
            tables.append(Table(title, columns, rows, "; ".join(filter(None, (note, self.note)))))
        order = {"head_output": 0, "attention": 1, "mlp": 2}
        return sorted(tables, key=lambda table: order.get(str(table.rows[0][0]).split()[-1], 3))


class Ablation(msgspec.Struct, frozen=True):
    """A metric of the model without S sites, each left out alone."""

    kind: Literal["zero", "mean"]
    metric: str
    sites: list[Site]
    baseline: float
    """The metric of the model as it is."""
    values: Array
    """Without each site, [S]."""
    together: float
    """Without all of them at once."""

    def tables(self) -> list[Table]:
        """Sites by what their loss costs."""
        order = np.argsort(self.values, kind="stable")
        rows: list[list[Cell]] = [["none", self.baseline, 0.0]]
        rows += [[self.sites[i].name, float(self.values[i]), float(self.values[i] - self.baseline)] for i in order[:12]]
        rows.append(["all of them", self.together, self.together - self.baseline])
        return [Table(f"{self.kind.capitalize()} ablation", ["without", self.metric, "change"], rows)]


def activation_patching(
    model: nn.Module,
    clean: Ids,
    corrupted: Ids,
    right: Sequence[int],
    wrong: Sequence[int],
    *,
    sites: Sequence[Site],
    positions: Literal["all", "each"] | Sequence[int] = "all",
    direction: Direction = "denoising",
    source: Run | None = None,
    source_prompts: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Patching:
    """Patch each site in turn, and measure the logit difference.

    Args:
        model: a causal language model in eval mode.
        clean, corrupted: token ids of N pairs of prompts. A pair has one length, unless positions count from the end.
        right, wrong: for each pair the token ids of the two answers.
        sites: from `interventions.sites`, or of one's own.
        positions: `all` at once, `each` in a column of its own, or these, each in a column of its own.
        source: a run that holds the activations to patch in, of the clean prompts (denoising) or the corrupted ones
            (noising); `source_prompts` are its prompt numbers, pair by pair. None captures them here.
        labels: of the columns; the default is their numbers.
        progress: called with the number of patches made and of all.

    Raises OptionError where the pairs do not fit, or where clean and corrupted have the same logit difference; RunError
    where `source` was made of other tokens, or lacks a site.
    """
    _check(model, sites)
    _check_pairs(clean, corrupted, right, wrong)
    if direction not in ("denoising", "noising"):
        raise OptionError(f"direction is {direction!r}; it is denoising or noising")
    columns = _columns(clean, corrupted, positions)
    clean_mean, corrupted_mean = (
        float(np.mean([logit_difference(model, *each) for each in zip(side, right, wrong, strict=True)]))
        for side in (clean, corrupted)
    )
    span = clean_mean - corrupted_mean
    if abs(span) < 1e-6:
        raise OptionError(
            f"clean and corrupted prompts have the same logit difference ({clean_mean:.4g}): there is nothing to "
            "restore; choose other answers or prompts"
        )
    given, base = (clean, corrupted) if direction == "denoising" else (corrupted, clean)
    run = capture_sites(model, given, sites) if source is None else source
    numbers = range(len(given)) if source is None else (source_prompts or prompt_numbers(source))
    values = PatchValues(run, list(numbers), given)
    by_pair = np.empty((len(sites), len(columns), len(base)))
    for row, site in enumerate(sites):
        for pair, ids in enumerate(base):
            of_prompt = values.of(site, pair)
            for column, position in enumerate(columns):
                patch = Patch(site.layer_name, site.component, _at(of_prompt, position), site.head, _chosen(position))
                with patched(model, [patch]):
                    by_pair[row, column, pair] = logit_difference(model, ids, right[pair], wrong[pair])
        if progress is not None:
            progress((row + 1) * len(columns) * len(base), by_pair.size)
    raw = by_pair.mean(2)
    shown = ["all"] if columns == [None] else [str(position) for position in columns]
    if labels is not None:
        if len(labels) != len(columns):
            raise OptionError(f"{len(labels)} labels for {len(columns)} columns")
        shown = list(labels)
    return Patching(
        direction,
        list(sites),
        None if columns == [None] else [position for position in columns if position is not None],
        shown,
        clean_mean,
        corrupted_mean,
        raw,
        (raw - corrupted_mean) / span,
        by_pair,
        list(right),
        list(wrong),
        values.note(),
    )


def ablate(
    model: nn.Module,
    sites: Sequence[Site],
    metric: Callable[[nn.Module], float],
    *,
    kind: Literal["zero", "mean"] = "zero",
    reference: Ids | None = None,
    metric_name: str = "metric",
    progress: Progress | None = None,
) -> Ablation:
    """Leave each site out alone, then all at once, and measure each time.

    Args:
        metric: what is measured of the model, e.g. `lambda model: logit_difference(model, ids, right, wrong)`.
        kind: in the place of the component stand zeros, or its mean over all positions of the prompts `reference`
            (token ids), which takes away what it says of the prompt and leaves what it always adds (Wang et al. 2022).
    """
    _check(model, sites)
    if kind == "zero":
        patches = [Patch(site.layer_name, site.component, 0.0, site.head) for site in sites]
    elif kind == "mean" and reference:
        values = PatchValues(capture_sites(model, reference, sites), list(range(len(reference))), reference)
        patches = []
        for site in sites:
            joined = torch.cat([values.of(site, number) for number in range(len(reference))])
            patches.append(Patch(site.layer_name, site.component, joined.double().mean(0), site.head))
    else:
        raise OptionError(f"an ablation is zero, or mean with reference prompts; not {kind!r}")
    baseline = float(metric(model))
    found = np.empty(len(sites))
    for number, patch in enumerate(patches):
        with patched(model, [patch]):
            found[number] = metric(model)
        if progress is not None:
            progress(number + 1, len(sites))
    with patched(model, patches):
        together = float(metric(model))
    return Ablation(kind, metric_name, list(sites), baseline, found, together)


def _columns(clean: Ids, corrupted: Ids, positions: str | Sequence[int]) -> list[int | None]:
    """The positions to patch; None: all at once."""
    pairs = list(zip(clean, corrupted, strict=True))
    shortest = min(len(ids) for pair in pairs for ids in pair)
    differing = next((n for n, (one, other) in enumerate(pairs) if len(one) != len(other)), None)
    if isinstance(positions, str):
        if positions not in ("all", "each"):
            raise OptionError(f"positions is {positions!r}; it is all, each, or a list of numbers")
        if differing is not None:
            one, other = pairs[differing]
            raise OptionError(
                f"the prompts of pair {differing} have {len(one)} and {len(other)} tokens: their positions do not "
                "match; make them equally long, or patch positions counted from the end, such as [-1]"
            )
        if positions == "all":
            return [None]
        if len({len(ids) for ids in clean}) == 1:
            return list(range(shortest))
        return list(range(-shortest, 0))
    chosen = list(positions)
    if not chosen:
        raise OptionError("positions is an empty list: there is nothing to patch")
    if differing is not None and any(position >= 0 for position in chosen):
        raise OptionError(f"the prompts of pair {differing} differ in length: count positions from the end, as in [-1]")
    if any(not -shortest <= position < shortest for position in chosen):
        raise OptionError(f"positions {chosen} are not all in the shortest prompt, of {shortest} tokens")
    return list(chosen)


def _at(values: torch.Tensor, position: int | None) -> torch.Tensor:
    return values if position is None else values[position]


def _chosen(position: int | None) -> list[int] | None:
    return None if position is None else [position]


def _check_pairs(clean: Ids, corrupted: Ids, right: Sequence[int], wrong: Sequence[int]) -> None:
    counts = [len(clean), len(corrupted), len(right), len(wrong)]
    if len(set(counts)) > 1 or not counts[0]:
        raise OptionError(
            f"{counts[0]} clean and {counts[1]} corrupted prompts, {counts[2]} right and {counts[3]} wrong answers: "
            "each pair needs one of each"
        )
    if not all(len(ids) for ids in [*clean, *corrupted]):
        raise OptionError("a prompt has no tokens")


def _check(model: nn.Module, sites: Sequence[Site]) -> None:
    if not sites:
        raise OptionError("there is no site to patch")
    if model.training:
        raise OptionError("the model is in training mode, where dropout changes its results: call model.eval() first")
