"""JSON that takes many times its size as objects: what the readers hold is bounded by a multiple of the file."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from neuroscope_fast.errors import RunError
from neuroscope_fast.manifest import decode_manifest
from neuroscope_fast.records import decode_metadata
from neuroscope_fast.report import render
from test_hostile_shards import peak

COUNT = 30_000
MANIFEST = {"format": "neuroscope-fast run", "format_version": 1, "status": "complete", "created": ""}
MANIFEST |= {"metadata_file": "a"}
METADATA = {"timestamp": "", "demo_type": "activation_capture", "total_hooks": 1, "generated_text": "", "usage": {}}
METADATA |= {"hook_configurations": [], "activations": {}}
RECORD = {"hook_id": "h", "layer_name": "", "component": "", "shape": [], "dtype": "", "is_input": False}
MANIFESTS: dict[str, dict[str, Any]] = {
    "options": {"options": {"a": [[]] * COUNT}},
    "versions": {"versions": {f"{number:x}": None for number in range(COUNT)}},
    "warnings": {"warnings": ["ab"] * COUNT},
    "hooks": {"hooks": {f"{n:x}": {"layer_name": "", "component": "", "module": ""} for n in range(COUNT)}},
    "devices": {"devices": [{"device": ""}] * COUNT},
    "shards": {"checksums": {"shards": {f"{number:x}": {} for number in range(COUNT)}}},
    "checksums": {"checksums": {"shards": {"a": {f"{number:x}": "0" for number in range(COUNT)}}}},
}
METADATAS: dict[str, dict[str, Any]] = {
    "hooks": {"activations": {f"{number:x}": [] for number in range(COUNT)}},
    "records": {"activations": {"a": [RECORD] * COUNT}},
    "shape": {"activations": {"a": [{**RECORD, "shape": [300] * COUNT}]}},
    "positions": {"activations": {"a": [{**RECORD, "positions": [[]] * COUNT}]}},
    "text": {"generated_text": "x" * COUNT},
    "records of no kind": {"activations": {"a": [[]] * COUNT}},
    "a shape of no kind": {"activations": {"a": [{"shape": [[]] * COUNT}]}},
    "what is not asked for": {"other": [[]] * COUNT},
    "configurations of no kind": {"hook_configurations": [{"layer_name": [[]] * COUNT}]},
}


def data_of(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def decode(data: bytes) -> None:
    """Both of them; one that is refused is no less to be looked at."""
    for decoder in (decode_metadata, lambda data: decode_manifest(data).checksums.by_shard()):
        with contextlib.suppress(RunError):
            decoder(data)


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest(changes: dict[str, Any]) -> None:
    data = data_of({**MANIFEST, **changes})
    decode_manifest(data)
    assert peak(lambda: decode(data)) < 32 * len(data)


@pytest.mark.parametrize("changes", METADATAS.values(), ids=METADATAS)
def test_a_metadata_json(changes: dict[str, Any]) -> None:
    """A report holds some 200 bytes for a hook, of which the file may have ten."""
    data = data_of({**METADATA, **changes})
    assert peak(lambda: decode(data)) < 32 * len(data)
    assert peak(lambda: render(data)) < (100 if len(changes.get("activations", ())) > 1 else 64) * len(data)


def test_options_of_a_size_that_no_capture_writes() -> None:
    data = data_of({**MANIFEST, "options": {"a": [[]] * 400_000}})
    assert peak(lambda: decode(data)) < len(data)
    with pytest.raises(RunError, match="bytes of options, which no capture writes"):
        decode_manifest(data)
