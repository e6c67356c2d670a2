"""The options of a hook that are about attention heads: which heads, and what of them, in their one normal form."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

from .errors import HookError

HEAD_COMPONENTS: tuple[str, ...] = (
    "query",
    "key",
    "value",
    "head_output",
    "attention_scores",
    "attention_pattern",
)
"""Components that are taken from the call of an attention function, split by head."""

PATTERN_REDUCTIONS: tuple[str, ...] = ("mean", "max", "entropy", "sink", "previous", "top_k")
"""What `HookSpec.reduction` may name for `attention_pattern`."""

REDUCTIONS: dict[str, tuple[str, ...]] = {"attention_pattern": PATTERN_REDUCTIONS, "head_output": ("head_norm",)}
"""What it may name, by component."""

TOP_K = 8
"""How many keys of each query `top_k` keeps where nothing else is said."""


def normal_heads(heads: object, where: str) -> list[int] | None:
    """A list of plain integers, or None for all heads.

    Raises HookError, its message beginning with `where`, for anything else, for an empty list and for a head that is
    named twice.
    """
    if heads is None:
        return None
    if isinstance(heads, (str, bytes, bytearray, Mapping)) or not isinstance(heads, Iterable):
        raise _wrong(heads, where)
    given = list(heads)
    try:
        indices = [operator.index(head) for head in given]
    except TypeError:
        raise _wrong(given, where) from None
    if any(isinstance(head, bool) for head in given):
        raise _wrong(given, where)
    if not indices:
        raise HookError(f"{where}: heads is an empty list and selects nothing; leave it out for all heads")
    if len(set(indices)) < len(indices):
        raise HookError(f"{where}: heads names a head twice")
    return indices


def check_head_options(component: str, heads: object, reduction: str | None, top_k: int, where: str) -> None:
    """Raise HookError where the options do not go with the component, or not with each other."""
    if component not in HEAD_COMPONENTS and (heads is not None or reduction is not None):
        option = "heads" if heads is not None else "reduction"
        raise HookError(
            f"{where}: {component!r} is not split by head, and takes no {option}; leave it out, or capture one of "
            + ", ".join(HEAD_COMPONENTS)
        )
    possible = REDUCTIONS.get(component, ())
    if reduction is not None and reduction not in possible:
        owners = [name for name, reductions in REDUCTIONS.items() if reduction in reductions]
        if owners:
            mend = f"it is one of {owners[0]!r}"
        elif possible:
            mend = f"available: {', '.join(possible)}"
        else:
            every = (f"{name!r}: {', '.join(reductions)}" for name, reductions in REDUCTIONS.items())
            mend = f"reductions there are for {'; '.join(every)}"
        raise HookError(f"{where}: {component!r} has no reduction {reduction!r}; {mend}")
    if top_k < 1:
        raise HookError(f"{where}: top_k is {top_k}; it counts keys and is at least 1")
    if top_k != TOP_K and reduction != "top_k":
        raise HookError(f"{where}: top_k is said and nothing is reduced to it; add reduction 'top_k', or leave it out")


def chosen_heads(heads: list[int] | None, count: int, where: str) -> tuple[int, ...] | None:
    """The heads counted from the front, of `count` there are; None for all of them, in their order.

    Raises HookError for a head that is not there, and for one that is named twice.
    """
    if heads is None:
        return None
    chosen = tuple(head + count if head < 0 else head for head in heads)
    for head, index in zip(heads, chosen, strict=True):
        if not 0 <= index < count:
            raise HookError(f"{where}: there is no head {head}; the module has {count} (0 to {count - 1})")
    if len(set(chosen)) < len(chosen):
        raise HookError(f"{where}: heads names a head twice, counted from the front and from the end")
    return None if chosen == tuple(range(count)) else chosen


def _wrong(heads: object, where: str) -> HookError:
    return HookError(f"{where}: heads {heads!r} is no list of heads such as [0, 5] or [-1]")
