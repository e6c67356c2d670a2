"""Renders the Markdown report of a capture from its metadata JSON alone.

Layout and wording of a circuit analysis are those of the reference document, to the byte. Files of other
origin are rendered too: whatever they do not say, or say in another form, prints `unknown`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from .errors import RunError
from .files import read_regular
from .markdown import clean, inline, paragraph
from .report_text import ANALYSIS_NOTES, ANALYSIS_STRUCTURE, CAPTURE_NOTES, CAPTURE_STRUCTURE
from .summary import summarise, summarise_shapes

UNKNOWN = "unknown"
_NO_DESCRIPTION = "No description available"
_EXCERPT = 100  # characters of the generated text
_LONGEST_QUOTED = 1000  # characters
_READ = (
    "analysis_name",
    "analysis_description",
    "timestamp",
    "hooks_used",
    "total_hooks",
    "generated_text",
    "hook_configurations",
)
_CANNOT_DECODE = (
    msgspec.MsgspecError,
    ValueError,
    RecursionError,
)  # ValueError: UnicodeDecodeError, json's own


class _Entry(msgspec.Struct, gc=False):
    """What the report needs of a record; anything may stand in a file of other origin."""

    layer_name: Any = None
    component: Any = None
    shape: Any = None
    dtype: Any = None
    is_input: Any = None
    reduction: Any = None
    heads: Any = None


_entries_decoder = msgspec.json.Decoder(list[_Entry])
_raw_list_decoder = msgspec.json.Decoder(list[Raw])
_raw_object_decoder = msgspec.json.Decoder(dict[str, Raw])


class _Hook(NamedTuple):
    """One hook's section."""

    hook_id: str
    records: int
    layer: str
    component: str
    shape: str
    dtype: str
    side: str
    part: str = ""
    """Lines that say what of the component it is, where it is not all of it."""


def render(source: bytes | str | os.PathLike[str]) -> str:
    """The Markdown report of a metadata JSON, given as its bytes or as the path of its file.

    Hooks stand in the order of the file. Raises RunError, in one line, where the file cannot be read, is not
    JSON, or is another kind of document.
    """
    name = "the metadata JSON" if isinstance(source, bytes) else os.fspath(source)
    try:
        data = source if isinstance(source, bytes) else read_regular(Path(source))
    except FileNotFoundError as error:
        raise RunError(f"{name} cannot be read: {error.strerror}") from error
    document = _read(data, name)
    raw_hooks = _raw_object(document.get("activations"))
    demo_type = _value(document.get("demo_type"))
    if raw_hooks is None and demo_type not in ("circuit_analysis", "activation_capture"):
        hint = f": its metadata is in {_text(_value(document['metadata_file']))}" if "metadata_file" in document else ""
        raise RunError(f"{name} is not the metadata JSON of a capture{hint}")
    values = {key: _value(document[key]) for key in _READ if key in document}
    configurations = values.get("hook_configurations")
    asked = (
        [item if isinstance(item, dict) else {} for item in configurations] if isinstance(configurations, list) else []
    )
    by_id = {item["hook_id"]: item for item in reversed(asked) if isinstance(item.get("hook_id"), str)}
    hooks = [_hook(hook_id, raw, by_id) for hook_id, raw in (raw_hooks or {}).items()]
    if demo_type == "circuit_analysis" or (demo_type != "activation_capture" and "analysis_name" in values):
        return _analysis(values, hooks, asked)
    return _capture(values, hooks)


def _read(data: bytes, name: str) -> dict[str, Raw]:
    """The keys of the document, their values still bytes: activations of other origin can be gigabytes of
    numbers.
    """
    try:
        return _raw_object_decoder.decode(data)
    except _CANNOT_DECODE:
        pass
    try:  # Python's json module writes NaN, Infinity and lone surrogates, and reads UTF-16 and a BOM
        document = json.loads(data, parse_constant=lambda _: None, parse_float=_finite)
        text = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    except _CANNOT_DECODE as error:
        raise RunError(f"{name} is not JSON: {inline(str(error))}") from error
    if not isinstance(document, dict):
        raise RunError(f"{name} is not the metadata JSON of a capture")
    return _raw_object_decoder.decode(text)


def _finite(text: str) -> float | None:
    """`1e999` is an infinity, which cannot be written as JSON again."""
    number = float(text)
    return number if math.isfinite(number) else None


