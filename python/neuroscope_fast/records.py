"""The metadata JSON of a run: one struct for each object in it, and the way to and from bytes.

The keys, their order and their meaning are those of docs/file_format.md. The fields that the reference
document names are always written; extension fields are left out at their default. The JSON Schema in
`schema/` is generated from these structs by `json_schema()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from .decoding import no_collection
from .dtypes import DTYPE_NAMES
from .errors import RunError
from .head_options import TOP_K

Count = Annotated[int, Meta(ge=0)]
# A union of two array types cannot be decoded, so both forms share an element type: an int, or a row of them.
Positions = Annotated[
    Sequence[int | Sequence[int]],
    Meta(description="positions stored, from the start of the sequence; a list for each row where rows differ"),
]
RealTokens = Annotated[
    Sequence[Sequence[Count]],
    Meta(
        description="for each row: start, stop of the range that is no padding; further pairs where it has "
        "gaps; an empty list for a row of padding"
    ),
]
Heads = Annotated[Sequence[Count], Meta(description="heads stored, in this order, counted from the front")]
DTypeName = Annotated[str, Meta(extra_json_schema={"enum": list(DTYPE_NAMES)})]


class DataRef(Struct, frozen=True, gc=False):
    """Where a tensor's bytes are: a shard of the run, and the tensor's key in it."""

    file: str
    key: str


class Record(Struct, frozen=True, omit_defaults=True, gc=False):
    """One captured tensor. `hook_id` to `is_input` are always written."""

    hook_id: str
    layer_name: str
    component: str
    shape: list[Count]
    dtype: DTypeName
    is_input: bool
    step: Count = 0
    prompt: Count = 0
    call: Count = 0
    positions: Positions | None = None
    real_tokens: RealTokens | None = None
    heads: Heads | None = None
    reduction: str | None = None
    source_dtype: DTypeName | None = None
    scale: DataRef | None = None
    indices: DataRef | None = None
    data: DataRef | None = None


class StepNote(Struct, frozen=True, omit_defaults=True):
    """What a journal says of the records that follow it: the fields of the same names in a record."""

    positions: Positions | None = None
    real_tokens: RealTokens | None = None


class Usage(Struct, frozen=True):
    """True token counts."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0


def total_usage(usages: Iterable[Usage]) -> Usage:
    """The sums."""
    counts = [(each.prompt_tokens, each.completion_tokens, each.total_tokens) for each in usages]
    return Usage(*map(sum, zip(*counts, strict=True))) if counts else Usage()


class HookConfiguration(Struct, frozen=True, omit_defaults=True):
    """A hook as it was asked for, its pattern expanded to one layer."""

    layer_name: str
    component: str
    hook_id: str
    capture_output: bool
    capture_input: bool = False
    dtype: str | None = None
    positions: str | list[int] = "all"
    phase: str = "both"
    every: int = 1
    heads: list[int] | None = None
    reduction: str | None = None
    top_k: int = TOP_K


class Generation(Struct, frozen=True):
    """One prompt of a run that has several."""

    prompt: str
    generated_text: str
    usage: Usage


class CircuitAnalysis(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The metadata JSON of a capture with an analysis name."""

    timestamp: str
    demo_type: Literal["circuit_analysis"]
    analysis_name: str
    analysis_description: str
    hooks_used: Count
    generated_text: str
    activations: dict[str, list[Record]]
    usage: Usage
    hook_configurations: list[HookConfiguration]
    generations: list[Generation] = []


class ActivationCapture(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The metadata JSON of a plain capture."""

    timestamp: str
    demo_type: Literal["activation_capture"]
    total_hooks: Count
    generated_text: str
    activations: dict[str, list[Record]]
    usage: Usage
    hook_configurations: list[HookConfiguration]
    generations: list[Generation] = []


Metadata = CircuitAnalysis | ActivationCapture


class _AnyMetadata(Struct):
    """Either form, its records still bytes: unions of untagged structs cannot be decoded."""

    timestamp: str
    demo_type: Literal["circuit_analysis", "activation_capture"]
    generated_text: str
    activations: dict[str, Raw]
    usage: Usage
    hook_configurations: list[HookConfiguration]
    generations: list[Generation] = []
    analysis_name: str | None = None
    analysis_description: str | None = None
    hooks_used: Count | None = None
    total_hooks: Count | None = None


Lines = bytes | memoryview
_BETWEEN = b",\n      "  # two records

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_AnyMetadata)
_records_decoder = msgspec.json.Decoder(list[Record])
_note_decoder = msgspec.json.Decoder(StepNote)


