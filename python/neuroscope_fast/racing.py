"""Contestants that are checked before they are timed, in rounds that alternate.

A contestant's figure is the median of many short rounds with the 20th and 80th percentile. In each round all
contestants run once, in an order that turns from round to round; a ratio is taken within a round, and its median and
percentiles are of those. A contestant whose check fails gets no figure. Needs neither torch nor NumPy.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

Work = Callable[[], float]


class CheckError(Exception):
    """A contestant does not do what it would be timed for; the text says what is wrong."""


@dataclass
class Contestant:
    """One way of doing what is asked."""

    name: str
    work: Work
    """One short round: does the work and returns the seconds that it took, opening and cleaning up left out."""
    check: Callable[[], None]
    """Raises CheckError unless the contestant's work is right."""
    note: str = ""
    """What a reader must know to judge the row: that it hands over aliases, say."""
    less: str | None = None
    """The contestant whose work is in this one's too and is not what is asked: its own model without a capture."""
    brings: int = 1
    """How many things (tensors, say) one round brings, where a section compares the cost of one."""


@dataclass
class Row:
    """A contestant's figures, or why there are none."""

    name: str
    note: str = ""
    refused: str | None = None
    rounds: list[float] = field(default_factory=list, repr=False)
    less: str | None = None
    brings: int = 1

    def summary(self, scale: float, digits: int = 4) -> dict[str, Any]:
        return spread([value * scale for value in self.rounds], digits)


class Spread(Struct):
    """Median, 20th and 80th percentile of so many rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


def missing(name: str, why: str) -> Row:
    """The row of a contestant that cannot run here."""
    return Row(name, refused=why)


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds of one call."""
    start = clock()
    work()
    return clock() - start


def spread_of(values: Sequence[float], digits: int = 4) -> Spread:
    """Of one value or more, to so many significant digits."""
    low, middle, high = (round_to(percentile(values, part), digits) for part in (0.2, 0.5, 0.8))
    return Spread(middle, low, high, len(values))


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """`spread_of` as a dict."""
    found = spread_of(values, digits)
    return {name: getattr(found, name) for name in found.__struct_fields__}


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part (0 to 1) of all lies, between two of them interpolated linearly."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def round_to(value: float, digits: int) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


def race(contestants: Sequence[Contestant], *, rounds: int, warm_up: int = 1) -> list[Row]:
    """Checks every contestant, then times those that passed; one row each, in the order given."""
    rows, able = [], []
    for contestant in contestants:
        row = Row(contestant.name, contestant.note, less=contestant.less, brings=contestant.brings)
        rows.append(row)
        try:
            contestant.check()
        except CheckError as error:
            row.refused = f"not timed: {error}"
        else:
            able.append((contestant, row))
    for contestant, _ in able:
        for _ in range(warm_up):
            contestant.work()
    gc.collect()
    gc.freeze()  # models and libraries stand: searching them again before each short round takes longer than the round
    try:
        for number in range(rounds):
            turn = number // 2 % max(1, len(able))
            order = able[turn:] + able[:turn]
            for contestant, row in order if number % 2 == 0 else reversed(order):
                gc.collect()
                gc.disable()
                try:
                    row.rounds.append(contestant.work())
                finally:
                    gc.enable()
    finally:
        gc.unfreeze()
    return rows


def row_named(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def floors(rows: Sequence[Row], less: str | None = None) -> set[str]:
    """The rows that others' costs are counted from; they have no cost of their own."""
    return {name for row in rows for name in (row.less, less) if name is not None}


def costs(rows: Sequence[Row], row: Row, less: str | None = None) -> list[float]:
    """The seconds of one thing in each round, above the floor: the row's own `less`, or else the one given, if any."""
    floor = row.less or less
    off = row_named(rows, floor).rounds if floor is not None else [0.0] * len(row.rounds)
    return [(value - under) / row.brings for value, under in zip(row.rounds, off, strict=True)]


def ratios(rows: Sequence[Row], base: str, less: str | None = None) -> dict[str, dict[str, Any]]:
    """Of each row's costs to those of `base` in the same round.

    Rounds in which the base costs nothing, by noise, are left out.
    """
    bottom = row_named(rows, base)
    found = {}
    for row in rows:
        if row.refused is not None or not bottom.rounds or row is bottom or row.name in floors(rows, less):
            continue
        pairs = zip(costs(rows, row, less), costs(rows, bottom, less), strict=True)
        if quotients := [value / one for value, one in pairs if one > 0]:
            found[row.name] = spread(quotients)
    return found


def rises(rows: Sequence[Row], less: str | None, scale: float) -> dict[str, dict[str, Any]]:
    """Each row's costs, times `scale`."""
    return {
        row.name: spread([value * scale for value in costs(rows, row, less)])
        for row in rows
        if row.refused is None and row.name not in floors(rows, less)
    }
