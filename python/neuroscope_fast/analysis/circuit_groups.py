"""Two groups of sequences to compare, and their components side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from ..errors import OptionError, RunError
from ..reader import Run
from . import sequences

Array = np.ndarray[Any, Any]
Alignment = Literal["start", "end", "last"]
_Kind = tuple[str, str | None]  # component and reduction

VECTORS = ("embedding", "residual", "attention", "head_output", "mlp", "moe", "neuron", "layernorm")
"""Components that are a vector at each position (of `head_output` one for each head)."""

NUMBERS = {"sink": "attention_pattern", "previous": "attention_pattern", "entropy": "attention_pattern"}
"""Reductions to one number for each position and head, and the component that they are of."""

_ORDER = ("embedding", "layernorm", "attention_pattern", "head_output", "attention", "neuron", "mlp", "moe", "residual")


class Component(msgspec.Struct, frozen=True, omit_defaults=True):
    """One component of a model, one head of it where it has heads."""

    component: str
    layer_name: str
    layer: int | None = None
    head: int | None = None
    reduction: str | None = None

    @property
    def name(self) -> str:
        """`9.2 head_output`: layer, head and component."""
        place = self.layer_name if self.layer is None else str(self.layer)
        head = "" if self.head is None else f".{self.head}"
        reduction = "" if self.reduction is None else f" {self.reduction}"
        return f"{place}{head} {self.component}{reduction}"


class SequenceOf(NamedTuple):
    """One row of one prompt of a run."""

    run: Run
    prompt: int
    row: int
    length: int
    """Positions of the prompt, without what was generated."""

    def __str__(self) -> str:
        return f"prompt {self.prompt}" + (f", row {self.row}" if self.row else "")


class Groups(NamedTuple):
    """The sequences of the first and of the second group; in pairs, if they are matched."""

    first: list[SequenceOf]
    second: list[SequenceOf]
    paired: bool
    alignment: Alignment
    """How positions of the two are matched: counted from the start, from the end, or the last of the prompt alone."""
    positions: list[int]
    """Those that all pairs have, counted so; negative from the end."""


class Place(NamedTuple):
    """One hook as both runs hold it: its components, and where their values are."""

    components: list[Component]
    hooks: tuple[str, str]
    heads: tuple[list[int] | None, list[int] | None]
    """Of each run the rows of its head axis, in the order of `components`; None: no head axis."""


def make_groups(
    run: Run,
    other: Run | None = None,
    *,
    prompts: Sequence[int] | None = None,
    other_prompts: Sequence[int] | None = None,
    paired: bool = True,
) -> Groups:
    """The sequences of two runs, or of two sets of prompts of one run.

    Raises OptionError where nothing tells the groups apart, or where pairs were asked for and the numbers differ.
    """
    if other is None and (prompts is None or other_prompts is None):
        raise OptionError(
            "a comparison needs a second run (--other RUN), or two lists of prompt numbers of the one run "
            "(--prompts and --other-prompts)"
        )
    first = list(_sequences(run, prompts))
    second = list(_sequences(other or run, other_prompts))
    if other is None and set(first) & set(second):
        raise OptionError("a prompt is in both groups: it cannot be compared with itself")
    if not first or not second:
        raise OptionError("a group has no prompt")
    if paired and len(first) != len(second):
        raise OptionError(
            f"{len(first)} sequences against {len(second)} cannot be paired: give as many of each, or compare them as "
            "independent groups"
        )
    lengths = [(a.length, b.length) for a, b in zip(first, second, strict=False)]
    if not paired or any(a != b for a, b in lengths):
        return Groups(first, second, paired, "last", [-1])
    shortest = min(length for length, _ in lengths)
    if len(set(lengths)) == 1:
        return Groups(first, second, paired, "start", list(range(shortest)))
    return Groups(first, second, paired, "end", list(range(-shortest, 0)))


def _sequences(run: Run, prompts: Sequence[int] | None) -> Iterator[SequenceOf]:
    there = sequences.prompt_numbers(run)
    for prompt in there if prompts is None else prompts:
        if prompt not in there:
            raise OptionError(f"the run has no prompt {prompt}; it has {', '.join(map(str, there)) or 'none'}")
        for row in range(sequences.rows(run, prompt)):
            length = sequences.tokens(run, prompt, row).prompt_tokens
            if length < 1:
                raise RunError(f"prompt {prompt}, row {row} of the run has no token")
            yield SequenceOf(run, prompt, row, length)


def places(run: Run, other: Run) -> list[Place]:
    """What both runs hold and can be compared, in the order of the layers.

    Raises MissingActivations where that is nothing.
    """
    found = []
    for component, reduction in _kinds():
        here, there = (_by_layer(each, component, reduction) for each in (run, other))
        for layer_name, captured in here.items():
            if layer_name in there:
                found += _place((run, other), (captured, there[layer_name]), (component, reduction))
    if not found:
        layers = sequences.layers_pattern(run)
        raise sequences.missing(
            "circuit discovery", [f"{layers}:{name}" for name in ("residual", "attention", "mlp", "head_output")]
        )
    return sorted(found, key=lambda place: _rank(place.components[0]))


def compared(places_found: Sequence[Place]) -> set[str]:
    """The ids of the hooks in them, those of the first run."""
    return {place.hooks[0] for place in places_found}


def _kinds() -> Iterator[_Kind]:
    for component in (*VECTORS, "attention_pattern"):
        yield component, None
    yield "head_output", "head_norm"
    for reduction, component in NUMBERS.items():
        yield component, reduction


def _by_layer(run: Run, component: str, reduction: str | None) -> dict[str, sequences.Captured]:
    found: dict[str, sequences.Captured] = {}
    for captured in sequences.find(run, component, reduction=reduction):
        found.setdefault(captured.layer_name, captured)
    return found


def _place(runs: tuple[Run, Run], captured: tuple[sequences.Captured, sequences.Captured], kind: _Kind) -> list[Place]:
    component, reduction = kind
    here, there = captured
    if component not in ("head_output", "attention_pattern"):
        one = Component(component, here.layer_name, here.layer, None, reduction)
        return [Place([one], (here.hook_id, there.hook_id), (None, None))]
    held = [_heads(run, hook, component, reduction) for run, hook in zip(runs, captured, strict=True)]
    heads = [head for head in held[0] if head in held[1]]
    if not heads:
        return []
    of_heads = [Component(component, here.layer_name, here.layer, head, reduction) for head in heads]
    rows = [[numbers.index(head) for head in heads] for numbers in held]
    return [Place(of_heads, (here.hook_id, there.hook_id), (rows[0], rows[1]))]


def _heads(run: Run, captured: sequences.Captured, component: str, reduction: str | None) -> list[int]:
    """The numbers of the heads on the record's head axis."""
    if captured.heads is not None:
        return list(captured.heads)
    record = run[captured.hook_id].records[0]
    axis = {"head_norm": -1, None: -2 if component == "head_output" else -3}.get(reduction, -2)
    return list(range(record.shape[axis]))