def encode_metadata(metadata: Metadata) -> bytes:
    """The metadata JSON: indented by two, except that a record takes one line, whatever its length.

    Text that is no valid UTF-8 (lone surrogates) is written with `?` in its place.
    """
    lines = ((hook_id, record_lines(records)) for hook_id, records in metadata.activations.items())
    return b"".join(metadata_pieces(metadata, lines))  # once: a copy of this size costs a tenth of its encoding


def metadata_pieces(head: Metadata, hooks: Iterable[tuple[str, Lines]]) -> Iterator[Lines]:
    """The metadata JSON in pieces that are yet to be joined: `head` with the lines of each hook as its activations."""
    text = msgspec.json.format(_encode(msgspec.structs.replace(head, activations={})), indent=2)
    # A raw newline cannot stand inside a JSON string, so this marker is found in one place only.
    marker = b'\n  "activations": {'
    before, after = text.split(marker + b"}", 1)
    yield before + marker
    number = -1
    for number, (hook_id, lines) in enumerate(hooks):
        yield (b",\n    " if number else b"\n    ") + _encode(hook_id) + b": ["
        if lines:
            yield from (b"\n      ", lines, b"\n    ")
        yield b"]"
    yield (b"" if number < 0 else b"\n  ") + b"}" + after + b"\n"


def record_lines(records: Sequence[Record]) -> Lines:
    """Records as they stand in the metadata JSON, and in any JSON list, between its brackets."""
    try:
        lines = _encoder.encode_lines(records)
    except UnicodeEncodeError:
        lines = _encoder.encode_lines(_without_surrogates(msgspec.to_builtins(records)))
    return memoryview(lines.replace(b"\n", _BETWEEN))[: -len(_BETWEEN)]


def join_lines(one: Lines, other: Lines) -> Lines:
    """The lines of records, and then those of others."""
    return _BETWEEN.join(lines for lines in (one, other) if lines)


def _encode(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_without_surrogates(msgspec.to_builtins(value)))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def decode_metadata(data: bytes, name: str = "the metadata JSON") -> Metadata:
    """The whole of a metadata JSON. Raises RunError, which calls the file `name`, where `data` is no such
    document.
    """
    head, undecoded = decode_metadata_lazily(data, name)
    activations = {hook_id: decode_records(raw, name) for hook_id, raw in undecoded.items()}
    return msgspec.structs.replace(head, activations=activations)


def decode_metadata_lazily(data: bytes, name: str) -> tuple[Metadata, dict[str, Raw]]:
    """A metadata JSON without its records, and those of each hook as bytes for `decode_records`."""
    try:
        parsed = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{name} is not the metadata JSON of a run: {error}") from error
    common: dict[str, Any] = {
        "timestamp": parsed.timestamp,
        "generated_text": parsed.generated_text,
        "activations": {},
        "usage": parsed.usage,
        "hook_configurations": parsed.hook_configurations,
        "generations": parsed.generations,
    }
    if parsed.demo_type == "activation_capture":
        total = len(parsed.activations) if parsed.total_hooks is None else parsed.total_hooks
        return ActivationCapture(demo_type="activation_capture", total_hooks=total, **common), parsed.activations
    if parsed.analysis_name is None or parsed.analysis_description is None or parsed.hooks_used is None:
        raise RunError(
            f"{name} is not the metadata JSON of a run: an analysis has a name, a description and hooks_used"
        )
    analysis = CircuitAnalysis(
        demo_type="circuit_analysis",
        analysis_name=parsed.analysis_name,
        analysis_description=parsed.analysis_description,
        hooks_used=parsed.hooks_used,
        **common,
    )
    return analysis, parsed.activations


def decode_records(raw: Raw | bytes, name: str) -> list[Record]:
    """The records of one hook. Raises RunError, which calls the file `name`."""
    try:
        with no_collection():
            return _records_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{name} is not the metadata JSON of a run: {error}") from error


def encode_note(note: StepNote) -> bytes:
    """A note as a journal holds it: no bytes where it says nothing."""
    data = _encoder.encode(note)
    return b"" if data == b"{}" else data


def decode_note(data: bytes) -> StepNote:
    """The note of a journal. Raises msgspec.MsgspecError."""
    return _note_decoder.decode(data) if data else StepNote()


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the metadata JSON; the package ships it as
    `schema/metadata.schema.json`.
    """
    forms, definitions = msgspec.json.schema_components(
        [CircuitAnalysis, ActivationCapture], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "neuroscope-fast metadata",
        "anyOf": list(forms),
        "$defs": definitions,
    }
