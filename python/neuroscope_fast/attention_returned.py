"""The pattern that an attention module of transformers' older style returns beside its output."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .attention_modules import head_count
from .attention_taps import ComputedAttentionTap
from .errors import CaptureError

if TYPE_CHECKING:
    from torch import nn

_MOST_AFTER_DROPOUT = 4.0
"""What a row may add up to on average: dropout of 3/4 multiplies by that what it leaves."""


def returned_pattern_hook(
    module: nn.Module, taps: list[ComputedAttentionTap], detach: Callable[[str], bool]
) -> Callable[..., None]:
    """A forward hook that the compiler does not enter. `detach`: see `AttentionTaps`."""
    disable: Any = torch.compiler.disable
    reason = "neuroscope-fast captures the pattern that this attention returns"
    return functools.partial(disable(_call, reason=reason), _ReturnedPattern(module, taps, detach))


def _call(returned: _ReturnedPattern, module: nn.Module, args: Any, output: Any) -> None:
    returned(module, args, output)


class _ReturnedPattern:
    def __init__(self, module: nn.Module, taps: list[ComputedAttentionTap], detach: Callable[[str], bool]) -> None:
        self._module = weakref.ref(module)
        self._taps = taps
        self._detach = detach
        self._heads = head_count(module, "query")
        self._index: int | None = None
        """Which of the things it returns the pattern is."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> _ReturnedPattern:
        return self

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        if self._module() is not module:
            return
        try:
            self._take(module, output)
        except CaptureError as error:
            if not self._detach(str(error)):
                raise

    def _take(self, module: nn.Module, output: Any) -> None:
        with torch.no_grad():
            items = {index: item.detach() for index, item in enumerate(_beside(output)) if _has_four_axes(item)}
            fitting = {index: item for index, item in items.items() if self._fits(item, output[0])}
            if self._index is None:
                found = (index for index, item in fitting.items() if _has_probabilities(item, module.training))
                self._index = next(found, None)
            pattern = fitting.get(self._index) if self._index is not None else None
            for tap in self._taps:
                if pattern is None:
                    raise CaptureError(f"{tap.description}: {_reason(items)}")
                tap.take_pattern(module, pattern)

    def _fits(self, item: torch.Tensor, result: Any) -> bool:
        """Whether it can be [B, H, Q, K] of the module's output, [B, Q, size]."""
        if not isinstance(result, torch.Tensor) or result.dim() != 3:
            return False
        batch, heads, queries, _ = item.shape
        return (batch, queries) == tuple(result.shape[:2]) and heads == (self._heads or heads)


def _reason(items: dict[int, torch.Tensor]) -> str:
    if items:
        shapes = ", ".join(str(list(item.shape)) for item in items.values())
        return (
            f"what the module has returned beside its output, {shapes}, is not known to be a pattern [batch, heads, "
            "queries, keys], so it is not captured"
        )
    return (
        "this architecture gives attention patterns only under eager attention, and the module has returned none; load "
        "the model with attn_implementation='eager', and call it with output_attentions=True where it asks for that"
    )


def _beside(output: Any) -> tuple[Any, ...]:
    """What a module returns beside its output."""
    return output[1:] if isinstance(output, tuple) else ()


def _has_four_axes(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dim() == 4 and item.is_floating_point()


def _has_probabilities(item: torch.Tensor, with_dropout: bool) -> bool:
    """Whether the rows of the last query are probabilities, or zeros where that is padding. Position biases have four
    axes, too. Waits for the device.
    """
    rows = item[:, :, -1].to(torch.float32)
    sums = rows.sum(-1)
    if with_dropout:  # which may take nearly all of a row, or scale it up
        right = (sums > 0).any() & (sums.mean() <= _MOST_AFTER_DROPOUT)
    else:
        near = (sums - 1).abs() < 0.05
        right = near.any() & (near | (sums == 0)).all()
    return bool(right & (rows >= 0).all())
