"""The attention page in a real Chromium: what is seen is what the run holds, and what a run says is only text."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import neuroscope_fast as nsf
import numpy as np
import pytest
from attention_runs import HOSTILE, MemoryRun, causal
from chromium import Browser, Page
from matplotlib import colormaps
from neuroscope_fast.reader import Run
from neuroscope_fast.view import attention_page, serve

CHROMIUM = chromium.find()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

CIVIDIS = np.rint(colormaps["cividis"](np.arange(256))[:, :3] * 255).astype(int)
WORDS = ["<|bos|>", "The", " cat", " saw", "\n", " the", " dog", ".", "\t", " It"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as found:
        yield found


def words(count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(WORDS), count))


def two_layers(tokens: int = 7, heads: int = 3) -> tuple[Run, list[np.ndarray[Any, Any]]]:
    patterns = [causal(heads, tokens, seed) for seed in (0, 1)]
    made = MemoryRun()
    for layer, pattern in enumerate(patterns):
        made.add(f"layer{layer}", pattern[None], layer=f"model.layers.{layer}.self_attn")
    return made.say(words(tokens)).run(), patterns


def open_file(browser: Browser, run: Run, folder: Path, **options: Any) -> Page:
    path = folder / "page.html"
    path.write_text(attention_page(run))
    page = browser.open(path.as_uri(), offline=True, **options)
    page.wait("shown.matrix !== null || !part.error.hidden")
    return page


def finish(page: Page) -> None:
    """Nothing was said on the console."""
    assert page.complaints() == []
    assert page.of("Page.javascriptDialogOpening") == []
    page.close()


def head_button(layer: int, head: int) -> str:
    return f":nth-child({layer + 1} of .layer) [role=gridcell]:nth-of-type({head + 2}) button"


def colours_on(page: Page, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """The colour [rows, columns, RGBA] in the middle of each cell of the heat map."""
    script = """(() => {
      const context = map.canvas.getContext("2d");
      const found = [];
      for (let row = 0; row < ROWS; row++) for (let column = 0; column < COLUMNS; column++) {
        const [x, y] = [(column + 0.5) * map.cell, (row + 0.5) * map.cell];
        found.push(...context.getImageData(Math.floor(x), Math.floor(y), 1, 1).data);
      }
      return found;
    })()"""
    found = page.evaluate(script.replace("ROWS", str(rows)).replace("COLUMNS", str(columns)))
    return np.array(found).reshape(rows, columns, 4)


def expected_colours(weights: np.ndarray[Any, Any], scale: str, *, masked: bool = False) -> np.ndarray[Any, Any]:
    """The colours of a causal pattern on a scale up to its largest value."""
    kept = weights.astype(np.float64)
    if masked:
        kept[:, 0] = 0
    share = kept / kept.max()
    with np.errstate(divide="ignore"):
        place = {"linear": share, "root": np.sqrt(share), "log": 1 + np.log10(share) / 4}[scale]
    level = np.floor(np.clip(place, 0, 1) * 255 + 0.5).astype(int)
    found = np.concatenate([CIVIDIS[level], np.full((*weights.shape, 1), 255)], axis=-1)
    found[np.triu(np.ones(weights.shape, bool), 1)] = 0
    if masked:
        found[:, 0] = 0
    return found


def pointed(page: Page, row: int, column: int) -> None:
    """The mouse in the middle of a cell."""
    box = page.box(".scroller")
    cell = page.evaluate("map.cell")
    page.move(box["x"] + (column + 0.5) * cell, box["y"] + (row + 0.5) * cell)


def shown(page: Page) -> dict[str, str]:
    names = ["read-row", "read-column", "value"]
    found: dict[str, str] = page.evaluate(f"Object.fromEntries({json.dumps(names)}.map(n => [n, part[n].textContent]))")
    return found


def test_a_file_opens_without_a_network_and_shows_all_heads(browser: Browser, tmp_path: Path) -> None:
    run, _ = two_layers()
    page = open_file(browser, run, tmp_path)
    assert page.evaluate("document.title") == "Attention: run in memory"
    buttons = page.evaluate("[...document.querySelectorAll('button.head')].map(b => b.getAttribute('aria-label'))")
    assert buttons == [f"layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1, 2)]
    page.wait("[...document.querySelectorAll('.head canvas')].every(c => c.width === 7 && c.height === 7)")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.head canvas')].map(c => [...c.getContext('2d').getImageData(0, 0, 7, 7).data])"
    )
    assert len({tuple(picture) for picture in drawn}) == 6
    facts = page.evaluate("part.facts.textContent")
    assert facts == "model a model (M) · float32 · captured: layers 0-1"
    assert page.requests() == [(tmp_path / "page.html").as_uri()]
    finish(page)


def test_a_click_changes_the_head_and_the_canvas_shows_its_numbers(browser: Browser, tmp_path: Path) -> None:
    run, patterns = two_layers()
    page = open_file(browser, run, tmp_path)
    np.testing.assert_array_equal(colours_on(page, 7, 7), expected_colours(patterns[0][0], "root"))
    for layer, head in ((1, 2), (0, 1)):
        page.click_on(head_button(layer, head))
        page.wait(f"part.title.textContent === 'layer {layer}, head {head}'")
        np.testing.assert_array_equal(colours_on(page, 7, 7), expected_colours(patterns[layer][head], "root"))
    pressed = page.evaluate("[...document.querySelectorAll('[aria-pressed=true].head')].map(b => b.ariaLabel)")
    assert pressed == ["layer 0, head 1"]
    finish(page)


def test_scales_and_the_hidden_first_token(browser: Browser, tmp_path: Path) -> None:
    run, patterns = two_layers()
    page = open_file(browser, run, tmp_path)
    for scale in ("linear", "log"):
        page.evaluate(f"part.scale.value = '{scale}'; part.scale.dispatchEvent(new Event('change'))")
        np.testing.assert_array_equal(colours_on(page, 7, 7), expected_colours(patterns[0][0], scale))
    page.click_on("#mask")
    np.testing.assert_array_equal(colours_on(page, 7, 7), expected_colours(patterns[0][0], "log", masked=True))
    assert float(page.evaluate("part.high.textContent")) == pytest.approx(patterns[0][0][:, 1:].max(), rel=5e-3)
    page.click_on("#stretch")
    assert page.evaluate("part.high.textContent") == "1"
    assert page.evaluate("part.unit.textContent") == "attention weight (probability)"
    finish(page)


def test_what_is_pointed_at_is_told_exactly(browser: Browser, tmp_path: Path) -> None:
    run, patterns = two_layers()
    page = open_file(browser, run, tmp_path)
    for row, column in ((0, 0), (5, 3), (6, 6), (6, 4)):
        pointed(page, row, column)
        told = shown(page)
        assert np.float32(told["value"]) == patterns[0][0, row, column]
        assert len(told["value"]) <= len(repr(float(patterns[0][0, row, column])))
        names = ["0 <|bos|>", "1 The", "2 ·cat", "3 ·saw", "4 ↵", "5 ·the", "6 ·dog"]
        assert (told["read-row"], told["read-column"]) == (names[row], names[column])
    pointed(page, 1, 4)
    assert shown(page)["value"] == "0, the key comes after the query"
    page.move(1, 1)
    assert shown(page) == {"read-row": "", "read-column": "", "value": ""}
    finish(page)


def test_a_token_of_the_text_shades_what_it_attends_to(browser: Browser, tmp_path: Path) -> None:
    run, patterns = two_layers()
    page = open_file(browser, run, tmp_path)
    weights = patterns[0][0]
    box = page.box(".token:nth-of-type(6)")
    page.click(box["x"] + 5, box["y"] + 8)
    assert page.evaluate("document.querySelector('.token.marked').textContent") == "·the"
    shares = page.evaluate("text.tokens.map(t => Number(getComputedStyle(t).getPropertyValue('--share')))")
    expected = [math.sqrt(weight / weights.max()) for weight in weights[5, :6]] + [0]
    assert shares == pytest.approx(expected, abs=3e-3)
    box = page.box(".token:nth-of-type(3)")
    page.move(box["x"] + 5, box["y"] + 8)
    told = shown(page)
    assert (told["read-row"], told["read-column"]) == ("5 ·the", "2 ·cat")
    assert np.float32(told["value"]) == weights[5, 2]
    page.key("Escape")
    assert page.evaluate("document.querySelector('.token[aria-pressed]')") is None
    finish(page)


def test_everything_is_reached_by_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    run, patterns = two_layers()
    page = open_file(browser, run, tmp_path)
    reached = []
    for _ in range(12):
        page.key("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.classList[0]"))
    order = ["prompt", "token", "head", "scale", "stretch", "mask", "zoom-out", "zoom-in", "fit", "scroller"]
    assert reached[: len(order)] == order
    page.evaluate("document.querySelector('.head[tabindex=\"0\"]').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.key(key)
    page.wait("part.title.textContent === 'layer 1, head 1'")
    assert page.evaluate("document.activeElement.ariaLabel") == "layer 1, head 1"
    page.evaluate("map.scroller.focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):  # the first goes to the first cell
        page.key(key)
    assert np.float32(shown(page)["value"]) == patterns[1][1, 2, 1]
    page.key("Enter")
    assert page.evaluate("pointer.pinned") == 2
    page.key("Escape")
    assert page.evaluate("pointer.pinned") is None
    before = page.evaluate("map.cell")
    page.key("-")
    assert page.evaluate("map.cell") < before
    page.evaluate("document.querySelector('.token[tabindex=\"0\"]').focus()")
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.key(key)
    assert page.evaluate("[document.activeElement.textContent, pointer.pinned]") == ["·cat", 2]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    finish(page)


def test_what_a_run_says_is_text(browser: Browser, tmp_path: Path) -> None:
    made = (
        MemoryRun().add(HOSTILE, causal(1, 3)[None], layer=f"model.{HOSTILE}").add("b", causal(1, 3)[None], layer="x")
    )
    page = open_file(browser, made.say([HOSTILE, "</script>", "<!--<script>"]).run(HOSTILE), tmp_path)
    assert page.evaluate("document.querySelectorAll('img, svg, iframe').length") == 0
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 1
    seen = HOSTILE.replace("\u202e", "\\u{202e}").replace(" ", "·")
    texts = page.evaluate("text.tokens.map(token => token.textContent)")
    assert texts == [seen, "</script>", "<!--<script>"]
    pointed(page, 2, 0)
    assert "<script>alert(1)</script>" in shown(page)["read-column"]
    assert "<script>" in page.evaluate("document.querySelector('.layer .layer-name').textContent")
    assert "<script>alert(1)" in page.evaluate("part.facts.textContent + part.prompt.textContent")
    finish(page)


def test_no_other_script_runs(browser: Browser, tmp_path: Path) -> None:
    page = open_file(browser, two_layers()[0], tmp_path)
    page.evaluate(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        " document.body.append(script) })()"
    )
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints())
    page.close()


def test_numbers_that_are_none_are_told(browser: Browser, tmp_path: Path) -> None:
    weights = causal(1, 4)
    weights[0, 3, 1], weights[0, 2, 0] = np.nan, np.inf
    page = open_file(browser, MemoryRun().add("a", weights[None]).run(), tmp_path)
    assert page.evaluate("part.broken.textContent") == "■ 2 values are NaN or infinite"
    colours = colours_on(page, 4, 4)
    assert colours[3, 1].tolist() == colours[2, 0].tolist() == [0xD5, 0x5E, 0, 255]
    pointed(page, 3, 1)
    assert shown(page) == {"read-row": "3", "read-column": "1", "value": "NaN"}
    pointed(page, 2, 0)
    assert shown(page)["value"] == "∞"
    finish(page)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_numbers_are_read_exactly(browser: Browser, tmp_path: Path, dtype: str) -> None:
    import torch

    stored = torch.from_numpy(causal(2, 9) ** 4).to(getattr(torch, dtype))  # small ones too: subnormal in float16
    page = open_file(browser, MemoryRun().add("a", stored[None]).run(), tmp_path)
    page.click_on(head_button(0, 1))
    page.wait("part.title.textContent === 'layer 0, head 1'")
    assert page.evaluate("[...shown.matrix.values]") == stored[1].float().flatten().tolist()
    finish(page)


def test_reductions_show_what_they_carry(browser: Browser, tmp_path: Path) -> None:
    entropy = np.array([[[0, 0.5, 1], [0, 0.25, 0.125]]], np.float32)
    top = np.array([[[[1, 0], [0.75, 0.25], [0.5, 0.375]]]], np.float32)
    made = MemoryRun().add("mean", causal(2, 3).mean(0)[None], reduction="mean")
    made.add("entropy", entropy, reduction="entropy", heads=[1, 4])
    keys = np.array([[[[0, 1], [1, 0], [0, 2]]]], np.int32)
    made.add("top", top, reduction="top_k", indices=keys).say(["a", "b", "c"])
    page = open_file(browser, made.run(), tmp_path)
    kinds = page.evaluate("[...part.group.options].map(o => o.textContent)")
    assert kinds == ["mean over heads", "largest weights of each query", "entropy of each query's pattern"]
    np.testing.assert_array_equal(colours_on(page, 3, 3), expected_colours(causal(2, 3).mean(0), "root"))
    page.evaluate("part.group.selectedIndex = 1; part.group.dispatchEvent(new Event('change'))")
    page.wait("part.title.textContent === 'layer 0, head 0'")
    pointed(page, 2, 2)
    assert shown(page)["value"] == "0.375"
    pointed(page, 2, 1)
    assert shown(page)["value"] == "not stored, outside the largest weights of its query"
    assert colours_on(page, 3, 3)[2].tolist()[1] == [0, 0, 0, 0]
    page.evaluate("part.group.selectedIndex = 2; part.group.dispatchEvent(new Event('change'))")
    page.wait("shown.matrix.perHead")
    pointed(page, 1, 2)
    assert shown(page) == {"read-row": "head 4", "read-column": "2 c", "value": "0.125"}
    assert page.evaluate("part.unit.textContent") == "entropy (nats)"
    finish(page)


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


def test_the_server_gives_what_is_looked_at(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hooks: list[Any] = ["model.layers.{0..3}.self_attn:attention_pattern"]
    hooks += [
        {"layer_name": "model.layers.0", "component": "attention_pattern", "reduction": "entropy", "hook_id": "e"}
    ]
    nsf.generate("demo", ["Recursion is", "The <b>"], hooks, folder, max_new_tokens=4)
    run = nsf.open(folder)
    with serve(run) as server:
        page = browser.open(server.url)
        page.wait("shown.matrix !== null")
        page.wait("grid.lines.every(line => line.found)")
        asked = [url for url in page.requests() if "/pattern?" in url]
        assert len(asked) == 1
        page.click_on(head_button(2, 3))
        page.wait("part.title.textContent === 'layer 2, head 3'")
        asked = [url for url in page.requests() if "/pattern?" in url]
        assert len(asked) == 2
        assert asked[1].endswith("hook=model.layers.2.self_attn_attention_pattern&prompt=0&row=0&head=3")
        pointed(page, 2, 1)
        stored = run["model.layers.2.self_attn_attention_pattern"].where(prompt=0)[0]
        assert np.float32(shown(page)["value"]) == stored[0, 3, 2, 1].numpy()
        page.evaluate("part.prompt.selectedIndex = 1; part.prompt.dispatchEvent(new Event('change'))")
        page.wait("chosen.prompt === 1 && shown.tokens.texts.some(text => text.includes('<'))")
        page.evaluate("part.group.selectedIndex = 1; part.group.dispatchEvent(new Event('change'))")
        page.wait("shown.matrix.perHead")
        assert all(url.startswith(server.url) for url in page.requests())
        assert page.complaints() == []
    page.evaluate("part.group.selectedIndex = 0; part.group.dispatchEvent(new Event('change'))")
    page.wait("!part.error.hidden")
    assert page.evaluate("part.error.textContent") == "the server does not answer: start `neuroscope-fast view` again"
    page.close()
