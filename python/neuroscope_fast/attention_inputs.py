"""What a model meant by a call of its attention function: the logits that it computed, as an `AttentionCall`.

Each implementation reads the same arguments in its own way: a mask that is None is causal for sdpa and no mask for
eager attention, flash attention takes the padding and the window beside it, flex attention a function.
"""

from __future__ import annotations

from typing import Any

import torch

from .attention_interface import AttentionGiven
from .attention_math import AttentionCall

READABLE = "sdpa, eager, flash_attention_2, flash_attention_3 and flex_attention"


class UnreadableAttention(ValueError):
    """A call whose logits cannot be told from its arguments; the message says why."""


def attention_kind(implementation: str) -> str | None:
    """`sdpa`, `eager`, `flash` or `flex` for the name of an implementation; None for others."""
    name = implementation.removeprefix("paged|")
    if name in ("sdpa", "eager"):
        return None if implementation == "paged|eager" else name
    if name == "flex_attention":
        return "flex"
    return "flash" if name.startswith("flash_attention") or "flash-attn" in name else None


def attention_call(given: AttentionGiven, padding: torch.Tensor | None) -> AttentionCall:
    """The call's own reading; `padding` [B, Q] says which queries are padding.

    Raises UnreadableAttention.
    """
    kind = attention_kind(given.implementation)
    if kind is None:
        raise UnreadableAttention(
            f"how the attention implementation {given.implementation!r} reads its arguments is not known; "
            f"load the model with one of {READABLE}"
        )
    if given.options.get("cache") is not None:
        raise UnreadableAttention("the paged cache of continuous batching is not read; generate without it")
    query, key = given.query.detach(), given.key.detach()
    if key.dtype != query.dtype:
        key = key.to(query.dtype)
    scaling = given.options.get("scaling")
    common: dict[str, Any] = {
        "query": query,
        "key": key,
        "scale": float(scaling) if scaling is not None else query.shape[-1] ** -0.5,
        "padding": padding,
    }
    try:
        if kind == "sdpa":
            return _sdpa(given, common)
        if kind == "flash":
            return _flash(given, common)
        return _flex(given, common) if kind == "flex" else _eager(given, common)
    except UnreadableAttention:
        raise
    except ValueError as error:
        raise UnreadableAttention(f"its arguments do not go together: {error}") from error


def _sdpa(given: AttentionGiven, common: dict[str, Any]) -> AttentionCall:
    mask, options = given.mask, given.options
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(given.module, "is_causal", True)
    # Aligned to the upper left, as torch's scaled_dot_product_attention does it: with a cache, models give a mask.
    causal = bool(is_causal) and mask is None and given.query.shape[2] > 1
    mask = _biased(mask, options.get("position_bias"), given.key.shape[2])
    return AttentionCall(**common, mask=mask, causal_offset=0 if causal else None)


def _eager(given: AttentionGiven, common: dict[str, Any]) -> AttentionCall:
    options = given.options
    mask = given.mask
    if isinstance(mask, torch.Tensor) and not mask.is_floating_point():
        mask = mask.to(common["query"].dtype)  # it is added, whatever it is
    sinks = options.get("s_aux")
    if sinks is None:  # the eager functions of models with sinks take them from the module
        sinks = getattr(given.module, "sinks", None)
    return AttentionCall(
        **common,
        mask=_biased(mask, options.get("position_bias"), given.key.shape[2]),
        softcap=options.get("softcap"),
        sinks=_sinks(sinks),
    )


def _flash(given: AttentionGiven, common: dict[str, Any]) -> AttentionCall:
    options = given.options
    if any(options.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k", "block_table")):
        raise UnreadableAttention("sequences packed into one row are not read; give each a row of its own")
    batch, _, queries, _ = given.query.shape
    keys = given.key.shape[2]
    mask = given.mask
    _refuse_packed(options.get("position_ids"), mask, batch, queries, keys)
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(given.module, "is_causal", True)
    last = keys
    if mask is not None:
        if mask.dim() != 2:
            raise UnreadableAttention(f"flash attention takes a mask [batch, keys], not {list(mask.shape)}")
        last = min(mask.shape[1], keys)  # of a static cache: what lies behind is not used yet
        seen = torch.zeros(batch, keys, dtype=torch.bool, device=mask.device)
        seen[:, :last] = mask[:, :last] != 0
        mask = seen[:, None, None, :]
    window = options.get("sliding_window")
    offset = last - queries
    if not is_causal and window is not None and window < keys:
        own = torch.arange(queries, device=given.query.device)[:, None] + offset
        near = (torch.arange(keys, device=own.device) - own).abs() < window
        mask = near if mask is None else mask & near
    return AttentionCall(
        **common,
        mask=mask,
        causal_offset=offset if is_causal else None,
        window=int(window) if is_causal and window is not None else None,
        softcap=options.get("softcap") or None,
        sinks=_sinks(options.get("s_aux")),
    )


def _flex(given: AttentionGiven, common: dict[str, Any]) -> AttentionCall:
    options = given.options
    mask = given.mask
    keys = given.key.shape[2]
    if mask is not None and not isinstance(mask, torch.Tensor):
        from torch.nn.attention.flex_attention import create_mask

        mask = create_mask(mask.mask_mod, given.query.shape[0], 1, given.query.shape[2], keys, str(given.query.device))
    elif mask is not None:
        mask = mask[..., :keys].to(torch.float32)  # of all heads the first one's; it is added, whatever it is
        mask = mask[:, :1]
    return AttentionCall(
        **common,
        mask=_biased(mask, options.get("position_bias"), keys),
        softcap=options.get("softcap"),
        sinks=_sinks(options.get("s_aux")),
    )


def _biased(mask: torch.Tensor | None, bias: Any, keys: int) -> torch.Tensor | None:
    """The mask with the position bias [1 or B, H, Q, K] in it: bool without one, else additive."""
    if mask is not None:
        mask = mask.detach()[..., :keys]
    if not isinstance(bias, torch.Tensor):
        return mask
    added: torch.Tensor = bias.detach()[..., :keys].to(torch.float32)
    if mask is None:
        return added
    if mask.dtype == torch.bool:
        return torch.where(mask, added, float("-inf"))
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    return torch.where(hidden, float("-inf"), added + mask)


def _sinks(sinks: Any) -> torch.Tensor | None:
    return sinks.detach().reshape(-1) if isinstance(sinks, torch.Tensor) else None


def _refuse_packed(position_ids: Any, mask: Any, batch: int, queries: int, keys: int) -> None:
    """Flash attention tells several sequences in one row by position ids that begin anew."""
    if mask is not None or batch != 1 or queries == 1 or queries != keys or not isinstance(position_ids, torch.Tensor):
        return
    steps = position_ids.reshape(-1, position_ids.shape[-1])[0].diff()
    if bool((steps != 1).any()):
        raise UnreadableAttention("sequences packed into one row are not read; give each a row of its own")
