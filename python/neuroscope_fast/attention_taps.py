"""The taps on one attention module: what its attention function was given, stored as it is or computed from.

Query, key, value and head output go to native taps. Scores, patterns and reductions are computed only for the heads and
query rows that are stored, after a native tap has said which these are.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .attention_check import check_against_output
from .attention_inputs import UnreadableAttention, attention_call
from .attention_interface import AttentionGiven
from .attention_math import AttentionCall, attention_pattern, attention_scores, reduce_pattern
from .errors import CaptureError
from .model_components import HeadPart

if TYPE_CHECKING:
    from torch import nn

    from ._core import ComputedCall, ComputedTap

HEAD_AXIS = {"query": 1, "key": 1, "value": 1, "head_output": 2}
"""Of the components that are stored as they are."""

_ROW_AXIS = {"head_output": 1}
PassMask = Callable[[], "torch.Tensor | None"]


@dataclass
class StoredTap:
    """A tensor that is stored as it is, or some of its heads."""

    component: str
    part: HeadPart
    description: str
    native: Callable[..., None]

    def take(self, given: AttentionGiven) -> None:
        tensor = given.output if self.component == "head_output" else getattr(given, self.component)
        self.native(given.module, (), _heads_of(tensor.detach(), HEAD_AXIS[self.component], self))


@dataclass
class ComputedAttentionTap:
    """A tensor that is computed from the call, or from the pattern that a module has returned."""

    component: str
    part: HeadPart
    description: str
    native: ComputedTap
    indices: dict[int, int]
    """For the reduction `top_k`, by the stream of the weights that of the keys."""
    pass_mask: PassMask
    """The 2-D attention mask of the pass that is running, cache included."""
    in_encoder: bool = False
    _checked: set[bool] = field(default_factory=set)

    def take(self, given: AttentionGiven) -> None:
        if self.component == "head_output":
            self._take_norms(given)
            return
        shape = [*given.query.shape[:3], given.key.shape[2]]
        wanted = self.native.begin(given.module, given.query, shape)
        if wanted is None:
            return
        if given.output.shape[0] != shape[0] or given.output.dim() != 4:
            raise self._error(f"its attention function gave {list(given.output.shape)}, not [batch, queries, heads, …]")
        try:
            call = attention_call(given, _padding(wanted, given.query))
        except UnreadableAttention as error:
            raise self._error(str(error)) from error
        one_query = shape[2] == 1
        if one_query not in self._checked:  # a prefill and a decode step are enough: the rest is alike
            check_against_output(given, call, self.description)
            self._checked.add(one_query)
        self._store(wanted, call)

    def take_pattern(self, module: nn.Module, pattern: torch.Tensor) -> None:
        """What a module of the older style has returned."""
        wanted = self.native.begin(module, pattern, list(pattern.shape))
        if wanted is not None:
            self._store(wanted, _call_with(pattern, _padding(wanted, pattern)))

    def _store(self, wanted: ComputedCall, call: AttentionCall) -> None:
        try:
            self._compute(wanted, call)
        except ValueError as error:
            raise self._error(str(error)) from error

    def _compute(self, wanted: ComputedCall, call: AttentionCall) -> None:
        heads = self._heads(call.query.shape[1])
        for number, (stream, chosen) in enumerate(wanted.wanted):
            rows = torch.tensor(chosen) if chosen is not None and chosen and isinstance(chosen[0], list) else chosen
            if self.part.reduction is None:
                compute = attention_scores if self.component == "attention_scores" else attention_pattern
                wanted.store(number, compute(call, heads=heads, rows=rows))
                continue
            result = reduce_pattern(
                call,
                self.part.reduction,
                heads=heads,
                rows=rows,
                k=self.part.top_k,
                **self._keys(wanted, call),
            )
            if isinstance(result, tuple):
                indices, weights = result
                # The keys first: where the weights have come to disk, so have they.
                wanted.store(number, indices.to(torch.int32), self.indices[stream])
                wanted.store(number, weights)
            else:
                wanted.store(number, result)

    def _keys(self, wanted: ComputedCall, call: AttentionCall) -> dict[str, Any]:
        """Which keys are meant by the first token and by the one before the query's own."""
        if self.part.reduction not in ("sink", "previous") or self.part.is_cross:
            return {}
        queries, keys = call.query.shape[2], call.key.shape[2]
        offset = wanted.offset
        if offset is None:
            offset = max(keys - queries, 0)
        # What a cache has let go: it holds the last keys of the sequence, unless it has room for more.
        gone = max(offset + queries - keys, 0)
        if self.part.reduction == "previous":
            return {"own_offset": offset - gone}
        return {"first_key": self._first_real(wanted, call) - gone}

    def _first_real(self, wanted: ComputedCall, call: AttentionCall) -> Any:
        """The position of the first token that is no padding: a number, or one for each row."""
        batch, _, queries, _ = call.query.shape
        if call.padding is not None and (wanted.offset == 0 or self.in_encoder):
            return (~call.padding).to(torch.int64).argmax(1)
        mask = None if self.in_encoder or not wanted.offset else self.pass_mask()
        if mask is None or mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] <= queries:
            return 0
        return (mask != 0).to(torch.int64).argmax(1).to(call.query.device)

    def _take_norms(self, given: AttentionGiven) -> None:
        output = given.output.detach()
        wanted = self.native.begin(given.module, output, list(output.shape))
        if wanted is None:
            return
        chosen = _heads_of(output, HEAD_AXIS["head_output"], self)
        for number, (_, rows) in enumerate(wanted.wanted):
            part = _rows_of(chosen, rows)
            dtype = torch.float64 if part.dtype == torch.float64 else torch.float32
            wanted.store(number, torch.linalg.vector_norm(part, dim=-1, dtype=dtype).to(torch.float32))

    def _heads(self, count: int) -> list[int] | None:
        heads = self.part.heads
        if heads is not None and max(heads) >= count:
            raise self._error(f"there is no head {max(heads)}; its attention function was given {count}")
        return None if heads is None else list(heads)

    def _error(self, reason: str) -> CaptureError:
        return CaptureError(f"{self.description}: {reason}")


