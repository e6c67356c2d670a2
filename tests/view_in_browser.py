"""The attention page of a run in a real Chromium, and what is read off it; a helper of the tests."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from chromium import Browser, Page
from matplotlib import colormaps
from neuroscope_fast.reader import Run
from neuroscope_fast.view import attention_page
from view_runs import MemoryRun, causal

CHROMIUM = chromium.find()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

CIVIDIS = np.rint(colormaps["cividis"](np.arange(256))[:, :3] * 255).astype(int)
WORDS = ["<|bos|>", "The", " cat", " saw", "\n", " the", " dog", ".", "\t", " It"]


def launch(profile: Path) -> Browser:
    assert CHROMIUM is not None
    return Browser(CHROMIUM, profile)


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
