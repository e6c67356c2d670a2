"""Plain torch twin of the attention kernels: scores, patterns and reductions by their definition, with all of them in
memory at once.

Written for exactness: the tests hold it against transformers' eager attention, and the kernels and the blockwise code
against it. Arguments and results are those of `neuroscope_fast.attention_math`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import AttentionCall, Reduction, Rows, Selection, checked_reduction, select


def attention_scores(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """[B, h, n, K] float32: see `attention_math.attention_scores`."""
    return _scores(call, select(call, heads, rows)).to(torch.float32)


def attention_pattern(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """[B, h, n, K] float32: see `attention_math.attention_pattern`."""
    return _pattern(call, select(call, heads, rows)).to(torch.float32)


def reduce_pattern(
    call: AttentionCall,
    reduction: str,
    *,
    heads: list[int] | None = None,
    rows: Rows | None = None,
    k: int | None = None,
    first_key: Tensor | int = 0,
    own_offset: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The reduction of the pattern: see `attention_math.reduce_pattern`."""
    selection = select(call, heads, rows)
    wanted = checked_reduction(call, selection, reduction, k=k, first_key=first_key, own_offset=own_offset)
    return reduce_whole(_pattern(call, selection), wanted)


def reduce_whole(pattern: Tensor, wanted: Reduction) -> Tensor | tuple[Tensor, Tensor]:
    """The reduction of a pattern [B, h, n, K] that is there as a whole; of its rows nothing is asked."""
    if wanted.name == "top_k":
        values, indices = pattern.to(torch.float32).sort(dim=-1, descending=True, stable=True)
        values, indices = values[..., : wanted.largest], indices[..., : wanted.largest]
        return torch.where(values[..., :1] == 0, 0, indices), values
    if wanted.name == "mean":
        result = pattern.mean(1)
    elif wanted.name == "max":
        result = pattern.amax(1)
    elif wanted.name == "entropy":
        result = torch.special.entr(pattern).sum(-1)
    else:
        assert wanted.keys is not None
        keys = torch.arange(pattern.shape[3], device=pattern.device)
        result = torch.where(wanted.keys[:, None, :, None] == keys, pattern, 0.0).sum(-1)
    return result.to(torch.float32)


def visible_keys(call: AttentionCall) -> Tensor:
    """Which keys each query sees, [B, H, Q, K] bool; none where the query is padding."""
    batch, heads, queries, keys = call.logits_shape
    visible = torch.ones(batch, heads, queries, keys, dtype=torch.bool, device=call.query.device)
    query = torch.arange(queries, device=visible.device)[:, None]
    key = torch.arange(keys, device=visible.device)
    if call.causal_offset is not None:
        visible &= key <= query + call.causal_offset
        if call.window is not None:
            visible &= key > query + call.causal_offset - call.window
    mask = call.expanded_mask()
    if mask is not None:
        visible &= mask if mask.dtype == torch.bool else ~(mask <= call.hidden_below())
    if call.padding is not None:
        visible &= ~call.padding[:, None, :, None]
    return visible


def _logits(call: AttentionCall) -> Tensor:
    """[B, H, Q, K] in the dtype of the sums, -inf where hidden."""
    query, key = call.query.to(call.sums_dtype), call.key.to(call.sums_dtype)
    logits = torch.matmul(query, key.repeat_interleave(call.queries_per_key_head, dim=1).transpose(2, 3)) * call.scale
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    mask = call.expanded_mask()
    if mask is not None and mask.dtype != torch.bool:
        logits = logits + mask.to(call.sums_dtype)
    return torch.where(visible_keys(call), logits, float("-inf"))


def chosen_part(tensor: Tensor, selection: Selection) -> Tensor:
    """The chosen heads and rows of a tensor [B, H, Q, …]."""
    tensor = tensor[:, selection.heads]
    if selection.rows is None:
        return tensor
    return torch.stack([part[:, rows] for part, rows in zip(tensor, selection.rows, strict=True)])


def _scores(call: AttentionCall, selection: Selection) -> Tensor:
    seen = visible_keys(call).any(-1, keepdim=True)
    return chosen_part(torch.where(seen, _logits(call), 0.0), selection)


def _pattern(call: AttentionCall, selection: Selection) -> Tensor:
    logits = _logits(call)
    if call.sinks is not None:
        sinks = call.sinks.to(logits.dtype)[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sinks], dim=-1)
    pattern = torch.softmax(logits, dim=-1)[..., : call.key.shape[2]]
    seen = visible_keys(call).any(-1, keepdim=True)
    return chosen_part(torch.where(seen, pattern, 0.0), selection)
