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
from typing import Any

import msgspec
from msgspec import Raw

from .errors import RunError
from .files import read_regular
from .markdown import clean, inline, paragraph
from .report_hooks import CANNOT_DECODE, UNKNOWN, Counted, Section, entries_of, section, text_of
from .report_text import ANALYSIS_NOTES, ANALYSIS_STRUCTURE, CAPTURE_NOTES, CAPTURE_STRUCTURE

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
_raw_object_decoder = msgspec.json.Decoder(dict[str, Raw])


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
        hint = (
            f": its metadata is in {text_of(_value(document['metadata_file']))}" if "metadata_file" in document else ""
        )
        raise RunError(f"{name} is not the metadata JSON of a capture{hint}")
    hooks = ((hook_id, entries_of(raw)) for hook_id, raw in (raw_hooks or {}).items())
    return _render(document, demo_type, hooks)


def render_counted(head: bytes, hooks: Iterable[tuple[str, Counted]]) -> str:
    """The same report of a metadata JSON whose records are known without it: `head` is the JSON without them."""
    document = _raw_object_decoder.decode(head)
    return _render(document, _value(document["demo_type"]), hooks)


def _render(document: Mapping[str, Raw], demo_type: Any, hooks: Iterable[tuple[str, Counted]]) -> str:
    values = {key: _value(document[key]) for key in _READ if key in document}
    configurations = values.get("hook_configurations")
    asked = (
        [item if isinstance(item, dict) else {} for item in configurations] if isinstance(configurations, list) else []
    )
    by_id = {item["hook_id"]: item for item in reversed(asked) if isinstance(item.get("hook_id"), str)}
    sections = [section(hook_id, counted, by_id) for hook_id, counted in hooks]
    if demo_type == "circuit_analysis" or (demo_type != "activation_capture" and "analysis_name" in values):
        return _analysis(values, sections, asked)
    return _capture(values, sections)


def _read(data: bytes, name: str) -> dict[str, Raw]:
    """The keys of the document, their values still bytes: activations of other origin can be gigabytes of
    numbers.
    """
    try:
        return _raw_object_decoder.decode(data)
    except CANNOT_DECODE:
        pass
    try:  # Python's json module writes NaN, Infinity and lone surrogates, and reads UTF-16 and a BOM
        document = json.loads(data, parse_constant=lambda _: None, parse_float=_finite)
        text = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    except CANNOT_DECODE as error:
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
    except CANNOT_DECODE:
        return None


def _raw_object(raw: Raw | None) -> dict[str, Raw] | None:
    try:
        return None if raw is None else _raw_object_decoder.decode(raw)
    except CANNOT_DECODE:
        return None


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


def _analysis(values: Mapping[str, Any], hooks: list[Section], asked: list[dict[str, Any]]) -> str:
    name = values.get("analysis_name")
    name = name if isinstance(name, str) and name.strip() else UNKNOWN
    description = values.get("analysis_description")
    description = description if isinstance(description, str) and description.strip() else _NO_DESCRIPTION
    used = _number(values.get("hooks_used"), len(asked))
    parts = [
        f"# Circuit Analysis Data Format: {inline(name)}\n\nGenerated: {text_of(values.get('timestamp'))}\n"
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
        f"\n{number}. **{text_of(item.get('layer_name'))}**\n   - Component: {text_of(item.get('component'))}\n"
        f"   - Hook ID: {text_of(item.get('hook_id'))}\n   - Captures: {_captures(item)}\n"
        for number, item in enumerate(asked, 1)
    ]
    return "".join(parts) + ANALYSIS_NOTES


def _capture(values: Mapping[str, Any], hooks: list[Section]) -> str:
    total = _number(values.get("total_hooks"), len(hooks))
    parts = [
        f"# Activation Capture Data Format\n\nGenerated: {text_of(values.get('timestamp'))}\n"
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
