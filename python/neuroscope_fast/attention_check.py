"""A look at whether what is computed from a call of an attention function is what the function itself computed.

The pattern of one query, applied to the values, must be the function's output for that query. A model whose attention
does more than its arguments say (relative positions of its own, another scale, …) would otherwise give wrong patterns
that look right.
"""

from __future__ import annotations

import torch

from .attention_interface import AttentionGiven
from .attention_math import AttentionCall, attention_pattern
from .errors import CaptureError

_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
"""Relative to the largest value; half precision rounds the pattern and the output."""


def check_against_output(given: AttentionGiven, call: AttentionCall, description: str) -> bool:
    """Raise CaptureError where the output for the last real query of each batch row is another one.

    Waits for the device. False for a call with dropout, which is not looked at, nor is one in a CUDA graph, where
    nothing can be read.
    """
    if given.options.get("dropout"):
        return False
    query, value = call.query, given.value.detach()
    batch, heads, queries, _ = query.shape
    if query.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    rows = torch.full((batch,), queries - 1, device=query.device)
    if call.padding is not None:
        positions = torch.arange(queries, device=query.device)
        rows = torch.where(call.padding, -1, positions).amax(1).clamp(min=0)
    pattern = attention_pattern(call, rows=rows[:, None].cpu())
    groups = heads // value.shape[1]
    keys = pattern.shape[3]
    shared = pattern.view(batch, value.shape[1], groups, keys).to(torch.float32)
    expected = torch.matmul(shared, value.to(torch.float32)).view(batch, heads, -1)
    computed = given.output.detach()[torch.arange(batch, device=query.device), rows].to(torch.float32)
    seen = pattern.amax(-1)[..., 0] > 0  # what a function makes of a row that sees no key is its own affair
    error = torch.where(seen[..., None], (expected - computed).abs(), 0.0)
    bound = _TOLERANCE.get(given.value.dtype, 6e-2) * float(value.abs().amax())
    if float(error.amax()) > bound:
        raise CaptureError(
            f"{description}: the module's attention ({given.implementation}) is not what its query, key and mask say; "
            "its scores and patterns cannot be computed from them: capture query, key, value or head_output"
        )
    return True
