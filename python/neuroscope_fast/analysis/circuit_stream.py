"""What the components write to the residual stream and meet there, as differences between two groups of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import OptionError, RunError
from ..reader import Run
from . import sequences
from .circuit_groups import Component, Groups, Place, SequenceOf, read

Array = np.ndarray[Any, Any]
Kind = Literal["input", "head", "attention", "mlp", "output"]

_ROUNDING = {"float64": 1e-6, "float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""By how much of a stream its parts may miss it, by the dtype that was stored."""

_EQUAL = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
"""Streams that differ by less of their size are equal but for rounding."""


class Projection(NamedTuple):
    """What takes the head outputs of a layer, side by side, to the stream."""

    weights: Array
    """[H * D_head, D]"""
    bias: Array
    """[D]; zeros where there is none."""


class Reader(NamedTuple):
    """A component that reads the stream: `attention` (all heads of a layer alike), `mlp`, or the `output`."""

    kind: Kind
    layer: int | None


class Writer(NamedTuple):
    """A component that writes to the stream; `input` is the stream that enters the first layer."""

    kind: Kind
    layer: int | None
    head: int | None

    @property
    def id(self) -> str:
        """`9.2` for a head, `9 attention`, `9 mlp`, `input`."""
        if self.kind == "head":
            return f"{self.layer}.{self.head}"
        return self.kind if self.layer is None else f"{self.layer} {self.kind}"

    def comes_before(self, reader: Reader) -> bool:
        """Whether what is written here is in the stream that the reader meets, and not by itself."""
        if self.kind == "input" or reader.kind == "output":
            return True
        if self.layer is None or reader.layer is None:
            raise AssertionError("only the input and the output are of no layer")
        return self.layer < reader.layer or (self.layer == reader.layer and self.kind != "mlp" and reader.kind == "mlp")


class Layer(NamedTuple):
    """Where the parts of a layer are in the runs."""

    number: int
    residual: Place
    attention: Place
    mlp: Place
    heads: Place | None


class Parts(NamedTuple):
    """Of one layer, each [positions, D]: the stream before it, what is written, the stream behind it."""

    before: Array
    attention: Array
    heads: Array | None
    """[H, positions, D], which add up to `attention` but for its bias."""
    mlp: Array
    after: Array


class Stream:
    """The layers of two groups, read pair by pair.

    Raises MissingActivations where `residual`, `attention` or `mlp` of a layer is not in both runs.
    """

    def __init__(self, groups: Groups, runs: tuple[Run, Run], projections: Mapping[int, Projection] | None) -> None:
        self._groups = groups
        self._projections = projections or {}
        self.layers = _layers(runs, projections)

    def differences(self) -> Iterator[list[Parts]]:
        """First less second, layer by layer: of each pair at the shared positions, or of the groups' means at the last.

        Raises RunError where the parts do not add up to the stream.
        """
        if self._groups.paired:
            for pair in zip(self._groups.first, self._groups.second, strict=True):
                sides = [self._parts(sequence, side) for side, sequence in enumerate(pair)]
                yield self._less(*sides)
            return
        means = []
        for side, group in enumerate((self._groups.first, self._groups.second)):
            each = [self._parts(sequence, side) for sequence in group]
            means.append([_mean(parts) for parts in zip(*each, strict=True)])
        yield self._less(*means)

    def _parts(self, sequence: SequenceOf, side: int) -> list[Parts]:
        found: list[Parts] = []
        for layer in self.layers:
            after, attention, mlp = (
                self._at(sequence, place, side)[:, 0] for place in (layer.residual, layer.attention, layer.mlp)
            )
            if not after.shape == attention.shape == mlp.shape:
                raise RunError(f"residual, attention and mlp of layer {layer.number} differ in shape")
            before = found[-1].after if found else after - attention - mlp
            heads = None
            if layer.heads is not None:
                heads = self._head_writes(self._at(sequence, layer.heads, side), layer.number)
            parts = Parts(before, attention, heads, mlp, after)
            self._check(layer.number, parts, _ROUNDING.get(self._dtype(layer), 0.1))
            found.append(parts)
        return found

    def _head_writes(self, outputs: Array, layer: int) -> Array:
        """Head outputs [P, H, D_head] through their projection: [H, P, D]."""
        weights = self._projections[layer].weights
        _, heads, size = outputs.shape
        if len(weights) != heads * size:
            raise OptionError(
                f"the output projection of layer {layer} takes {len(weights)} numbers, its {heads} heads give "
                f"{heads * size}"
            )
        written: Array = outputs.transpose(1, 0, 2) @ weights.reshape(heads, size, -1).astype(np.float64)
        return written

    def _at(self, sequence: SequenceOf, place: Place, side: int) -> Array:
        """The values at the groups' positions, [P, C, D]."""
        values = read(sequence, place, 1 if side else 0)
        wanted = [p if p >= 0 else sequence.length + p for p in self._groups.positions]
        where = {int(position): number for number, position in enumerate(values.positions)}
        lacking = [position for position in wanted if position not in where]
        if lacking:
            raise RunError(f"{place.hooks[side]} lacks position {lacking[0]} of {sequence}: capture all positions")
        found: Array = values.values[[where[position] for position in wanted]]
        return found

    def _dtype(self, layer: Layer) -> str:
        """As the coarser of the two runs holds it."""
        groups = (self._groups.first, self._groups.second)
        held = [group[0].run[hook].records[0].dtype for group, hook in zip(groups, layer.residual.hooks, strict=True)]
        return max(held, key=lambda dtype: _EQUAL.get(dtype, 0.1))

    def _check(self, layer: int, parts: Parts, rounding: float) -> None:
        size = np.linalg.norm(parts.after)
        missed = np.linalg.norm(parts.after - parts.before - parts.attention - parts.mlp)
        if missed > rounding * size:
            raise RunError(
                f"attention and mlp of layer {layer} do not add up to its residual stream (they miss it by "
                f"{missed / size:.2g} of its norm): this model scales or normalises what they give, so what they "
                "write is not known"
            )
        if parts.heads is None:
            return
        together = parts.heads.sum(0) + self._projections[layer].bias
        limit = rounding * max(size, np.linalg.norm(parts.attention))
        if together.shape != parts.attention.shape or np.linalg.norm(together - parts.attention) > limit:
            raise RunError(
                f"the heads of layer {layer} do not add up to its attention: its output projection is another, or "
                "something stands between; make the graph without projections"
            )

    def _less(self, first: list[Parts], second: list[Parts]) -> list[Parts]:
        found = []
        for layer, one, two in zip(self.layers, first, second, strict=True):
            limit = _EQUAL.get(self._dtype(layer), 0.1) * max(np.linalg.norm(each.after) for each in (one, two))
            heads = None if one.heads is None or two.heads is None else one.heads - two.heads
            found.append(
                Parts(
                    _difference(one.before, two.before, limit),
                    one.attention - two.attention,
                    heads,
                    one.mlp - two.mlp,
                    _difference(one.after, two.after, limit),
                )
            )
        return found


