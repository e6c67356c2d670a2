"""Attention scores, patterns and their reductions from what an attention function was given.

So they are known of every implementation, also of those that never have them in memory (SDPA, FlashAttention): the
model keeps its own. They are computed in float32 (float64 for tensors of float64) from query and key as they are, and
so for float32 they are those of eager attention within rounding; in bfloat16 eager attention rounds its logits, and
these are the more exact.

A *row* is one query of one head. A row that sees no key at all, since it is padding or the mask hides all keys, is
zeros in every result, never NaN. A key that is hidden from a row has no influence on it, whatever it holds.

CUDA tensors go through the Triton kernels of kernels/attention_pattern.py, others, and float64, through blocks in plain
torch (attention_blocks.py). Neither has a tensor of the size H x Q x K that the result does not ask for: on a CPU the
work takes 64 MiB at most beyond arguments and result, on a GPU the two numbers of each row that a softmax needs, and
for top_k buffers of 256 MiB at most.

The softmax is that of Milakov and Gimelshein 2018 (arXiv:1805.02867) where rows are read in pieces.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import attention_blockwise
from .kernels.attention_call import PATTERN_REDUCTIONS, AttentionCall, Rows

__all__ = ["PATTERN_REDUCTIONS", "AttentionCall", "attention_pattern", "attention_scores", "reduce_pattern"]


def attention_scores(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """The logits that softmax gets, [B, h, n, K] float32: -inf where a key is hidden, zeros in rows that see none.

    Sinks are no part of them. `heads` are indices in any order (None: all), `rows` query indices, [n] or [B, n] for
    different ones in each batch row, in any order (None: all).

    Raises ValueError for heads and rows that are not there; CaptureError for CUDA tensors where Triton is missing.
    """
    with torch.no_grad():
        result: Tensor = _implementation(call).attention_scores(call, heads=heads, rows=rows)
    return result


def attention_pattern(call: AttentionCall, *, heads: list[int] | None = None, rows: Rows | None = None) -> Tensor:
    """The probabilities, [B, h, n, K] float32; with sinks, the rows add up to less than 1. Else as the scores."""
    with torch.no_grad():
        result: Tensor = _implementation(call).attention_pattern(call, heads=heads, rows=rows)
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
    """One reduction of the pattern of the chosen heads and rows, float32, without the pattern itself:

    - `mean`, `max` over the heads: [B, n, K]
    - `entropy` -sum p ln p of each row, in nats: [B, h, n]
    - `sink`: the probability of the key `first_key`, an index, or one for each batch row, [B] (the first real token
      where the padding is on the left): [B, h, n]
    - `previous`: the probability of the key before the query's own, which for query i is i + `own_offset` (None: K - Q,
      as with a cache that grows; with a static one, the position of query 0 in it): [B, h, n]
    - `top_k`: indices (int64) and weights of the `k` largest, [B, h, n, min(k, K)], descending, of equal ones the lower
      index first; indices and weights are 0 where all weights are

    A probability is 0 where there is no such key. Other arguments and errors are those of `attention_scores`, and
    ValueError for a reduction that there is not and for k < 1.
    """
    with torch.no_grad():
        result: Tensor | tuple[Tensor, Tensor] = _implementation(call).reduce_pattern(
            call, reduction, heads=heads, rows=rows, k=k, first_key=first_key, own_offset=own_offset
        )
    return result


def _implementation(call: AttentionCall) -> ModuleType:
    if call.query.device.type != "cuda" or call.query.dtype == torch.float64:
        return attention_blockwise
    from .kernels.launch import import_triton

    import_triton()
    from .kernels import attention_launch

    return attention_launch
