"""The metadata JSON: its keys and their order, its schema, and the way to bytes and back."""

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from golden_runs import GOLDEN, RUNS, SCHEMAS, analysis, capture
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.errors import RunError
from neuroscope_fast.records import (
    ActivationCapture,
    CircuitAnalysis,
    DataRef,
    Generation,
    HookConfiguration,
    Metadata,
    Record,
    StepNote,
    Usage,
    decode_metadata,
    decode_note,
    encode_metadata,
    encode_note,
    json_schema,
)
from run_writer import NAMES

COUNTS = st.integers(0, 2**53)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.lists(COUNTS, max_size=4), max_size=3)
REFS = st.builds(DataRef, TEXT, TEXT)
RECORDS = st.builds(
    Record,
    hook_id=TEXT,
    layer_name=TEXT,
    component=TEXT,
    shape=st.lists(COUNTS, max_size=4),
    dtype=st.sampled_from(NAMES),
    is_input=st.booleans(),
    step=COUNTS,
    prompt=COUNTS,
    call=COUNTS,
    positions=st.none() | st.lists(COUNTS, max_size=3) | ROWS,
    real_tokens=st.none() | ROWS,
    source_dtype=st.none() | st.sampled_from(NAMES),
    scale=st.none() | REFS,
    data=st.none() | REFS,
)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS)
CONFIGURATIONS = st.builds(
    HookConfiguration,
    TEXT,
    TEXT,
    TEXT,
    st.booleans(),
    capture_input=st.booleans(),
    dtype=st.none() | TEXT,
    positions=st.sampled_from(["all", "last", "1:"]) | st.lists(st.integers(-9, 9), max_size=3),
    phase=st.sampled_from(["both", "prefill", "decode"]),
    every=st.integers(1, 9),
)
COMMON: dict[str, Any] = {
    "timestamp": TEXT,
    "generated_text": TEXT,
    "activations": st.dictionaries(TEXT, st.lists(RECORDS, max_size=3), max_size=3),
    "usage": USAGES,
    "hook_configurations": st.lists(CONFIGURATIONS, max_size=3),
    "generations": st.lists(st.builds(Generation, TEXT, TEXT, USAGES), max_size=2),
}
METADATA = st.builds(
    CircuitAnalysis,
    demo_type=st.just("circuit_analysis"),
    analysis_name=TEXT,
    analysis_description=TEXT,
    hooks_used=COUNTS,
    **COMMON,
) | st.builds(ActivationCapture, demo_type=st.just("activation_capture"), total_hooks=COUNTS, **COMMON)


@given(METADATA)
def test_metadata_reads_back(metadata: Metadata) -> None:
    data = encode_metadata(metadata)
    assert decode_metadata(data) == metadata
    assert json.loads(data) == json.loads(msgspec.json.encode(metadata))
    assert json_validator().is_valid(json.loads(data))


@given(st.builds(StepNote, st.none() | st.lists(COUNTS) | ROWS, st.none() | ROWS))
def test_notes_read_back(note: StepNote) -> None:
    assert decode_note(encode_note(note)) == note
    assert (encode_note(note) == b"") == (note == StepNote())


@pytest.mark.parametrize("name", RUNS)
def test_the_golden_files(name: str) -> None:
    golden = (GOLDEN / f"{name}.json").read_bytes()
    assert encode_metadata(RUNS[name]) == golden, "run python tests/golden_runs.py"
    assert decode_metadata(golden) == RUNS[name]


def json_validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def test_the_schema_in_the_package_is_that_of_the_structs() -> None:
    schema = json.loads((SCHEMAS / "metadata.schema.json").read_text(encoding="utf-8"))
    assert schema == json_schema(), "run python tests/golden_runs.py"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "change",
    [
        {"demo_type": "other"},
        {"usage": {"prompt_tokens": -1}},
        {"activations": {"h": [[0.5, 0.5]]}},
        {"activations": {"h": [{"hook_id": "h"}]}},
        {"hook_configurations": [{}]},
        {"generated_text": None},
    ],
)
def test_schema_and_decoder_refuse_the_same(name: str, change: dict[str, Any]) -> None:
    document = json.loads((GOLDEN / f"{name}.json").read_bytes())
    json_validator().validate(document)
    assert not json_validator().is_valid(document | change)
    with pytest.raises(RunError, match="f is not the metadata JSON of a run") as caught:
        decode_metadata(json.dumps(document | change).encode(), "f")
    assert "\n" not in str(caught.value)


def test_the_keys_of_the_reference_document_in_its_order() -> None:
    document = json.loads(encode_metadata(analysis()))
    assert list(document) == [
        "timestamp",
        "demo_type",
        "analysis_name",
        "analysis_description",
        "hooks_used",
        "generated_text",
        "activations",
        "usage",
        "hook_configurations",
    ]
    assert list(document["activations"]["attention_layer_2"][0]) == [
        "hook_id",
        "layer_name",
        "component",
        "shape",
        "dtype",
        "is_input",
        "source_dtype",
        "data",
    ]
    assert list(document["hook_configurations"][0]) == [
        "layer_name",
        "component",
        "hook_id",
        "capture_output",
    ]
    assert list(document["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens"]
    assert list(json.loads(encode_metadata(capture()))) == [
        "timestamp",
        "demo_type",
        "total_hooks",
        "generated_text",
        "activations",
        "usage",
        "hook_configurations",
        "generations",
    ]


def test_extension_fields_are_left_out_at_their_default() -> None:
    bare = Record("h", "l", "mlp", [], "float32", False)
    assert list(json.loads(msgspec.json.encode(bare))) == [
        "hook_id",
        "layer_name",
        "component",
        "shape",
        "dtype",
        "is_input",
    ]


def test_a_record_takes_one_line() -> None:
    lines = encode_metadata(analysis()).decode().splitlines()
    assert sum(line.startswith('      {"hook_id":') for line in lines) == 10


def test_text_that_looks_like_the_document_does_no_harm() -> None:
    text = 'x\n  "activations": {}\n'
    metadata = msgspec.structs.replace(analysis(), generated_text=text, analysis_description=text)
    assert decode_metadata(encode_metadata(metadata)) == metadata
    empty = msgspec.structs.replace(analysis(), activations={}, generated_text=text)
    assert decode_metadata(encode_metadata(empty)) == empty


def test_lone_surrogates_do_not_lose_the_metadata() -> None:
    metadata = msgspec.structs.replace(analysis(), generated_text="a\udcffb", analysis_name="\ud800")
    again = decode_metadata(encode_metadata(metadata))
    assert again.generated_text == "a?b"
    assert again.activations == metadata.activations


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"timestamp": NaN}'])
def test_what_is_no_metadata(data: bytes) -> None:
    with pytest.raises(RunError, match="f is not the metadata JSON of a run"):
        decode_metadata(data, "f")


def test_an_analysis_needs_its_name() -> None:
    document = json.loads(encode_metadata(analysis()))
    del document["analysis_name"]
    with pytest.raises(RunError, match="an analysis has a name"):
        decode_metadata(json.dumps(document).encode())
