"""Attention scores, patterns and reductions made of blocks (attention_blocks.py): what computes them on CPUs.

Arguments and results are those of `attention_math`. Any device will do; on a GPU each block would wait for the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_blocks import logit_blocks, pattern_blocks
from .kernels.attention_call import AttentionCall, Reduction, Rows, Selection, checked_reduction, select, top_weights


def attention_scores(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """[B, h, n, K] float32: see `attention_math.attention_scores`."""
    selection = select(call, heads, rows)
    result = torch.full(_pattern_shape(call, selection), float("-inf"), dtype=torch.float32, device=call.query.device)
    for block in logit_blocks(call, selection):
        target = result[block.batch, block.heads, block.rows]
        target[..., block.keys] = block.logits
        if block.blind is not None:
            target[block.blind] = 0.0
    return result


def attention_pattern(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """[B, h, n, K] float32: see `attention_math.attention_pattern`."""
    selection = select(call, heads, rows)
    result = torch.zeros(_pattern_shape(call, selection), dtype=torch.float32, device=call.query.device)
    for block, pattern in pattern_blocks(call, selection):
        result[block.batch, block.heads, block.rows, block.keys] = pattern
    return result


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
    if wanted.name in ("mean", "max"):
        return _over_heads(call, selection, wanted.name)
    if wanted.name == "top_k":
        return _top_k(call, selection, wanted.largest)
    return _of_rows(call, selection, wanted)


def _over_heads(call: AttentionCall, selection: Selection, name: str) -> Tensor:
    """mean and max, [B, n, K]."""
    batch, _, rows, keys = _pattern_shape(call, selection)
    result = torch.zeros(batch, rows, keys, dtype=call.sums_dtype, device=call.query.device)
    share = 1.0 / len(selection.heads)
    for block, pattern in pattern_blocks(call, selection):
        target = result[block.batch, block.rows, block.keys]
        if name == "mean":
            target.add_(pattern[0] if len(pattern) == 1 else pattern.sum(0), alpha=share)
        else:
            torch.maximum(target, pattern[0] if len(pattern) == 1 else pattern.amax(0), out=target)
    return result.to(torch.float32)


def _of_rows(call: AttentionCall, selection: Selection, reduction: Reduction) -> Tensor:
    """entropy, sink and previous, [B, h, n]."""
    result = torch.zeros(_pattern_shape(call, selection)[:3], dtype=torch.float32, device=call.query.device)
    for block, pattern in pattern_blocks(call, selection):
        target = result[block.batch, block.heads, block.rows]
        if reduction.keys is None:
            # 0 times the logarithm of the smallest normal number is 0; 0 times that of 0 would be NaN.
            terms = torch.clamp(pattern, min=torch.finfo(pattern.dtype).tiny, out=block.logits).log_().mul_(pattern)
            target.copy_(0.0 - terms.sum(-1))
            continue
        index = reduction.keys[block.batch, block.rows] - block.keys.start
        inside = (index >= 0) & (index < pattern.shape[2])
        index = index.clamp(0, pattern.shape[2] - 1)[None, :, None].expand(len(pattern), -1, 1)
        target.copy_(torch.where(inside, pattern.gather(2, index)[..., 0], 0.0))
    return result


def _top_k(call: AttentionCall, selection: Selection, k: int) -> tuple[Tensor, Tensor]:
    """Indices and weights, [B, h, n, k] each."""
    shape = [*_pattern_shape(call, selection)[:3], k]
    indices = torch.zeros(shape, dtype=torch.int64, device=call.query.device)
    weights = torch.zeros(shape, dtype=torch.float32, device=call.query.device)
    for block, pattern in pattern_blocks(call, selection):
        # Keys outside of the block weigh 0. Where fewer than k weigh more, the first k of them are wanted, too.
        first = block.keys.start
        before = min(first, k)
        behind = max(0, k - before - pattern.shape[2])
        padded = torch.nn.functional.pad(pattern.to(torch.float32), (before, behind))
        found, values = top_weights(padded, k)
        indices[block.batch, block.heads, block.rows] = torch.where(found < before, found, found - before + first)
        weights[block.batch, block.heads, block.rows] = values
    return indices, weights


def _pattern_shape(call: AttentionCall, selection: Selection) -> list[int]:
    """[B, h, n, K]."""
    batch, _, _, keys = call.logits_shape
    return [batch, len(selection.heads), selection.count, keys]
