"""What a call of an attention function was given, what is wanted of it, and which of both cannot be.

The kernels, their twin and the blockwise code for CPUs start from the same checked values; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import chosen_heads

PATTERN_REDUCTIONS = ("mean", "max", "entropy", "sink", "previous", "top_k")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Rows = Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one call of an attention function was given: enough to say what it attended to. All on one device.

    `query` is [B, H, Q, D], `key` [B, Hkv, K, D]; query head h reads key head h // (H // Hkv). Any strides; both
    float32, bfloat16, float16 or float64. The logit of query i and key j is `scale` times their dot product, then
    `softcap` * tanh(logit / softcap) if there is a soft cap, then plus the additive mask.

    Which keys a query sees: those that `mask` shows, and with `causal_offset` those with j <= i + causal_offset, and
    with `window` besides only those with j > i + causal_offset - window. `mask` can be broadcast to [B, H, Q, K] and
    may be longer than K in its last axis (static caches); it is bool (True: seen) or floating, to be added, where
    values of half of `torch.finfo(mask.dtype).min` or lower hide the key. Position biases (ALiBi, T5) are in it.

    `sinks`, [H], are one logit more for each head that takes probability and is dropped. Query rows where `padding`,
    [B, Q] bool, is True are zeros in every result.

    Raises ValueError for shapes, dtypes and numbers that do not go together.
    """

    query: Tensor
    key: Tensor
    scale: float
    mask: Tensor | None = None
    causal_offset: int | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    padding: Tensor | None = None

    def __post_init__(self) -> None:
        query, key = self.query, self.key
        if query.dim() != 4 or key.dim() != 4:
            raise ValueError(
                f"query and key have the axes [batch, heads, positions, head size], not {_axes(query)} and {_axes(key)}"
            )
        if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]) or 0 in (query.shape[3], key.shape[2]):
            raise ValueError(f"a query of {_axes(query)} and a key of {_axes(key)} do not go together")
        if 0 in (query.shape[1], key.shape[1]) or query.shape[1] % key.shape[1]:
            raise ValueError(f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads")
        if query.dtype not in _DTYPES or key.dtype != query.dtype:
            raise ValueError(
                f"query and key are both float32, bfloat16, float16 or float64, not {query.dtype} and {key.dtype}"
            )
        if self.window is not None and (self.causal_offset is None or self.window < 1):
            raise ValueError(f"a window is at least 1 and needs causal_offset, not {self.window}, {self.causal_offset}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"a soft cap is greater than 0, not {self.softcap}")
        self._check_mask()
        if self.sinks is not None and not (self.sinks.shape == query.shape[1:2] and self.sinks.is_floating_point()):
            raise ValueError(f"sinks are one number for each of {query.shape[1]} heads, not {_axes(self.sinks)}")
        wanted = (query.shape[0], query.shape[2])
        if self.padding is not None and (self.padding.shape != wanted or self.padding.dtype != torch.bool):
            raise ValueError(f"padding is bool {list(wanted)}, not {self.padding.dtype} {_axes(self.padding)}")
        for name in ("key", "mask", "sinks", "padding"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.device != query.device:
                raise ValueError(f"the query is on {query.device} and {name} on {tensor.device}")

    def _check_mask(self) -> None:
        mask = self.mask
        if mask is None:
            return
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"a mask is bool or floating, not {mask.dtype}")
        wanted = self.logits_shape
        axes = [1] * (4 - mask.dim()) + list(mask.shape)
        fits = all(size in (1, want) for size, want in zip(axes[:3], wanted[:3], strict=False))
        if len(axes) > 4 or not fits or not (axes[3] == 1 or axes[3] >= wanted[3]):
            raise ValueError(f"a mask of {_axes(mask)} cannot be broadcast to {wanted}")

    @property
    def logits_shape(self) -> list[int]:
        """[B, H, Q, K]."""
        return [*self.query.shape[:3], self.key.shape[2]]

    @property
    def sums_dtype(self) -> torch.dtype:
        """What is computed in: float32, or float64 for tensors of float64."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def queries_per_key_head(self) -> int:
        """H // Hkv."""
        return self.query.shape[1] // self.key.shape[1]

    def expanded_mask(self) -> Tensor | None:
        """The mask as a view [B, H, Q, K], with stride 0 where it is broadcast."""
        return None if self.mask is None else self.mask[..., : self.key.shape[2]].expand(self.logits_shape)

    def hidden_below(self) -> float:
        """The additive mask's largest value that hides a key."""
        assert self.mask is not None
        # Half of it: a position bias that was added to the smallest number of float16 has made it a larger one.
        return torch.finfo(self.mask.dtype).min / 2


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen heads, each once, and the chosen query rows."""

    heads: list[int]
    rows: Tensor | None  # [B, n], int64, on the device of the query; None: all
    count: int  # n

    def positions(self, call: AttentionCall) -> Tensor:
        """The query index of each row, [B, n] int64."""
        if self.rows is not None:
            return self.rows
        return torch.arange(self.count, device=call.query.device).expand(call.query.shape[0], self.count)


def select(call: AttentionCall, heads: list[int] | None, rows: Rows | None) -> Selection:
    """The selection of `heads` (None: all) and of query rows: indices [n], or [B, n] for different ones in each batch
    row (None: all), in any order. Rows in a tensor on a GPU are read back, which waits for the GPU.

    Raises ValueError for a head or row that is not there and for a head chosen twice.
    """
    chosen = chosen_heads(call.query, "select", 1, heads, None)
    batch, _, queries, _ = call.logits_shape
    if rows is None:
        return Selection(chosen, None, queries)
    indices = rows if isinstance(rows, Tensor) else torch.tensor(rows, dtype=torch.int64)
    if indices.dtype != torch.int64 or indices.dim() not in (1, 2) or (indices.dim() == 2 and len(indices) != batch):
        raise ValueError(f"rows are int64 [rows] or [{batch}, rows], not {indices.dtype} {_axes(indices)}")
    outside = indices[(indices < 0) | (indices >= queries)]
    if outside.numel():
        raise ValueError(f"there is no query row {int(outside[0])}; the rows are 0 to {queries - 1}")
    indices = indices.to(call.query.device, non_blocking=True).expand(batch, indices.shape[-1])
    return Selection(chosen, indices, indices.shape[1])


class Reduction(NamedTuple):
    """A reduction with what it needs to know."""

    name: str
    largest: int  # of top_k: how many, at most K
    keys: Tensor | None  # of sink and previous: whose probability is wanted, [B, n] int64; none if outside of the keys


def checked_reduction(
    call: AttentionCall,
    selection: Selection,
    name: str,
    *,
    k: int | None,
    first_key: Tensor | int,
    own_offset: int | None,
) -> Reduction:
    """The reduction that arguments of `reduce_pattern` name. Raises ValueError for those that name none."""
    if name not in PATTERN_REDUCTIONS:
        raise ValueError(f"there is no reduction '{name}'; use {', '.join(PATTERN_REDUCTIONS)}")
    if name == "top_k" and (k is None or k < 1):
        raise ValueError(f"top_k needs k of at least 1, not {k}")
    batch, _, queries, keys = call.logits_shape
    wanted: Tensor | None = None
    if name == "sink":
        first = first_key
        if not isinstance(first, Tensor):
            first = torch.full((batch,), first, device=call.query.device)
        if first.shape != (batch,) or first.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"first_key is one index or {batch}, not {first.dtype} {_axes(first)}")
        first = first.to(call.query.device, torch.int64, non_blocking=True)
        wanted = first[:, None].expand(batch, selection.count)
    elif name == "previous":
        offset = keys - queries if own_offset is None else own_offset
        wanted = selection.positions(call) + (offset - 1)
    return Reduction(name, min(k or 1, keys), wanted)


def top_weights(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices (int64) and values of the k largest of the last axis, descending; of equal ones the lower index first.

    `weights` is float32, not negative; NaN is the largest, and k at most the axis's length. Where the largest is 0,
    all indices are 0.
    """
    # torch.topk promises no order of equal values. The bits of floats that are not negative are in their order, so that
    # numbers with the bits above and the index turned round below have the wanted order and are all different.
    size = weights.shape[-1]
    ranked = (weights.contiguous().view(torch.int32) & 0x7FFFFFFF).to(torch.int64)
    ranked = ranked.bitwise_left_shift_(32).add_(torch.arange(size - 1, -1, -1, device=weights.device))
    indices = (size - 1) - (ranked.topk(k, dim=-1).values & 0xFFFFFFFF)
    values = weights.gather(-1, indices)
    return torch.where(values[..., :1] == 0, 0, indices), values


def _axes(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