def _value(raw: Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except _CANNOT_DECODE:
        return None


def _raw_object(raw: Raw | None) -> dict[str, Raw] | None:
    try:
        return None if raw is None else _raw_object_decoder.decode(raw)
    except _CANNOT_DECODE:
        return None


def _hook(hook_id: str, raw: Raw, asked: Mapping[str, dict[str, Any]]) -> _Hook:
    try:
        entries = _entries_decoder.decode(raw)
    except _CANNOT_DECODE:
        entries = _entries_of_any_kind(raw)
    if not entries:
        configuration = asked.get(hook_id, {})
        layer, component = (_text(configuration.get(key)) for key in ("layer_name", "component"))
        return _Hook(_text(hook_id), 0, layer, component, "none", "none", "none")
    return _Hook(
        _text(hook_id),
        len(entries),
        _distinct(entry.layer_name for entry in entries),
        _distinct(entry.component for entry in entries),
        _distinct((entry.shape for entry in entries), of_shapes=True),
        _distinct(entry.dtype for entry in entries),
        _distinct(entry.is_input for entry in entries),
        _part(entries),
    )


def _part(entries: list[_Entry]) -> str:
    named = (("Reduction", "reduction"), ("Heads", "heads"))
    values = ((title, [getattr(entry, name) for entry in entries]) for title, name in named)
    return "".join(
        f"- **{title}**: {_distinct(found)}\n" for title, found in values if any(each is not None for each in found)
    )


def _entries_of_any_kind(raw: Raw) -> list[_Entry]:
    """Entries that are not objects, such as bare lists of numbers, say nothing: each becomes an empty one."""
    try:
        items = _raw_list_decoder.decode(raw)
    except _CANNOT_DECODE:
        items = [] if bytes(raw) == b"null" else [raw]
    return [_entry(item) for item in items]


def _entry(raw: Raw) -> _Entry:
    try:
        return msgspec.json.decode(raw, type=_Entry)
    except _CANNOT_DECODE:
        return _Entry()


def _distinct(values: Iterable[Any], *, of_shapes: bool = False) -> str:
    """The one value that all have, or each with how often it is there."""
    counts: dict[Any, int] = {}
    for value in values:
        key = tuple(value) if type(value) is list else value
        try:
            counts[key] = counts.get(key, 0) + 1
        except TypeError:  # not hashable: an object, or a list of lists
            counts[_text(value)] = counts.get(_text(value), 0) + 1
    plain = all(isinstance(key, tuple) and len(key) <= 64 and all(type(size) is int for size in key) for key in counts)
    if of_shapes and counts and plain:
        return summarise_shapes(counts)
    texts: dict[str, int] = {}
    for key, count in counts.items():
        text = _text(list(key) if isinstance(key, tuple) else key)
        texts[text] = texts.get(text, 0) + count
    return summarise(texts)


def _text(value: Any) -> str:
    """A value of any type on one line."""
    if value is None:
        return UNKNOWN
    if isinstance(value, str):
        return inline(value) or UNKNOWN
    if isinstance(value, list) and len(value) <= 64 and all(type(item) is int for item in value):
        return str(value)
    if isinstance(value, (dict, list)):
        return inline(msgspec.json.encode(value).decode(), limit=100)
    return str(value)


def _number(value: Any, default: int) -> int:
    return value if type(value) is int else default


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    return paragraph(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "...", begins_line=False)


def _quoted(text: str) -> str:
    """As a string of JSON."""
    text = clean(text)
    return msgspec.json.encode(text if len(text) <= _LONGEST_QUOTED else text[:_LONGEST_QUOTED] + "…").decode()


def _captures(configuration: Mapping[str, Any]) -> str:
    sides = []
    if configuration.get("capture_input", False) is True:
        sides.append("Input")
    if configuration.get("capture_output", True) is not False:
        sides.append("Output")
    return " & ".join(sides) or "Nothing"


def _analysis(values: Mapping[str, Any], hooks: list[_Hook], asked: list[dict[str, Any]]) -> str:
    name = values.get("analysis_name")
    name = name if isinstance(name, str) and name.strip() else UNKNOWN
    description = values.get("analysis_description")
    description = description if isinstance(description, str) and description.strip() else _NO_DESCRIPTION
    used = _number(values.get("hooks_used"), len(asked))
    parts = [
        f"# Circuit Analysis Data Format: {inline(name)}\n\nGenerated: {_text(values.get('timestamp'))}\n"
        f"Analysis Type: {inline(name)}\nDescription: {inline(description)}\n\n",
        ANALYSIS_STRUCTURE.format(name=_quoted(name), description=_quoted(description), hooks_used=used),
        f'\n## Analysis Results\n\n**Generated Text**: "{_excerpt(values.get("generated_text"))}"\n\n'
        f"**Hooks Analyzed**: {len(hooks)}\n",
    ]
    parts += [
        f"\n### {hook.hook_id}\n- **Layer**: {hook.layer}\n- **Component**: {hook.component}\n"
        f"- **Activations**: {hook.records}\n- **Shape**: {hook.shape}\n- **Data Type**: {hook.dtype}\n{hook.part}"
        for hook in hooks
    ]
    parts.append(
        f"\n**Total Activation Tensors**: {sum(hook.records for hook in hooks)}\n\n"
        f"## Circuit Analysis Interpretation\n\n### {inline(name.replace('_', ' ').title())}\n\n"
        f"{paragraph(description, begins_line=True)}\n\nThis analysis captured activations from "
        f"{'1 hook' if used == 1 else f'{used} different hooks'} across the model:\n\n"
    )
    parts += [
        f"\n{number}. **{_text(item.get('layer_name'))}**\n   - Component: {_text(item.get('component'))}\n"
        f"   - Hook ID: {_text(item.get('hook_id'))}\n   - Captures: {_captures(item)}\n"
        for number, item in enumerate(asked, 1)
    ]
    return "".join(parts) + ANALYSIS_NOTES


def _capture(values: Mapping[str, Any], hooks: list[_Hook]) -> str:
    total = _number(values.get("total_hooks"), len(hooks))
    parts = [
        f"# Activation Capture Data Format\n\nGenerated: {_text(values.get('timestamp'))}\n"
        "Demo Type: Basic Activation Capture\n\n",
        CAPTURE_STRUCTURE.format(total_hooks=total),
        f'\n## Capture Results\n\n**Generated Text**: "{_excerpt(values.get("generated_text"))}"\n\n'
        f"**Hooks Captured**: {len(hooks)}\n\n"
        f"**Total Activation Tensors**: {sum(hook.records for hook in hooks)}\n\n## Hook Details\n",
    ]
    parts += [
        f"\n### Hook: {hook.hook_id}\n- **Layer**: {hook.layer}\n- **Component**: {hook.component}\n"
        f"- **Activations Count**: {hook.records}\n- **Shape**: {hook.shape}\n- **Data Type**: {hook.dtype}\n"
        f"- **Is Input**: {hook.side}\n{hook.part}"
        for hook in hooks
    ]
    return "".join(parts) + CAPTURE_NOTES
