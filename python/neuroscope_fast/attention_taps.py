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
from .kernels.attention_call import checked_reduction, select
from .kernels.reference_attention import chosen_part, reduce_whole
from .model_components import HeadPart

if TYPE_CHECKING:
    from torch import nn

    from ._core import ComputedCall, ComputedTap

HEAD_AXIS = {"query": 1, "key": 1, "value": 1, "head_output": 2}
"""Of the components that are stored as they are."""

_ROW_AXIS = {"head_output": 1}
PassMask = Callable[[], "torch.Tensor | None"]
FirstReal = Callable[[], "list[int] | None"]
"""For each row the position of the first real token of the sequence whose prefill this thread has seen last."""


@dataclass
class Shared:
    """What the taps on one module have in common."""

    checked: set[bool]
    """Whether a call of one query, and one of several, was held against the function's own output."""
    calls: dict[bytes, AttentionCall] = field(default_factory=dict)
    """The call that is running as it is read, by the real tokens of its rows."""


def _with_description(take: Callable[..., None]) -> Callable[..., None]:
    """Whatever torch says as a tap computes (that a device is out of memory, say) is a CaptureError that names the tap:
    the model's own errors are raised elsewhere.
    """

    @functools.wraps(take)
    def wrapper(tap: Any, *arguments: Any) -> None:
        try:
            take(tap, *arguments)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(f"{tap.description}: {error or type(error).__name__}") from error

    return wrapper


@dataclass
class StoredTap:
    """A tensor that is stored as it is, or some of its heads."""

    component: str
    part: HeadPart
    description: str
    native: Callable[..., None]

    @_with_description
    def take(self, given: AttentionGiven, _shared: Shared) -> None:
        of_output = self.component == "head_output"
        tensor = head_output(given, self.description) if of_output else getattr(given, self.component)
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
    first_real: FirstReal
    in_encoder: bool = False

    @_with_description
    def take(self, given: AttentionGiven, shared: Shared) -> None:
        if self.component == "head_output":
            self._take_norms(given)
            return
        shape = [*given.query.shape[:3], given.key.shape[2]]
        wanted = self.native.begin(given.module, given.query, shape)
        if wanted is None:
            return
        head_output(given, self.description)
        call = shared.calls.get(wanted.real)
        if call is None:
            try:
                call = shared.calls[wanted.real] = attention_call(given, _padding(wanted, given.query))
            except UnreadableAttention as error:
                raise self._error(str(error)) from error
        # A prefill and a decode step are enough: the rest is alike.
        one_query = shape[2] == 1
        if one_query not in shared.checked and check_against_output(given, call, self.description):
            shared.checked.add(one_query)
        self._store(wanted, call)

    @_with_description
    def take_pattern(self, module: nn.Module, pattern: torch.Tensor) -> None:
        """What a module of the older style has returned, [B, H, Q, K], whatever its rows add up to."""
        wanted = self.native.begin(module, pattern, list(pattern.shape))
        if wanted is None:
            return
        queries, keys = pattern.shape[2:]
        if keys < queries or (wanted.offset is not None and keys != wanted.offset + queries):
            raise self._error(
                f"what the module has returned beside its output, {list(pattern.shape)}, has no column a token"
            )
        self._store(wanted, _shape_of(pattern, _padding(wanted, pattern)), pattern)

    def _store(self, wanted: ComputedCall, call: AttentionCall, whole: torch.Tensor | None = None) -> None:
        heads = self._heads(call.query.shape[1])
        for number, (stream, chosen) in enumerate(wanted.wanted):
            rows = torch.tensor(chosen) if chosen is not None and chosen and isinstance(chosen[0], list) else chosen
            if whole is None:
                result = self._from_call(wanted, call, heads, rows)
            else:
                result = self._from_whole(wanted, call, whole, heads, rows)
            if isinstance(result, tuple):
                indices, result = result
                if gone := self._gone(wanted, call):
                    indices = indices + gone  # as positions of the sequence, like those of every other cache
                # The keys first: where the weights have come to disk, so have they.
                wanted.store(number, indices.to(torch.int32), self.indices[stream])
            wanted.store(number, result)

    def _from_call(self, wanted: ComputedCall, call: AttentionCall, heads: list[int] | None, rows: Any) -> Any:
        """What the component or its reduction is for the chosen heads and rows."""
        if self.component == "attention_scores":
            return attention_scores(call, heads=heads, rows=rows)
        if self.part.reduction is None:
            return attention_pattern(call, heads=heads, rows=rows)
        keys = self._keys(wanted, call)
        return reduce_pattern(call, self.part.reduction, heads=heads, rows=rows, k=self.part.top_k, **keys)

    def _from_whole(
        self, wanted: ComputedCall, call: AttentionCall, whole: torch.Tensor, heads: list[int] | None, rows: Any
    ) -> Any:
        """The pattern of the chosen heads and rows, or its reduction; rows of padding are zeros."""
        if call.padding is not None:
            whole = whole.masked_fill(call.padding[:, None, :, None], 0.0)
        selection = select(call, heads, rows)
        chosen = chosen_part(whole, selection).to(torch.float32)
        if self.part.reduction is None:
            return chosen
        keys = {"first_key": 0, "own_offset": None, **self._keys(wanted, call)}
        return reduce_whole(chosen, checked_reduction(call, selection, self.part.reduction, k=self.part.top_k, **keys))

    def _keys(self, wanted: ComputedCall, call: AttentionCall) -> dict[str, Any]:
        """Which keys are meant by the first token and by the one before the query's own."""
        if self.part.reduction not in ("sink", "previous"):
            return {}
        if self.part.is_cross:
            return {"first_key": _first_visible(call)}
        gone = self._gone(wanted, call)
        if self.part.reduction == "previous":
            return {"own_offset": self._offset(wanted, call) - gone}
        return {"first_key": self._first_real(wanted, call) - gone}

    @staticmethod
    def _offset(wanted: ComputedCall, call: AttentionCall) -> int:
        """The position of the call's first query."""
        queries, keys = call.query.shape[2], call.key.shape[2]
        return max(keys - queries, 0) if wanted.offset is None else wanted.offset

    def _gone(self, wanted: ComputedCall, call: AttentionCall) -> int:
        """How many keys a cache has let go: it holds the last of the sequence, unless it has room for more."""
        if self.part.is_cross:
            return 0
        queries, keys = call.query.shape[2], call.key.shape[2]
        return max(self._offset(wanted, call) + queries - keys, 0)

    def _first_real(self, wanted: ComputedCall, call: AttentionCall) -> Any:
        """The position of the first token that is no padding: a number, or one for each row."""
        batch, _, queries, _ = call.query.shape
        if call.padding is not None and (wanted.offset == 0 or self.in_encoder):
            return (~call.padding).to(torch.int64).argmax(1)
        if self.in_encoder or not wanted.offset:
            return 0
        mask = self.pass_mask()
        if mask is None:
            return 0
        if mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] > queries:
            return (mask != 0).to(torch.int64).argmax(1).to(call.query.device)
        first = self.first_real()  # models with static caches are given masks that do not tell padding from the rest
        if first is None or len(first) != batch:
            raise self._error(
                "which token is the sequence's first cannot be told: the capture has not seen its prefill, and the "
                "attention mask is not [batch, tokens]"
            )
        return torch.tensor(first).to(call.query.device, non_blocking=True)

    def _take_norms(self, given: AttentionGiven) -> None:
        output = head_output(given, self.description).detach()
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
    """All taps of one capture on one module. Called with each call of its attention function.

    `detach` is told why a call cannot be captured; where it answers False, the error is raised.
    """

    def __init__(
        self, module: nn.Module, taps: list[StoredTap | ComputedAttentionTap], detach: Callable[[str], bool]
    ) -> None:
        self._module = weakref.ref(module)
        self._taps = taps
        self._detach = detach
        self._checked: set[bool] = set()

    def __call__(self, given: AttentionGiven) -> None:
        if self._module() is not given.module:  # the id of a module that is gone, used again
            return
        try:
            with torch.no_grad():
                shared = Shared(self._checked)
                for tap in self._taps:
                    tap.take(given, shared)
        except CaptureError as error:
            if not self._detach(str(error)):
                raise


