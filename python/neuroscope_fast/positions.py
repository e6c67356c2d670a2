"""The `positions` of a hook: which positions of each step are kept, in their one normal form.

`all`, `last`, a list of indices, or a slice written as in Python: `2:`, `:-1`, `::2`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping

from .errors import HookError

_SLICE = re.compile(r"\s*(-?\d{1,999})?\s*:\s*(-?\d{1,999})?\s*(?::\s*(-?\d{1,999})?\s*)?", re.ASCII)
_INT64 = range(-(2**63), 2**63)


def normal_positions(positions: object, where: str) -> str | list[int]:
    """`all`, `last`, a list of plain integers, or the shortest string of a slice (that of everything is
    `all`).

    Takes slice objects and any iterable of integers too. Raises HookError, its message beginning with
    `where`, for anything else, and for what can select nothing: an empty list, a slice that ends before it
    begins.
    """
    if isinstance(positions, slice):
        parts = (positions.start, positions.stop, positions.step)
        try:
            text = ":".join("" if part is None else str(operator.index(part)) for part in parts)
        except TypeError:
            raise _wrong(positions, where) from None
        return _shortest(position_slice(text), where)
    if isinstance(positions, str):
        if positions in ("all", "last"):
            return positions
        if _SLICE.fullmatch(positions) is None:
            raise _wrong(positions, where)
        return _shortest(position_slice(positions), where)
    if isinstance(positions, (Mapping, bytes, bytearray)) or not isinstance(positions, Iterable):
        raise _wrong(positions, where)
    given = list(positions)
    try:
        indices = [operator.index(position) for position in given]
    except TypeError:
        raise _wrong(given, where) from None
    if any(isinstance(position, bool) for position in given):
        raise _wrong(given, where)
    if not indices:
        raise HookError(f"{where}: positions is an empty list and selects nothing")
    if len(set(indices)) < len(indices):
        raise HookError(f"{where}: positions names a position twice")
    if not all(index in _INT64 for index in indices):
        raise HookError(f"{where}: positions holds a number beyond 64 bits")
    return indices


def position_slice(positions: str) -> slice:
    """The slice that a string of `normal_positions` means: `"2:"` is `slice(2, None, None)`; not for
    `last`."""
    match = _SLICE.fullmatch(":" if positions == "all" else positions)
    if match is None:
        raise _wrong(positions, "hook")
    start, stop, step = (None if part is None else int(part) for part in match.groups())
    return slice(start, stop, step)


def _shortest(chosen: slice, where: str) -> str:
    start, stop, step = chosen.start, chosen.stop, chosen.step
    if not all(number is None or number in _INT64 for number in (start, stop, step)):
        raise HookError(f"{where}: positions holds a number beyond 64 bits")
    if step is not None and step < 1:
        raise HookError(f"{where}: the slice of positions has the step {step}; it must be at least 1")
    low = start or 0
    if stop is not None and low >= stop and (low < 0) == (stop < 0):
        raise HookError(f"{where}: the slice of positions ends before it begins and selects nothing")
    start = start or None  # 0 says nothing
    if start is None and stop is None and step in (None, 1):
        return "all"
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    return text if step in (None, 1) else f"{text}:{step}"


def _wrong(positions: object, where: str) -> HookError:
    forms = '"all", "last", a list of positions, or a slice such as "2:", ":-1" or "::2"'
    return HookError(f"{where}: positions {positions!r} is none of {forms}")
