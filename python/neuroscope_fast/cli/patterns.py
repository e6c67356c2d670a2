"""From layer names back to the patterns that match them: `model.layers.{0..11}.mlp` for twelve names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def compress(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Patterns for names that differ only in whole numbers between dots, each with the names it matches.

    Together the patterns match each name once, and nothing else: experts that not every layer has make several.
    """
    parts = [name.split(".") for name in names]
    spots = [spot for spot, part in enumerate(parts[0]) if part.isdigit()]
    numbers = [tuple(int(part[spot]) for spot in spots) for part in parts]
    named = dict(zip(numbers, names, strict=True))
    patterns = []
    for box in _boxes(set(numbers)):
        template = list(parts[0])
        for spot, values in zip(spots, box, strict=True):
            template[spot] = number_set(values)
        patterns.append((".".join(template), [named[point] for point in numbers if _inside(point, box)]))
    return patterns


def number_set(values: Iterable[int]) -> str:
    """`7`, `{0..11}`, `{0..3,7}`"""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    if len(runs) == 1 and runs[0][0] == runs[0][1]:
        return texts[0]
    return "{" + ",".join(texts) + "}"


def _boxes(points: set[tuple[int, ...]]) -> list[list[set[int]]]:
    """Points of equal length as a few products of sets: first numbers go together if their rests are the same."""
    if points == {()}:
        return [[]]
    rests: dict[int, set[tuple[int, ...]]] = {}
    for first, *rest in points:
        rests.setdefault(first, set()).add(tuple(rest))
    firsts: dict[frozenset[tuple[int, ...]], set[int]] = {}
    for first in sorted(rests):
        firsts.setdefault(frozenset(rests[first]), set()).add(first)
    return [[chosen, *box] for rest, chosen in firsts.items() for box in _boxes(set(rest))]


def _inside(point: tuple[int, ...], box: list[set[int]]) -> bool:
    return all(number in values for number, values in zip(point, box, strict=True))
