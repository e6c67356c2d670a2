"""The residual stream of one sequence: what enters and leaves each layer, and what attention and MLP add to it.

What a sublayer gives is not always what is added: Gemma 2 and OLMo 2 put a norm between the two, Granite a factor, and
BLOOM's attention has the stream in its output already. So nothing is taken for a contribution that does not add up:
layer's input + attention + MLP must be the layer's output, to the rounding of the dtypes, in every layer where all four
are in the run; or the readout, for which the model was tried, says that they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import RunError
from ..reader import Run
from ..readout import MissingReadout, Norm, Readout, read_readout
from .norms import apply_norm
from .sequences import Captured, Joined, find, join, layers_pattern, missing

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]

PARTS = ("attention", "mlp")
_UNIT = {  # the largest relative error of rounding to it
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
_ARITHMETIC = 4e-6
"""What float32 arithmetic may be off, of the norms that are added."""


class Way(NamedTuple):
    """How what attention and MLP give comes into the stream. None: as it is; "readout": through the norm that the
    readout has for it; else: what the norm of this name in the layer gives, as captured.
    """

    attention: str | None = None
    mlp: str | None = None

    def describe(self) -> str:
        attention, mlp = ("gives" if norm is None else "gives, after the norm behind it" for norm in self)
        return f"what attention {attention}, and what the MLP {mlp}"


class _Check(NamedTuple):
    """How far the sum is from the stream: of the stream's norm, and whether that is rounding."""

    deviation: float
    holds: bool


