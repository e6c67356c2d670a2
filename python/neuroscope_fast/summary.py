"""One line for many shapes or dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_LEAST_GROWTH = 3
"""So many shapes in a row are told as one that grows."""


def shape_summary(shapes: Iterable[Sequence[int]]) -> str:
    """One line for the shapes of a hook's records: `[1, 7, 64] (first), [1, 1, 64] × 29`, or just `[1, 7, 64]`.

    Shapes that grow by one along one axis, as patterns do with a cache, are one: `[1, 4, 1, 8 to 36] × 29`.
    """
    counts: dict[tuple[int, ...], int] = {}
    for shape in map(tuple, shapes):
        counts[shape] = counts.get(shape, 0) + 1
    return summarise_shapes(counts)


def summarise_shapes(counts: Mapping[tuple[int, ...], int]) -> str:
    """The same of shapes in the order of their first appearance, with how often each was there."""
    told: dict[str, int] = {}
    items = list(counts)
    start = 0
    while start < len(items):
        end, axis = start + 1, None
        while end < len(items):
            grown = _grown_axis(items[end - 1], items[end])
            if grown is None or axis not in (None, grown):
                break
            end, axis = end + 1, grown
        if end - start < _LEAST_GROWTH:
            end, axis = start + 1, None
        text = _text(items[start], items[end - 1], axis)
        told[text] = sum(counts[shape] for shape in items[start:end])
        start = end
    return summarise(told)


def _grown_axis(shape: tuple[int, ...], then: tuple[int, ...]) -> int | None:
    """The only axis on which `then` differs from `shape`, if it is longer by one there."""
    if len(shape) != len(then):
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(shape, then, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 and then[differing[0]] - shape[differing[0]] == 1 else None


def _text(first: tuple[int, ...], last: tuple[int, ...], axis: int | None) -> str:
    sizes = [str(size) if number != axis else f"{size} to {last[number]}" for number, size in enumerate(first)]
    return "[" + ", ".join(sizes) + "]"


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
