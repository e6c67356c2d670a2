"""The module paths that a user who named one which is not there may have meant.

Architectures differ in what they call the same thing, so paths are compared by what their parts mean: a user
who writes `model.layers.3.self_attn` for GPT-2 meant `transformer.h.3.attn`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from .module_tree import ATTENTION_NAMES, MLP_NAMES

_STACK_NAMES = frozenset(
    {"layers", "layer", "h", "blocks", "block", "decoder_layers", "encoder_layers", "transformer_blocks"}
)
_INDEX = re.compile(r"\d+|\*|\{[^}]*\}")


def nearest_paths(wanted: str, paths: Collection[str], limit: int = 3) -> list[str]:
    """Up to `limit` of `paths`, the likeliest first; with wildcards for indices where `wanted` has some."""
    templates: dict[str, None] = dict.fromkeys(_template(path) for path in paths if path)
    target = _template(wanted)
    meant = _meaning(target)
    scores: list[tuple[float, str]] = []
    for template in templates:
        meaning = _meaning(template)
        alike = max(_ratio(template, target), _ratio(".".join(meaning), ".".join(meant)))
        scores.append((_common_end(meaning, meant) + 2 * alike, template))
    best = max((score for score, _ in scores), default=0.0)
    scores = [(score, template) for score, template in scores if score > 1 and score > 0.6 * best]
    scores.sort(key=lambda pair: -pair[0])
    return [_fill(template, wanted, paths) for _, template in scores[:limit]]


def last_index(wanted: str, paths: Collection[str]) -> tuple[str, int] | None:
    """(`model.layers`, 31) where `wanted` names an item behind the last of a list, else None."""
    parts = wanted.split(".")
    for position, part in enumerate(parts):
        before = ".".join(parts[:position])
        if part.isdecimal() and before in paths and f"{before}.{part}" not in paths:
            prefix = f"{before}."
            there = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
            numbers = [int(name) for name in there if name.isdecimal()]
            return (before, max(numbers)) if numbers and int(part) > max(numbers) else None
    return None


def _template(path: str) -> str:
    # a wildcard between dots stands where an index does; an index is a whole part
    return ".".join("#" if _INDEX.fullmatch(part) else part for part in _split(path))


def _split(path: str) -> list[str]:
    """At the dots, save those between braces."""
    return re.findall(r"(?:\{[^}]*\}|[^.{])+", path)


def _meaning(template: str) -> list[str]:
    families = ((ATTENTION_NAMES, "attention"), (MLP_NAMES, "mlp"), (_STACK_NAMES, "layers"))
    parts = template.split(".")
    return [next((family for names, family in families if part.lower() in names), part) for part in parts]


def _common_end(first: list[str], second: list[str]) -> int:
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count


def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def _fill(template: str, wanted: str, paths: Collection[str]) -> str:
    """`template` with the indices of `wanted`, or with the nearest that there are."""
    indices = [part for part in _split(wanted) if _INDEX.fullmatch(part)]
    if any(not index.isdecimal() for index in indices) or not indices:
        return template.replace("#", "*")
    filled = template
    for index in indices:
        filled = filled.replace("#", index, 1)
    if filled in paths:
        return filled
    expression = re.compile(re.escape(template).replace(r"\#", "([0-9]+)").replace("#", "([0-9]+)"))
    numbers = [int(index) for index in indices]

    def distance(path: str) -> int:
        match = expression.fullmatch(path)
        assert match is not None
        return sum(abs(int(have) - want) for have, want in zip(match.groups(), numbers, strict=False))

    return min(
        (path for path in paths if expression.fullmatch(path)),
        key=distance,
        default=template.replace("#", "*"),
    )