def _rank(component: Component) -> tuple[int, int, str]:
    layer = -1 if component.layer is None else component.layer
    return layer, _ORDER.index(component.component), component.layer_name


class Values(NamedTuple):
    """A place in one sequence, at the positions of its prompt."""

    positions: Array
    """int64 [T]"""
    values: Array
    """float64: vectors [T, C, D], rows of attention patterns [T, C, K], or numbers [T, C, 1]."""


def read(sequence: SequenceOf, place: Place, side: Literal[0, 1]) -> Values:
    """The values of a place in a sequence of the first (0) or the second group (1).

    Raises RunError for NaN and infinities, which no comparison can rank.
    """
    hook_id, heads = place.hooks[side], place.heads[side]
    count = sequence.length
    kind = place.components[0]
    if kind.component == "attention_pattern" and kind.reduction is None:
        pattern = sequences.pattern(sequence.run, hook_id, sequence.prompt, sequence.row)
        positions = pattern.queries
        values = pattern.weights.transpose(1, 0, 2)[..., :count]
    else:
        positions, values = sequences.join(sequence.run, hook_id, sequence.prompt, sequence.row)
        if kind.reduction in NUMBERS:  # [T, H], whatever the axes of the records
            values = values.reshape(len(positions), -1)
    inside = positions < count
    positions, values = positions[inside], np.asarray(values[inside], dtype=np.float64)
    if heads is not None:
        values = values[:, heads]
        if kind.reduction is not None:
            values = values[..., None]
    else:
        values = values.reshape(len(positions), 1, -1)
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        raise RunError(
            f"{hook_id} holds NaN or infinite values at {sequence}, position {positions[~finite][0]}: nothing can be "
            "compared with them; leave that prompt or that hook out"
        )
    return Values(positions, values)