class ResidualStream:
    """One sequence of a run, read from disk layer by layer. Arrays are [T, D], for the positions `positions`.

    Raises RunError (MissingActivations) where the run holds no residual stream.
    """

    def __init__(
        self,
        run: Run,
        prompt: int = 0,
        row: int = 0,
        readout: Readout | None = None,
        parts: Sequence[str] = PARTS,
    ):
        self.run = run
        self.prompt = prompt
        self.row = row
        self.readout = readout
        self._norms = {layer.name: layer for layer in readout.layers} if readout is not None else {}
        residual = [each for each in find(run, "residual") if each.layer is not None]
        if readout is not None:
            residual = [each for each in residual if each.layer_name in self._norms]
        if not residual:
            raise missing("the residual stream's analysis", [f"{layers_pattern(run)}:residual"])
        stacks = {each.layer_name[: each.layer_name.rindex(str(each.layer))] for each in residual}
        if len(stacks) > 1:
            named = ", ".join(f"{stack}*" for stack in sorted(stacks))
            raise RunError(
                f"this run holds the streams of several stacks of layers ({named}), and an analysis is of one: capture "
                "the residual of one stack alone"
            )
        (self.stack,) = stacks
        self._after = {each.layer: each for each in residual if each.layer is not None}
        """By layer the hook on its output."""
        self._inputs = self._hooks_on_inputs()
        self._parts = {part: self._hooks_of(part) if part in parts else {} for part in PARTS}
        if "mlp" in parts:
            self._parts["mlp"] = {**self._hooks_of("moe"), **self._parts["mlp"]}
        self.layers = sorted({*self._after, *self._parts["attention"], *self._parts["mlp"]})
        hooks = [*self._after.values(), *(hook for part in self._parts.values() for hook in part.values())]
        self.positions: Array = _common([self._joined(hook.hook_id).positions for hook in hooks])
        if not len(self.positions):
            raise RunError("what this run holds of the residual stream has no position that is in every hook")
        self._need_same_size()
        self.checked: dict[int, float] = {}
        """By layer how far its sum was from the stream, of the stream's norm at that position, at most."""
        self.entry_is = "unknown"
        """What the stream before the first layer was got from."""
        self.way = self._find_way()
        self._find_entry()

    def name(self, layer: int) -> str:
        """The path of a layer."""
        return f"{self.stack}{layer}"

    def after(self, layer: int) -> Array | None:
        """What leaves the layer; None where it is not captured."""
        hook = self._after.get(layer)
        return None if hook is None else self.values(hook.hook_id)

    def before(self, layer: int) -> Array | None:
        """What enters the layer: what leaves the one before it, or what was captured at its input."""
        if layer - 1 in self._after:
            return self.after(layer - 1)
        if layer in self._inputs:
            return self.values(self._inputs[layer], is_input=True)
        if layer != 0 or self.entry_is == "unknown":
            return None
        if self.entry_is == "embedding":
            return self.values(self._embedding().hook_id)
        after, added = self.after(0), [self.added(0, part) for part in PARTS]
        return None if after is None or added[0] is None or added[1] is None else after - added[0] - added[1]

    def added(self, layer: int, part: str, way: Way | None = None) -> Array | None:
        """What attention or MLP (`part`) add to the stream in a layer; None where it is not known."""
        chosen = way or self.way
        if chosen is None:
            return None
        norm = getattr(chosen, part)
        if norm not in (None, "readout"):
            hook = self._hooks_of("layernorm").get((layer, norm))
            return None if hook is None else self.values(hook.hook_id)
        given = self.given(layer, part)
        post = self.post_norm(layer, part) if norm == "readout" else None
        return given if given is None or post is None else apply_norm(post, given)

    def given(self, layer: int, part: str) -> Array | None:
        """What attention or MLP give, whatever becomes of it."""
        hook = self._parts[part].get(layer)
        return None if hook is None else self.values(hook.hook_id)

    def post_norm(self, layer: int, part: str) -> Norm | None:
        """The norm that the readout has behind a part."""
        known = self._norms.get(self.name(layer))
        return None if known is None else known.attention_norm if part == "attention" else known.mlp_norm

    def values(self, hook_id: str, *, is_input: bool = False) -> Array:
        """What a hook holds at the stream's positions."""
        joined = self._joined(hook_id, is_input=is_input)
        return at_positions(joined, self.positions, hook_id)

    def describe(self) -> str:
        """In a sentence: what the contributions are, and whether they add up."""
        if self.way is None:
            return (
                "What attention and MLP add is not known: what they give does not add up to what the layers add, or it "
                "cannot be seen whether it does. It can where residual, attention, mlp (and, for models that norm them "
                "before adding, layernorm) of two following layers are captured."
            )
        how = f"What is added is {self.way.describe()}"
        if not self.checked:
            return f"{how}, as the readout says; the run does not hold what a check of the sums needs."
        return (
            f"{how}: with the layer's input they sum to its output, off by at most {max(self.checked.values()):.1e} of "
            f"its norm, in {len(self.checked)} of {len(self.layers)} layers."
        )

    def _need_same_size(self) -> None:
        size = self.run[next(iter(self._after.values())).hook_id].records[0].shape[-1]
        if self.readout is not None and self.readout.hidden_size != size:
            raise RunError(
                f"the stream of this run has {size} dimensions, and the readout is of {self.readout.hidden_size}: it "
                "is that of another model"
            )

    def _joined(self, hook_id: str, *, is_input: bool = False) -> Joined:
        return join(self.run, hook_id, self.prompt, self.row, is_input=is_input)

    def _hooks_of(self, component: str) -> dict[Any, Captured]:
        """The hooks of this stack with rows, positions and one axis more; norms by (layer, name in it)."""
        found: dict[Any, Captured] = {}
        for each in find(self.run, component):
            records = self.run[each.hook_id].records
            if each.layer is None or len(records[0].shape) != 3:
                continue
            path = self.name(each.layer)
            inside = each.layer_name.removeprefix(f"{path}.")
            if each.layer_name == path or inside != each.layer_name:
                found.setdefault((each.layer, inside) if component == "layernorm" else each.layer, each)
        return found

    def _hooks_on_inputs(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for hook_id in self.run:
            records = self.run[hook_id].inputs.records
            if records and records[0].is_input and records[0].component == "residual":
                number = records[0].layer_name.removeprefix(self.stack)
                if records[0].layer_name.startswith(self.stack) and number.isdecimal():
                    found.setdefault(int(number), hook_id)
        return found

    def _embedding(self) -> Captured:
        return next(each for each in find(self.run, "embedding") if each.layer is None)

    def _find_way(self) -> Way | None:
        """The first way in which every layer that holds all four adds up."""
        told = [self._norms.get(self.name(layer)) for layer in self.layers]
        sure = bool(self._norms) and all(layer is not None and layer.is_sum for layer in told)
        ways = [Way(*("readout" if self._has_norm(part) else None for part in PARTS))] if self._norms else []
        names = list(dict.fromkeys(name for _, name in self._hooks_of("layernorm")))
        ways += [Way(*pair) for pair in product([None, *names], repeat=2)]
        for way in dict.fromkeys(ways):
            checks = self._check(way)
            if checks and all(check.holds for check in checks.values()):
                self.checked = {layer: check.deviation for layer, check in checks.items()}
                return way
            if sure and not checks:
                return way
        return None

    def _has_norm(self, part: str) -> bool:
        return any(self.post_norm(layer, part) is not None for layer in self.layers)

    def _check(self, way: Way) -> dict[int, _Check]:
        """Of each layer that holds its input, its output and what is added in this way."""
        found: dict[int, _Check] = {}
        for layer in self.layers:
            check = self._check_layer(layer, way, self.before(layer))
            if check is not None:
                found[layer] = check
                if not check.holds:
                    break
        return found

    def _check_layer(self, layer: int, way: Way, before: Array | None) -> _Check | None:
        after = self.after(layer)
        if before is None or after is None:
            return None
        attention, mlp = (self.added(layer, part, way) for part in PARTS)
        unit = self._unit(layer)
        if attention is None or mlp is None or unit is None:
            return None
        terms = [each.astype(np.float64) for each in (before, attention, mlp, after)]
        if len({term.shape for term in terms}) > 1:  # a norm over something else
            return None
        with np.errstate(invalid="ignore"):
            norms = [np.linalg.norm(term, axis=1) for term in terms]
            off = np.linalg.norm(terms[0] + terms[1] + terms[2] - terms[3], axis=1)
        usable = np.isfinite(off) & np.isfinite(sum(norms))
        if not usable.any():
            return None
        rounding = (unit * (2 if "readout" in way else 1) + _ARITHMETIC) * sum(norms)
        relative = off[usable] / np.maximum(norms[3][usable], np.finfo(np.float64).tiny)
        return _Check(float(relative.max()), bool((off <= rounding)[usable].all()))

    def _unit(self, layer: int) -> float | None:
        """The coarsest rounding of what is stored of a layer; None for dtypes that hold too little to see a sum in."""
        hooks = [self._after.get(layer), self._after.get(layer - 1), *(self._parts[part].get(layer) for part in PARTS)]
        return rounding_unit(self.run, [hook.hook_id for hook in hooks if hook is not None])

    def _find_entry(self) -> None:
        """What the stream before layer 0 can be had from: its captured input, the embedding where it adds up (position
        embeddings and factors keep it from that), or what layer 0 gives less what its parts add.
        """
        if 0 in self._inputs:
            self.entry_is = "input"
        elif self.way is not None and 0 in self._after:
            if any(each.layer is None for each in find(self.run, "embedding")):
                embedding = self._joined(self._embedding().hook_id)
                if np.isin(self.positions, embedding.positions).all():
                    before = at_positions(embedding, self.positions, "embedding")
                    check = self._check_layer(0, self.way, before)
                    if check is not None and check.holds:
                        self.entry_is = "embedding"
                        self.checked[0] = check.deviation
                        return
            if all(self.added(0, part) is not None for part in PARTS):
                self.entry_is = "difference"


def rounding_unit(run: Run, hook_ids: Sequence[str]) -> float | None:
    """The largest relative error of rounding to the dtypes that hooks computed in and are stored in; None for dtypes
    that hold too little to see a sum in (float8, int8).
    """
    records = [record for hook_id in hook_ids for record in run[hook_id].records[:1]]
    dtypes = {dtype for record in records for dtype in (record.dtype, record.source_dtype or record.dtype)}
    return max((_UNIT[dtype] for dtype in dtypes), default=0.0) if dtypes <= set(_UNIT) else None


def at_positions(joined: Joined, positions: Array, hook_id: str) -> Array:
    """The values at these positions, [len(positions), …]. Raises RunError where one is not among them."""
    at = np.searchsorted(joined.positions, positions)
    if (at >= len(joined.positions)).any() or (joined.positions[at] != positions).any():
        raise RunError(f"{hook_id} does not hold all of the positions {_range(positions)}: capture it with all of them")
    values: Array = joined.values[at]
    return values


def _range(positions: Array) -> str:
    return f"{positions[0]} … {positions[-1]}" if len(positions) > 1 else str(positions[0])


def _common(every: list[Array]) -> Array:
    common = every[0]
    for positions in every[1:]:
        common = np.intersect1d(common, positions)
    return common


def optional_readout(run: Run, model: nn.Module | Readout | None = None) -> Readout | None:
    """The readout of the run, or of the model in its place; None where there is neither."""
    try:
        return need_readout(run, model)
    except MissingReadout:
        return None


def need_readout(run: Run, model: nn.Module | Readout | None = None) -> Readout:
    """The readout of the model, if one is given, else the run's. Raises MissingReadout, ModelError."""
    if model is None:
        return read_readout(run)
    if isinstance(model, Readout):
        return model
    from ..model_readout import readout_of

    return readout_of(model)
