"""The attention page as HTML: one file that needs nothing else, or the shell of it that a server fills.

What a run holds is data of any origin. It stands in the page as JSON and base64 in elements that are not run, its `<`
escaped, and reaches the screen as text only; the Content-Security-Policy lets nothing run but the page's own script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import OptionError, RunError, one_line
from ..reader import Run
from .blocks import block, load, thumbnails
from .contents import contents_of, tokens_of

LARGEST_PAGE = 64 << 20
"""Bytes of attention in one file; above, browsers open it slowly or not at all."""

_SCRIPTS = ("colour.js", "source.js", "heatmap.js", "grid.js", "text.js", "page.js")
_PLACES = re.compile(r"\{(policy|title|style|data|script)\}")


def attention_page(run: Run, prompts: Sequence[int] | None = None) -> str:
    """The attention of a run as one HTML page that opens without a network: a heat map for each head, with its tokens.

    `prompts`: the numbers of those to put into it; None for all. Values are exact: they stand in the page in the dtype
    that they were stored in (float64 as float32). Raises MissingActivations where the run holds no attention,
    OptionError for a prompt that it does not hold, RunError where the page would be larger than LARGEST_PAGE.
    """
    contents = contents_of(run)
    _choose(contents, prompts)
    _need_room(run, _stored_bytes(run, contents))
    pieces, size = [], 0
    tokens: dict[str, Any] = {}
    for prompt in contents["prompts"]:
        number = prompt["number"]
        for row in range(prompt["rows"]):
            tokens[f"{number}-{row}"] = tokens_of(run, number, row)
            for entry in entries_of(contents, number):
                weights = load(run, entry["hook"], number, row)
                name = f"{entry['number']}-{number}-{row}"
                for kind, data in (("block", block(weights)), ("thumbnails", thumbnails(weights))):
                    pieces.append(_element("application/octet-stream", f"{kind}-{name}", base64.b64encode(data)))
                    size += len(data)
                _need_room(run, size)
    document = {**contents, "embedded": True, "tokens": tokens}
    return _assembled(contents["run"], [_contents_element(document), *pieces], "")


def live_page(contents: dict[str, Any]) -> str:
    """The same page, which asks the server that it came from for what is looked at."""
    return _assembled(contents["run"], [_contents_element({**contents, "embedded": False})], "; connect-src 'self'")


def entries_of(contents: dict[str, Any], prompt: int) -> Iterable[dict[str, Any]]:
    """The hooks that hold attention of a prompt."""
    for group in contents["groups"]:
        for entry in group["entries"]:
            if entry["prompts"] is None or prompt in entry["prompts"]:
                yield entry


def policy(more: str = "") -> str:
    """The Content-Security-Policy: this script and these styles, and nothing else."""
    script, style = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_script(), _file("page.css"))
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'{more}"
    )


def _choose(contents: dict[str, Any], prompts: Sequence[int] | None) -> None:
    if prompts is None:
        return
    held = [prompt["number"] for prompt in contents["prompts"]]
    for number in prompts:
        if number not in held:
            there = f"{held[0]} to {held[-1]}" if len(held) > 1 else str(held[0])
            raise OptionError(f"{contents['run']} holds no attention of prompt {number}; it holds {there}")
    contents["prompts"] = [prompt for prompt in contents["prompts"] if prompt["number"] in prompts]


def _stored_bytes(run: Run, contents: dict[str, Any]) -> int:
    """What is at least to be read: known before any of it is."""
    chosen = {prompt["number"] for prompt in contents["prompts"]}
    hooks = {entry["hook"] for number in chosen for entry in entries_of(contents, number)}
    return sum(
        math.prod(record.shape) * (2 if record.dtype in ("float16", "bfloat16") else 4)
        for hook_id in hooks
        for record in run[hook_id].outputs.records
        if record.prompt in chosen
    )


def _need_room(run: Run, size: int) -> None:
    if size > LARGEST_PAGE:
        raise RunError(
            f"the attention of {run.name} is more than the {LARGEST_PAGE >> 20} MiB that one page can hold: look "
            f"at it with `neuroscope-fast view {run.path or 'RUN'}`, or choose fewer prompts"
        )


def _contents_element(contents: dict[str, Any]) -> str:
    # In ASCII, so that lone surrogates survive; without `<` nothing ends the element.
    text = json.dumps(contents, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return _element("application/json", "contents", text.encode())


def _element(kind: str, name: str, text: bytes) -> str:
    return f'<script type="{kind}" id="{name}">{text.decode()}</script>'


def _assembled(run: str, data: list[str], more_policy: str) -> str:
    filled = {
        "policy": policy(more_policy),
        "title": html.escape(f"Attention: {one_line(run)}"),
        "style": _file("page.css"),
        "data": "\n".join(data),
        "script": _script(),
    }
    return _PLACES.sub(lambda match: filled[match[1]], _file("page.html"))


@cache
def _script() -> str:
    return "".join(map(_file, _SCRIPTS))


@cache
def _file(name: str) -> str:
    return (files(__package__) / "static" / name).read_text("utf-8")
