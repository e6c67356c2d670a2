"""One line for many shapes or dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def shape_summary(shapes: Iterable[Sequence[int]]) -> str:
    """One line for the shapes of a hook's records: `[1, 7, 64] (first), [1, 1, 64] × 29`, or just `[1, 7,
    64]`.
    """
    counts: dict[str, int] = {}
    for shape in shapes:
        text = "[" + ", ".join(map(str, shape)) + "]"
        counts[text] = counts.get(text, 0) + 1
    return summarise(counts)


def summarise(counts: Mapping[str, int], most: int = 4) -> str:
    """Values in the order of their first appearance, with how often each was there; `none` where there are
    none.
    """
    if len(counts) < 2:
        return next(iter(counts), "none")
    items = list(counts.items())
    parts = [f"{text} × {count}" for text, count in items]
    if len(items) == 2 and items[0][1] == 1:
        parts[0] = f"{items[0][0]} (first)"
    if len(parts) > most:
        rest = sum(count for _, count in items[most - 1 :])
        parts[most - 1 :] = [f"{len(items) - most + 1} other shapes × {rest}"]
    return ", ".join(parts)
