"""The attention page: its blocks hold the run's numbers, and what a run says never becomes markup."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import struct
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.reader import Run
from neuroscope_fast.view import attention_page, page
from neuroscope_fast.view.blocks import Weights, block, load, thumbnails
from neuroscope_fast.view.contents import contents_of
from view_runs import HOSTILE, MemoryRun, causal


class Decoded:
    """A block, read by its description alone."""

    def __init__(self, data: bytes):
        (length,) = struct.unpack_from("<I", data)
        assert (4 + length) % 8 == 0
        self.head = json.loads(data[4 : 4 + length])
        self.shape = tuple(self.head["shape"])
        count, start = int(np.prod(self.shape)), 4 + length
        kind = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "uint8": "u1"}[self.head["dtype"]]
        stored = np.frombuffer(data, kind, count, start)
        if self.head["dtype"] == "bfloat16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        self.numbers = stored.reshape(self.shape)
        end = start + count * np.dtype(kind).itemsize
        if self.head.get("indices"):
            end += -end % 8
            self.indices = np.frombuffer(data, "<i4", count, end).reshape(self.shape)
            end += 4 * count
        assert end == len(data)


class Elements(html.parser.HTMLParser):
    """The elements of a page: names, attributes and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def of(self, name: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for tag, attributes, text in self.found if tag == name]


def contents_in(text: str) -> dict[str, Any]:
    (found,) = [body for attributes, body in Elements(text).of("script") if attributes.get("id") == "contents"]
    document: dict[str, Any] = json.loads(found)
    return document


def block_in(text: str, name: str) -> Decoded:
    (found,) = [body for attributes, body in Elements(text).of("script") if attributes.get("id") == name]
    return Decoded(base64.b64decode(found, validate=True))


def joined_run() -> tuple[Run, np.ndarray[Any, Any]]:
    """A prefill of 3 tokens and two decoded ones, of heads 2 and 5."""
    whole = causal(2, 5)
    made = MemoryRun().add("a", whole[None, :, :3, :3], heads=[2, 5])
    for step in (1, 2):
        rows = whole[None, :, 2 + step : 3 + step, : 3 + step]
        made.add("a", rows, step=step, positions=[2 + step], heads=[2, 5])
    return made.say(["The", " cat", "\n", " saw", " it", " run"], generated=3).run(), whole


def test_a_block_is_prefill_and_decode_joined() -> None:
    run, whole = joined_run()
    found = Decoded(block(load(run, "a", 0, 0)))
    np.testing.assert_array_equal(found.numbers, whole)
    assert found.head["heads"] == [2, 5]
    assert found.head["queries"] == [0, 1, 2, 3, 4]