def _padding(wanted: ComputedCall, query: torch.Tensor) -> torch.Tensor | None:
    real = wanted.real
    if not real:
        return None
    batch, queries = query.shape[0], query.shape[2]
    padding = torch.frombuffer(bytearray(real), dtype=torch.uint8).view(batch, queries) == 0
    return padding.to(query.device, non_blocking=True)


def _shape_of(pattern: torch.Tensor, padding: torch.Tensor | None) -> AttentionCall:
    """A call of the shape of a pattern [B, H, Q, K]; its logits are nobody's."""
    batch, heads, queries, keys = pattern.shape
    nothing = torch.zeros(1, dtype=torch.float32, device=pattern.device)
    query, key = nothing.expand(batch, heads, queries, 1), nothing.expand(batch, 1, keys, 1)
    return AttentionCall(query, key, scale=1.0, padding=padding)


def _first_visible(call: AttentionCall) -> Any:
    """Of a call whose queries all see the same keys: the first that they see, for each batch row."""
    if call.mask is None:
        return 0
    mask = call.mask[..., -1, : call.key.shape[2]]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen.any(1).to(torch.int64).argmax(-1).expand(call.query.shape[0])


def head_output(given: AttentionGiven, description: str) -> torch.Tensor:
    """What the function gave, [B, Q, H, …]; CaptureError where it is not that."""
    batch, heads, queries = given.query.shape[:3]
    output = given.output
    if output.dim() != 4 or output.shape[:3] != (batch, queries, heads):
        raise CaptureError(
            f"{description}: its attention function ({given.implementation}) gave {list(output.shape)}, not [batch, "
            f"queries, heads, …] = {[batch, queries, heads]}"
        )
    return output


def _heads_of(tensor: torch.Tensor, axis: int, tap: StoredTap | ComputedAttentionTap) -> torch.Tensor:
    heads = tap.part.heads
    if heads is None:
        return tensor
    if max(heads) >= tensor.shape[axis]:
        raise CaptureError(f"{tap.description}: there is no head {max(heads)}; the tensor has {tensor.shape[axis]}")
    if list(heads) == list(range(heads[0], heads[0] + len(heads))):
        return tensor.narrow(axis, heads[0], len(heads))
    # An index would have to be copied to the device, which waits for it.
    return torch.cat([tensor.narrow(axis, head, 1) for head in heads], axis)


def _rows_of(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
    """The chosen rows of a head output [B, S, H, D]."""
    if rows is None:
        return tensor
    axis = _ROW_AXIS["head_output"]
    if rows and isinstance(rows[0], list):
        return torch.stack([_rows_of(each[None], row)[0] for each, row in zip(tensor, rows, strict=True)])
    index = torch.tensor(rows, dtype=torch.int64).to(tensor.device, non_blocking=True)
    return tensor.index_select(axis, index)