class AttentionTaps:
    """All taps of one capture on one module. Called with each call of its attention function."""

    def __init__(self, module: nn.Module, taps: list[StoredTap | ComputedAttentionTap]) -> None:
        self._module = weakref.ref(module)
        self._taps = taps

    def __call__(self, given: AttentionGiven) -> None:
        if self._module() is not given.module:  # the id of a module that is gone, used again
            return
        with torch.no_grad():
            for tap in self._taps:
                tap.take(given)


class ReturnedPattern:
    """A forward hook: the pattern that a module of the older style returns beside its output. Not for torch.compile."""

    def __init__(self, module: nn.Module, taps: list[ComputedAttentionTap]) -> None:
        self._module = weakref.ref(module)
        self._taps = taps
        self._index: int | None = None
        """Which of the things it returns the pattern is."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> ReturnedPattern:
        return self

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        if self._module() is not module:
            return
        with torch.no_grad():
            items = {index: item.detach() for index, item in enumerate(_items(output)) if _has_four_axes(item)}
            if self._index is None:
                self._index = next((index for index, item in items.items() if _is_pattern(item, module.training)), None)
            pattern = items.get(self._index) if self._index is not None else None
            for tap in self._taps:
                if pattern is None:
                    raise CaptureError(
                        f"{tap.description}: this architecture gives attention patterns only under eager attention, "
                        "and the module has returned none; load the model with attn_implementation='eager', and call "
                        "it with output_attentions=True where it asks for that"
                    )
                tap.take_pattern(module, pattern)


def _items(output: Any) -> tuple[Any, ...]:
    """What a module returns beside its output."""
    return output[1:] if isinstance(output, tuple) else ()


def _has_four_axes(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dim() == 4 and item.is_floating_point()


def _is_pattern(item: torch.Tensor, with_dropout: bool) -> bool:
    """Whether the rows of the last query are probabilities, or zeros where that is padding. Position biases have four
    axes, too. Waits for the device.
    """
    rows = item[:, :, -1].to(torch.float32)
    sums = rows.sum(-1)
    near = (sums > 0.1) if with_dropout else (sums - 1).abs() < 0.05
    return bool(near.any() & (near | (sums == 0)).all() & (rows >= 0).all())


def returned_pattern_hook(module: nn.Module, taps: list[ComputedAttentionTap]) -> Callable[..., None]:
    """A `ReturnedPattern` that the compiler does not enter."""
    disable: Any = torch.compiler.disable
    reason = "neuroscope-fast captures the pattern that this attention returns"
    return functools.partial(disable(_call, reason=reason), ReturnedPattern(module, taps))


def _call(returned: ReturnedPattern, module: nn.Module, args: Any, output: Any) -> None:
    returned(module, args, output)


def _call_with(pattern: torch.Tensor, padding: torch.Tensor | None) -> AttentionCall:
    """A call whose pattern is `pattern` [B, H, Q, K], whose rows each add up to 1."""
    batch, heads, queries, keys = pattern.shape
    logits = pattern.to(torch.float64 if pattern.dtype == torch.float64 else torch.float32).log()
    return AttentionCall(
        query=logits.new_zeros(batch, heads, queries, 1),
        key=logits.new_zeros(batch, 1, keys, 1),
        scale=1.0,
        mask=logits,
        padding=padding,
    )


def _padding(wanted: ComputedCall, query: torch.Tensor) -> torch.Tensor | None:
    real = wanted.real
    if not real:
        return None
    batch, queries = query.shape[0], query.shape[2]
    padding = torch.frombuffer(bytearray(real), dtype=torch.uint8).view(batch, queries) == 0
    return padding.to(query.device)


def _heads_of(tensor: torch.Tensor, axis: int, tap: StoredTap | ComputedAttentionTap) -> torch.Tensor:
    heads = tap.part.heads
    if heads is None:
        return tensor
    if max(heads) >= tensor.shape[axis]:
        raise CaptureError(f"{tap.description}: there is no head {max(heads)}; the tensor has {tensor.shape[axis]}")
    if list(heads) == list(range(heads[0], heads[0] + len(heads))):
        return tensor.narrow(axis, heads[0], len(heads))
    return tensor.index_select(axis, torch.tensor(heads, device=tensor.device))


def _rows_of(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
    """The chosen rows of a head output [B, S, H, D]."""
    if rows is None:
        return tensor
    axis = _ROW_AXIS["head_output"]
    if rows and isinstance(rows[0], list):
        return torch.stack([each[torch.tensor(row)] for each, row in zip(tensor, rows, strict=True)])
    return tensor.index_select(axis, torch.tensor(rows, dtype=torch.int64, device=tensor.device))
