"""Patterns over module paths: `*` for one part of a path, `{2,10}` for alternatives, `{0..11}` for a range.

    model.layers.*.mlp              every layer's MLP
    model.layers.{2,10}.self_attn   two layers
    transformer.h.{0..5,11}         a range and a single layer
    {encoder,decoder}.block.*       both stacks of an encoder-decoder model

A `*` stands for one or more characters without a dot, and a range for all its numbers, both ends among them.
Whatever stands between braces was asked for by name: `LayerPattern.unmatched` says which alternatives matched
nothing, so that no layer is lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from .errors import HookError

MAX_ALTERNATIVES = 4096
"""More alternatives than this in a layer name is a mistyped range."""

MAX_WILDCARDS = 4
"""Between two dots. How many ways there are to share a part of a path among them grows with the power of their number:
a name with twenty would keep the matching busy for hours.
"""

_LONGEST_NUMBER = 18  # digits
_RANGE = re.compile(r"(\d+)\s*\.\.\s*(\d+)")
_TOKEN = re.compile(r"\*|\{[^{}]*\}|[{}]|[^*{}]+")


class LayerPattern:
    """A compiled layer name. `literal` is True where it holds neither `*` nor braces.

    Raises HookError for braces that do not pair, empty alternatives and ranges that run backwards.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.alternatives: list[tuple[str, ...] | None] = []
        """For each wildcard in turn: what stands between its braces, or None for a `*`."""
        expression = ""
        in_part = 0
        for token in _TOKEN.findall(text):
            in_part = in_part + 1 if token == "*" or token.startswith("{") else 0 if "." in token else in_part
            if in_part > MAX_WILDCARDS:
                raise HookError(f"layer name {text!r}: more than {MAX_WILDCARDS} wildcards between two dots")
            if token == "*":
                self.alternatives.append(None)
                expression += r"([^.]+)"
            elif token in ("{", "}"):
                raise HookError(f"layer name {text!r}: its braces do not pair; write alternatives as {{2,10}}")
            elif token.startswith("{"):
                choices = tuple(_choices(token[1:-1], text))
                if sum(len(each or ()) for each in self.alternatives) + len(choices) > MAX_ALTERNATIVES:
                    raise _too_many(text)
                self.alternatives.append(choices)
                expression += "(" + "|".join(re.escape(choice) for choice in choices) + ")"
            else:
                expression += re.escape(token)
        self.literal = not self.alternatives
        self._expression = re.compile(expression)

    def expand(self, names: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Each of `names` that matches, in their order, with the text that stood for each wildcard."""
        if self.literal:
            return [(self.text, ())] if self.text in names else []
        found = ((name, self._expression.fullmatch(name)) for name in names)
        return [(name, match.groups()) for name, match in found if match is not None]

    def unmatched(self, matches: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
        """The alternatives between braces that none of `matches`, as `expand` gives them, used."""
        parts = [matched for _, matched in matches]
        missing: list[str] = []
        for position, choices in enumerate(self.alternatives):
            seen = {matched[position] for matched in parts}
            missing += [choice for choice in choices or () if choice not in seen]
        return missing


def expand_pattern(layer_name: str, names: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Those of `names` that `layer_name` matches, each with the parts that its wildcards matched.

    `expand_pattern("h.*.mlp", ["h.0", "h.0.mlp", "h.1.mlp"])` is `[("h.0.mlp", ("0",)), ("h.1.mlp",
    ("1",))]`. A name without wildcards gives itself, with no parts, if it is there. Raises HookError for a
    malformed pattern.
    """
    return LayerPattern(layer_name).expand(names)


def _choices(inside: str, text: str) -> Iterable[str]:
    choices: dict[str, None] = {}  # a dict and not a set: the order is the user's
    left = MAX_ALTERNATIVES
    for part in (piece.strip() for piece in inside.split(",")):
        if not part:
            raise HookError(f"layer name {text!r}: an alternative between its braces is empty")
        span = _RANGE.fullmatch(part)
        left -= 1
        if span is None:
            choices[part] = None
            continue
        if max(len(span[1]), len(span[2])) > _LONGEST_NUMBER:
            raise HookError(f"layer name {text!r}: the range {part!r} names layers that no model has")
        first, last = int(span[1]), int(span[2])
        if first > last:
            raise HookError(f"layer name {text!r}: the range {part!r} runs backwards; write {{{last}..{first}}}")
        if last - first >= MAX_ALTERNATIVES:
            raise HookError(f"layer name {text!r}: the range {part!r} spans more than {MAX_ALTERNATIVES} layers")
        left -= last - first
        if left < 0:
            raise _too_many(text)
        choices.update((str(number), None) for number in range(first, last + 1))
    if left < 0:
        raise _too_many(text)
    return choices


def _too_many(text: str) -> HookError:
    return HookError(f"layer name {text!r}: it has more than {MAX_ALTERNATIVES} alternatives")
