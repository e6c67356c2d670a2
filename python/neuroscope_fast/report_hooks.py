"""What the report says of one hook: the distinct values that its records have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from .markdown import inline
from .summary import summarise, summarise_shapes

UNKNOWN = "unknown"
CANNOT_DECODE = (
    msgspec.MsgspecError,
    ValueError,
    RecursionError,
)  # ValueError: UnicodeDecodeError, json's own


class Entry(msgspec.Struct, gc=False):
    """What the report needs of a record; anything may stand in a file of other origin."""

    layer_name: Any = None
    component: Any = None
    shape: Any = None
    dtype: Any = None
    is_input: Any = None
    reduction: Any = None
    heads: Any = None


class Counted(NamedTuple):
    """Entries in the order of capture, and how many records each stands for: one, where there are no `counts`."""

    entries: Sequence[Entry]
    counts: Sequence[int] | None = None


_entries_decoder = msgspec.json.Decoder(list[Entry])
_raw_list_decoder = msgspec.json.Decoder(list[Raw])


class Section(NamedTuple):
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


def section(hook_id: str, counted: Counted, asked: Mapping[str, dict[str, Any]]) -> Section:
    """`asked`: the hook configurations by id, which tell of a hook without records."""
    entries = counted.entries
    counts = repeat(1) if counted.counts is None else counted.counts
    if not entries:
        configuration = asked.get(hook_id, {})
        layer, component = (text_of(configuration.get(key)) for key in ("layer_name", "component"))
        return Section(text_of(hook_id), 0, layer, component, "none", "none", "none")
    return Section(
        text_of(hook_id),
        len(entries) if counted.counts is None else sum(counted.counts),
        _distinct((entry.layer_name for entry in entries), counts),
        _distinct((entry.component for entry in entries), counts),
        _distinct((entry.shape for entry in entries), counts, of_shapes=True),
        _distinct((entry.dtype for entry in entries), counts),
        _distinct((entry.is_input for entry in entries), counts),
        _part(entries, counts),
    )


def _part(entries: Sequence[Entry], counts: Iterable[int]) -> str:
    named = (("Reduction", "reduction"), ("Heads", "heads"))
    values = ((title, [getattr(entry, name) for entry in entries]) for title, name in named)
    return "".join(
        f"- **{title}**: {_distinct(found, counts)}\n"
        for title, found in values
        if any(each is not None for each in found)
    )


def entries_of(raw: Raw) -> Counted:
    """The entries of a JSON list of records. Those that are not objects, such as bare lists of numbers, say nothing:
    each becomes an empty one.
    """
    try:
        entries = _entries_decoder.decode(raw)
    except CANNOT_DECODE:
        try:
            items = _raw_list_decoder.decode(raw)
        except CANNOT_DECODE:
            items = [] if bytes(raw) == b"null" else [raw]
        entries = [_entry(item) for item in items]
    return Counted(entries)


def _entry(raw: Raw) -> Entry:
    try:
        return msgspec.json.decode(raw, type=Entry)
    except CANNOT_DECODE:
        return Entry()


def _distinct(values: Iterable[Any], times: Iterable[int], *, of_shapes: bool = False) -> str:
    """The one value that all have, or each with how often it is there."""
    counts: dict[Any, int] = {}
    for value, count in zip(values, times, strict=False):  # of `times` there may be no end
        key = tuple(value) if type(value) is list else value
        try:
            counts[key] = counts.get(key, 0) + count
        except TypeError:  # not hashable: an object, or a list of lists
            counts[text_of(value)] = counts.get(text_of(value), 0) + count
    plain = all(isinstance(key, tuple) and len(key) <= 64 and all(type(size) is int for size in key) for key in counts)
    if of_shapes and counts and plain:
        return summarise_shapes(counts)
    texts: dict[str, int] = {}
    for key, count in counts.items():
        text = text_of(list(key) if isinstance(key, tuple) else key)
        texts[text] = texts.get(text, 0) + count
    return summarise(texts)


def text_of(value: Any) -> str:
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
