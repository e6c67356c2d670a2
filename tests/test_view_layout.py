"""The attention page stays readable from 1 to 500 tokens, in light and dark: measured in a real Chromium."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Browser, Page
from view_in_browser import CIVIDIS, finish, launch, needs_chromium, open_file, pointed, two_layers, words
from view_runs import MemoryRun, causal

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with launch(tmp_path_factory.mktemp("profile")) as found:
        yield found


def overlapping(page: Page, axis: str) -> list[Any]:
    """Labels of an axis that touch each other, or that leave the picture."""
    boxes = page.evaluate(
        f"[...document.querySelectorAll('.{axis} .label')].map(l => {{ const b = l.getBoundingClientRect();"
        " return [b.left, b.top, b.right, b.bottom, l.textContent] })"
    )
    frame = page.evaluate(
        "(({left, right}) => [left, right])(document.querySelector('.frame').getBoundingClientRect())"
    )
    assert len(boxes) > 1
    assert all(box[0] >= frame[0] and box[2] <= frame[1] for box in boxes), (axis, frame, boxes)
    return [
        (one[4], other[4])
        for one, other in itertools.combinations(boxes, 2)
        if min(one[2], other[2]) - max(one[0], other[0]) > 0.5 and min(one[3], other[3]) - max(one[1], other[1]) > 0.5
    ]


@pytest.mark.parametrize("tokens", [1, 5, 30, 500])
@pytest.mark.parametrize("width", [700, 1400])
def test_labels_never_cover_each_other(browser: Browser, tmp_path: Path, tokens: int, width: int) -> None:
    made = MemoryRun().add("a", causal(1, tokens)[None]).say(words(tokens))
    page = open_file(browser, made.run(), tmp_path, width=width)
    if tokens == 1:
        assert page.evaluate("document.querySelectorAll('.axis-top .label').length") == 1
        return finish(page)
    assert page.evaluate("map.scroller.scrollWidth <= map.scroller.clientWidth + 1")  # all of it is seen
    for axis in ("axis-top", "axis-side"):
        assert overlapping(page, axis) == []
        labels = page.evaluate(f"document.querySelectorAll('.{axis} .label').length")
        assert labels == tokens if tokens <= 30 else labels >= 10
    pointed(page, tokens // 2, tokens // 3)
    for axis in ("axis-top", "axis-side"):
        assert overlapping(page, axis) == []
        assert page.evaluate(f"document.querySelectorAll('.{axis} .label.cursor').length") == 1
    while page.evaluate("map.cell") < 14:
        page.click_on("#zoom-in")
    for axis, size in (("axis-top", "clientWidth"), ("axis-side", "clientHeight")):
        assert overlapping(page, axis) == []
        seen = page.evaluate(f"map.scroller.{size} / map.cell")
        assert abs(page.evaluate(f"document.querySelectorAll('.{axis} .label').length") - min(seen, tokens)) <= 3
    page.evaluate("map.scroller.scrollTo(1e6, 1e6)")
    page.wait(f"[...document.querySelectorAll('.axis-top .label')].some(l => l.textContent.startsWith('{tokens - 1}'))")
    page.click_on("#fit")
    page.wait("map.fit")
    return finish(page)


def test_no_bright_cell_is_lost_where_cells_are_smaller_than_pixels(browser: Browser, tmp_path: Path) -> None:
    tokens = 1500
    weights = np.zeros((1, 1, tokens, tokens), np.float32)
    places = [(1499, 0), (1203, 777), (801, 400), (2, 1)]
    for row, column in places:
        weights[0, 0, row, column] = 1
    page = open_file(browser, MemoryRun().add("a", weights).run(), tmp_path)
    for row, column in places:
        colour = page.evaluate(
            f"[...map.canvas.getContext('2d').getImageData(Math.floor({column + 0.5} * map.cell),"
            f" Math.floor({row + 0.5} * map.cell), 1, 1).data]"
        )
        assert colour == [*CIVIDIS[255].tolist(), 255], (row, column)
    finish(page)


def luminance(colour: list[float]) -> float:
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_in_light_and_dark(browser: Browser, tmp_path: Path, dark: bool) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 between letters and ground."""
    page = open_file(browser, two_layers()[0], tmp_path, dark=dark)
    names = ("page", "panel", "ink", "faint", "warn", "mark", "mark-ink")
    found = {
        name: page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        for name in names
    }
    light = {name: luminance([int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]) for name, text in found.items()}
    assert (light["page"] < 0.5) is dark
    grounds = [(ink, ground) for ink in ("ink", "faint", "warn") for ground in ("page", "panel")]
    for ink, ground in [*grounds, ("mark-ink", "mark")]:
        high, low = sorted((light[ink], light[ground]), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    finish(page)


def test_what_is_pointed_at_does_not_move_as_it_is_told(browser: Browser, tmp_path: Path) -> None:
    made = MemoryRun().add("a", causal(1, 12)[None]).say([f" antidisestablishmentarianism{at}" for at in range(12)])
    page = open_file(browser, made.run(), tmp_path, width=700)
    before = page.box(".scroller")
    pointed(page, 9, 8)
    assert page.evaluate("part.value.textContent") != ""
    assert page.box(".scroller") == before
    finish(page)
