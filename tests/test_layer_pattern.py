"""Patterns over layer names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.layer_pattern import LayerPattern
from neuroscope_fast.spec import (
    expand_pattern,
)

NAMES = ["h", "h.0", "h.0.mlp", "h.1", "h.1.mlp", "h.2", "h.2.mlp", "h.10", "h.10.mlp", "ln.0", "hx0"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("h.*", [("h.0", ("0",)), ("h.1", ("1",)), ("h.2", ("2",)), ("h.10", ("10",))]),
        ("*.0", [("h.0", ("h",)), ("ln.0", ("ln",))]),
        ("*.*.mlp", [(f"h.{i}.mlp", ("h", str(i))) for i in (0, 1, 2, 10)]),
        ("h.{10,2}", [("h.2", ("2",)), ("h.10", ("10",))]),
        ("h.{0..2}.mlp", [(f"h.{i}.mlp", (str(i),)) for i in (0, 1, 2)]),
        ("h.{0..1, 10}", [("h.0", ("0",)), ("h.1", ("1",)), ("h.10", ("10",))]),
        ("{h,ln}.0", [("h.0", ("h",)), ("ln.0", ("ln",))]),
        ("h.{1,1..2}", [("h.1", ("1",)), ("h.2", ("2",))]),
        ("h.1", [("h.1", ())]),
        ("h.1.", []),
        ("h.3", []),
        ("h.{0.mlp,1.mlp}", [("h.0.mlp", ("0.mlp",)), ("h.1.mlp", ("1.mlp",))]),
        ("h.1*", [("h.10", ("0",))]),
    ],
)
def test_expand_pattern(pattern: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert expand_pattern(pattern, NAMES) == expected


def test_unmatched_alternatives() -> None:
    pattern = LayerPattern("{h,g}.{1..3,10}.*")
    assert pattern.unmatched(pattern.expand(NAMES)) == ["g", "3"]


parts = st.text(st.characters(codec="utf-8", exclude_characters=".*{},", categories=("L", "N", "P", "S")), min_size=1)
paths = st.lists(parts, min_size=1, max_size=5).map(".".join)


@given(paths, st.lists(paths))
def test_a_literal_name_matches_itself_alone(name: str, others: list[str]) -> None:
    assert expand_pattern(name, [*others, name]) == [(name, ())]
    assert expand_pattern(name, [other for other in others if other != name]) == []


@given(st.data())
def test_a_star_matches_exactly_one_part(data: st.DataObject) -> None:
    name = data.draw(paths).split(".")
    places = data.draw(st.sets(st.integers(0, len(name) - 1), min_size=1))
    pattern = ".".join("*" if place in places else part for place, part in enumerate(name))
    whole = ".".join(name)
    assert expand_pattern(pattern, [whole]) == [(whole, tuple(name[place] for place in sorted(places)))]
    assert expand_pattern(pattern, [f"{whole}.x", f"x.{whole}", ""]) == []


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_a_range_holds_both_its_ends(first: int, last: int, layers: int) -> None:
    first, last = sorted((first, last))
    names = [f"layers.{index}" for index in range(layers)]
    matched = expand_pattern(f"layers.{{{first}..{last}}}", names)
    assert [name for name, _ in matched] == names[first : last + 1]
