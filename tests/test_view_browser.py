"""The attention page in a real Chromium: what is seen is what the run holds, and what a run says is only text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import numpy as np
import pytest
from chromium import Browser
from neuroscope_fast.view import serve
from view_in_browser import (
    colours_on,
    expected_colours,
    finish,
    head_button,
    launch,
    needs_chromium,
    open_file,
    pointed,
    shown,
    two_layers,
)
from view_runs import HOSTILE, MemoryRun, causal

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with launch(tmp_path_factory.mktemp("profile")) as found:
        yield found


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


def test_tokens_of_another_sequence_are_numbered(browser: Browser, tmp_path: Path) -> None:
    made = MemoryRun().add("e", causal(1, 3)[None], layer="encoder.block.0").say(["a", "b", "c"])
    page = open_file(browser, made.add("d", causal(1, 5)[None], layer="decoder.block.0").run(), tmp_path)
    assert page.evaluate("text.tokens.map(token => token.textContent)") == ["a", "b", "c"]
    page.click_on(head_button(1, 0))
    page.wait("part.title.textContent === 'd, head 0'")
    assert page.evaluate("text.tokens.map(token => token.textContent)") == ["0", "1", "2", "3", "4"]
    assert "whose tokens the run does not name" in page.evaluate("part.note.textContent")
    finish(page)