def test_a_block_of_one_head() -> None:
    run, whole = joined_run()
    weights = load(run, "a", 0, 0)
    found = Decoded(block(weights, 5))
    np.testing.assert_array_equal(found.numbers, whole[1:])
    assert found.head["heads"] == [5]
    with pytest.raises(RunError, match="there is no head 0; stored are 2, 5"):
        block(weights, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_values_are_exact_in_the_dtype_that_they_were_stored_in(dtype: str) -> None:
    stored = torch.from_numpy(causal(3, 7)).to(getattr(torch, dtype))[None]
    stored[0, 1, 6, 2] = float("nan")
    stored[0, 1, 6, 3] = float("inf")
    found = Decoded(block(load(MemoryRun().add("a", stored).run(), "a", 0, 0)))
    assert found.head["dtype"] == (dtype if dtype != "float64" else "float32")
    np.testing.assert_array_equal(found.numbers.astype(np.float32), stored[0].float().numpy())


def test_a_narrow_dtype_that_would_lose_something_is_widened() -> None:
    values = np.full((1, 1, 1), 0.1, np.float32)
    for dtype in ("float16", "bfloat16"):
        found = Decoded(block(Weights([0], np.arange(1), values, None, dtype)))
        assert found.head["dtype"] == "float32"
        assert found.numbers[0, 0, 0] == np.float32(0.1)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_reductions_over_heads_are_one_matrix(reduction: str) -> None:
    whole = getattr(causal(3, 4), reduction)(0)
    run = MemoryRun().add("a", whole[None], reduction=reduction).run()
    found = Decoded(block(load(run, "a", 0, 0)))
    assert found.head["heads"] == []
    np.testing.assert_array_equal(found.numbers, whole[None])


@pytest.mark.parametrize("reduction", ["entropy", "sink", "previous"])
def test_reductions_over_keys_have_a_row_for_each_head(reduction: str) -> None:
    values = np.random.default_rng(1).random((1, 3, 4), np.float32)
    run = MemoryRun().add("a", values, reduction=reduction, heads=[0, 2, 3]).run()
    found = Decoded(block(load(run, "a", 0, 0)))
    np.testing.assert_array_equal(found.numbers, values[0])
    assert found.head["heads"] == [0, 2, 3]


def test_top_k_keeps_its_keys() -> None:
    weights = np.array([[[[1, 0], [0.75, 0.25], [0.5, 0.375]]]], np.float32)
    keys = np.array([[[[0, 1], [1, 0], [0, 2]]]], np.int32)
    run = MemoryRun().add("a", weights, reduction="top_k", indices=keys).run()
    found = Decoded(block(load(run, "a", 0, 0)))
    assert found.head["keys"] == 3
    np.testing.assert_array_equal(found.numbers, weights[0])
    np.testing.assert_array_equal(found.indices, [[[0, -1], [1, 0], [0, 2]]])


def pooled(cells: list[list[float]]) -> list[list[int]]:
    """A thumbnail in plain loops: -1 stands for nothing."""
    height, width = min(len(cells), 24), min(len(cells[0]), 24)
    parts = [[cells[0][0]] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            rows = range(y * len(cells) // height, (y + 1) * len(cells) // height)
            columns = range(x * len(cells[0]) // width, (x + 1) * len(cells[0]) // width)
            parts[y][x] = max(cells[row][column] for row in rows for column in columns)
    top = max((value for line in parts for value in line if 0 <= value < np.inf), default=0) or 1
    levels = {-1.0: 255, np.inf: 254}
    return [[levels.get(value) or round(253 * float(np.sqrt(value / top))) for value in line] for line in parts]


@pytest.mark.parametrize("tokens", [1, 2, 23, 24, 25, 61])
def test_thumbnails_are_the_largest_of_what_each_pixel_covers(tokens: int) -> None:
    values = causal(2, tokens)
    if tokens > 2:
        values[1, 2, 1] = np.nan
        values[1, 2, 0] = -np.inf
    found = Decoded(thumbnails(Weights([0, 1], np.arange(tokens), values, None, "float32")))
    side = min(tokens, 24)
    assert found.shape == (2, 2, side, side)
    for head in (0, 1):
        cells = [
            [-1 if k > q else (float(w) if np.isfinite(w) else np.inf) for k, w in enumerate(row)]
            for q, row in enumerate(values[head])
        ]
        np.testing.assert_array_equal(found.numbers[0, head], pooled(cells))
        np.testing.assert_array_equal(found.numbers[1, head], pooled([[-1, *row[1:]] for row in cells]))


def test_thumbnails_of_sparse_and_empty_weights() -> None:
    values = np.array([[[1, 0.5]]], np.float32)
    sparse = Decoded(thumbnails(Weights([0], np.array([2]), values, np.array([[[2, -1]]], np.int32), "float32")))
    np.testing.assert_array_equal(sparse.numbers[0, 0], [[255, 255, 253]])
    empty = Decoded(thumbnails(Weights([0], np.arange(0), np.zeros((1, 0, 0), np.float32), None, "float32")))
    assert empty.shape == (2, 1, 0, 0)
    per_query = Decoded(thumbnails(Weights([0, 1], np.arange(2), np.array([[0, 1], [4, 0]], np.float32), None, "f")))
    np.testing.assert_array_equal(per_query.numbers[0, 0], [[0, 126], [253, 0]])


def test_the_page_tells_what_the_run_is() -> None:
    pattern = causal(2, 3)[None]
    made = MemoryRun().add("b", pattern, layer="model.layers.10.self_attn").add("c", pattern, layer="odd", heads=[1, 3])
    made.add("a", pattern, layer="model.layers.2.self_attn").add("a2", pattern, layer="model.layers.3.self_attn")
    made.add("a", pattern, layer="model.layers.2.self_attn", prompt=4).add("x", pattern, component="query")
    made.add("mean", pattern[:, 0], layer="model.layers.2.self_attn", reduction="mean")
    found = contents_of(made.say(["The ", "end"], prompt=4).run("the/model"))
    assert (found["run"], found["model"], found["dtype"]) == ("run in memory", "the/model (M)", "float32")
    assert found["layers"] == "layers 2-3, 10, odd"
    assert found["prompts"] == [{"number": 0, "rows": 1, "text": ""}, {"number": 4, "rows": 1, "text": "The end"}]
    whole, mean = found["groups"]
    told = [(each["hook"], each["label"], each["heads"], each["prompts"]) for each in whole["entries"]]
    assert told == [
        ("a", "layer 2", [0, 1], None),
        ("a2", "layer 3", [0, 1], [0]),
        ("b", "layer 10", [0, 1], [0]),
        ("c", "odd", [1, 3], [0]),
    ]
    assert [(each["hook"], each["heads"]) for each in mean["entries"]] == [("mean", [])]
    assert [each["number"] for group in found["groups"] for each in group["entries"]] == [0, 1, 2, 3, 4]


def test_hooks_of_the_same_layer_are_told_apart() -> None:
    made = MemoryRun().add("first", causal(1, 2)[None], heads=[0]).add("second", causal(1, 2)[None], heads=[7])
    assert [each["label"] for each in contents_of(made.run())["groups"][0]["entries"]] == ["first", "second"]


def test_a_run_without_attention_is_one_line_that_says_what_to_capture() -> None:
    made = MemoryRun().add("a", np.zeros((1, 2, 3), np.float32), component="residual", layer="gpt.h.3")
    run = made.add("cross", causal(1, 3)[None], layer="gpt.h.3.crossattention").run()
    with pytest.raises(MissingActivations, match=re.escape("--hook 'gpt.h.*:attention_pattern'")):
        attention_page(run)


def test_of_encoder_decoders_self_attention_is_shown_and_the_decoder_has_no_names() -> None:
    made = MemoryRun()
    for name in ("encoder.block.0.layer.0", "decoder.block.0.layer.0", "decoder.block.0.layer.1"):
        made.add(name, causal(1, 3)[None], layer=name)
    entries = contents_of(made.run())["groups"][0]["entries"]
    told = [(each["hook"], each["label"], each["reads"]) for each in entries]
    assert told == [
        ("encoder.block.0.layer.0", "encoder.block.0.layer.0", True),
        ("decoder.block.0.layer.0", "decoder.block.0.layer.0", False),
    ]


def test_the_page_holds_the_numbers_of_every_prompt_and_row() -> None:
    patterns = [np.stack([causal(2, 3, seed), causal(2, 3, seed + 1)]) for seed in (0, 10)]
    made = MemoryRun().add("a", patterns[0]).add("a", patterns[1], prompt=1)
    text = attention_page(made.run())
    for prompt in (0, 1):
        for row in (0, 1):
            np.testing.assert_array_equal(block_in(text, f"block-0-{prompt}-{row}").numbers, patterns[prompt][row])
    assert contents_in(text)["tokens"]["1-1"] == {"texts": ["0", "1", "2"], "prompt_tokens": 3, "known": False}


def test_prompts_can_be_chosen() -> None:
    made = MemoryRun().add("a", causal(1, 2)[None]).add("a", causal(1, 2)[None], prompt=3)
    text = attention_page(made.run(), prompts=[3])
    assert [each["number"] for each in contents_in(text)["prompts"]] == [3]
    assert 'id="block-0-3-0"' in text
    assert 'id="block-0-0-0"' not in text
    with pytest.raises(OptionError, match="holds no attention of prompt 2; it holds 0 to 3"):
        attention_page(made.run(), prompts=[2])


def test_nothing_of_a_run_becomes_markup() -> None:
    made = MemoryRun().add(HOSTILE, causal(1, 3)[None], layer=f"model.{HOSTILE}")
    made.say([HOSTILE, "</script>", "<!--"]).prompts[0]
    text = attention_page(made.run(f"{HOSTILE}\ud800"))
    scripts = Elements(text).of("script")
    assert [attributes.get("type") for attributes, _ in scripts] == [
        "application/json",
        "application/octet-stream",
        "application/octet-stream",
        None,
    ]
    assert not Elements(text).of("img")
    data = contents_in(text)
    assert data["groups"][0]["entries"][0]["hook"] == HOSTILE
    assert data["tokens"]["0-0"]["texts"] == [HOSTILE, "</script>", "<!--"]


def test_the_name_of_a_folder_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&{script}{data}"
    folder.mkdir()
    run = MemoryRun().add("a", causal(1, 3)[None]).run()
    run.path = folder
    ((_, title),) = Elements(attention_page(run)).of("title")
    assert title == "Attention: <b>&{script}{data}"


def test_the_policy_lets_this_script_run_and_no_other() -> None:
    text = attention_page(joined_run()[0])
    (policy,) = [
        attributes["content"]
        for attributes, _ in Elements(text).of("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    said = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert said["default-src"] == "'none'"
    assert "connect-src" not in said
    script = Elements(text).of("script")[-1][1]
    style = Elements(text).of("style")[0][1]
    for name, body in (("script-src", script), ("style-src", style)):
        assert said[name] == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
    assert not re.findall(r"https?://", text)
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", script)


def test_a_page_that_no_browser_opens_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST_PAGE", 1 << 20)
    made = MemoryRun().add("a", np.zeros((1, 1, 600, 600), np.float32))
    run = made.run()
    made.tensors.clear()
    with pytest.raises(
        RunError, match="is more than the 1 MiB that one page can hold: look at it with `neuroscope-fast v"
    ):
        attention_page(run)


def test_a_page_is_refused_that_grows_too_large_by_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST_PAGE", 1 << 20)
    made = MemoryRun()
    for step in range(600):  # 720 kB as they are stored, 1.4 MB as a square
        made.add("a", np.ones((1, 1, 1, step + 1), np.float32), step=step, positions=[step])
    with pytest.raises(RunError, match="more than the 1 MiB"):
        attention_page(made.run())


def test_the_colours_are_those_of_matplotlib() -> None:
    script = page._file("colour.js")
    digits = "".join(re.findall(r'"([0-9a-f]+)"', script.split("const BLANK")[0]))
    table = np.rint(colormaps["cividis"](np.arange(256))[:, :3] * 255).astype(int)
    assert digits == "".join(f"{red:02x}{green:02x}{blue:02x}" for red, green, blue in table)


def test_the_page_of_a_generated_run(tmp_path: Path) -> None:
    run = nsf.generate("demo", ["Recursion is"], ["model.layers.{0,1}.self_attn:attention_pattern"], tmp_path / "run")
    text = attention_page(nsf.open(tmp_path / "run"))
    told = contents_in(text)
    (prompt,) = run.prompts
    assert told["run"] == "run"
    assert told["tokens"]["0-0"]["texts"] == list(prompt.texts[0].tokens)
    activations = run["model.layers.1.self_attn_attention_pattern"]
    found = block_in(text, "block-1-0-0").numbers
    assert found.shape[1] == found.shape[2] == len(prompt.texts[0].token_ids) - 1
    for record, tensor in zip(activations.records, activations, strict=True):
        for at, query in enumerate(record.positions or range(tensor.shape[2])):
            assert isinstance(query, int)
            row = tensor[0, :, at].numpy()
            np.testing.assert_array_equal(found[:, query, : row.shape[1]], row)
            assert not found[:, query, row.shape[1] :].any()