def _difference(first: Array, second: Array, limit: float) -> Array:
    difference: Array = first - second
    return difference if np.linalg.norm(difference) > limit else np.zeros_like(difference)


def _mean(parts: tuple[Parts, ...]) -> Parts:
    def mean(values: list[Array]) -> Array:
        result: Array = np.mean(values, axis=0)
        return result

    heads = [each.heads for each in parts if each.heads is not None]
    return Parts(
        mean([each.before for each in parts]),
        mean([each.attention for each in parts]),
        mean(heads) if heads else None,
        mean([each.mlp for each in parts]),
        mean([each.after for each in parts]),
    )


def _layers(runs: tuple[Run, Run], projections: Mapping[int, Projection] | None) -> list[Layer]:
    held = {name: _of_both(runs, name) for name in ("residual", "attention", "mlp", "head_output")}
    numbers = range(min(held["residual"], default=0), max(held["residual"], default=0) + 1)
    lacking = [name for name in ("residual", "attention", "mlp") if any(number not in held[name] for number in numbers)]
    if lacking:
        pattern = sequences.layers_pattern(runs[0])
        raise sequences.missing("the circuit graph", [f"{pattern}:{name}" for name in lacking])
    return [_layer(runs[0], number, held, projections) for number in numbers]


_Held = dict[int, tuple[sequences.Captured, sequences.Captured]]


def _of_both(runs: tuple[Run, Run], component: str) -> _Held:
    here, there = ({each.layer: each for each in sequences.find(run, component)} for run in runs)
    return {layer: (each, there[layer]) for layer, each in here.items() if layer is not None and layer in there}


def _layer(run: Run, number: int, held: dict[str, _Held], projections: Mapping[int, Projection] | None) -> Layer:
    def place(component: str, heads: list[int] | None = None) -> Place:
        one, two = held[component][number]
        each: list[int | None] = [None] if heads is None else [*heads]
        of = [Component(component, one.layer_name, number, head) for head in each]
        return Place(of, (one.hook_id, two.hook_id), (heads, heads))

    heads = None
    if projections is not None and number in held["head_output"]:
        if number not in projections:
            raise OptionError(f"there is no output projection for the heads of layer {number}")
        one, two = held["head_output"][number]
        if one.heads is None and two.heads is None:  # some heads alone do not make up the attention
            heads = place("head_output", list(range(run[one.hook_id].records[0].shape[2])))
    return Layer(number, place("residual"), place("attention"), place("mlp"), heads)
