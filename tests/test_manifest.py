"""capture.json, the index, and the replacement of files."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
from golden_runs import SCHEMAS
from neuroscope_fast.errors import RunError
from neuroscope_fast.manifest import (
    Checksums,
    Counters,
    Dropped,
    LostTensor,
    Manifest,
    ManifestHook,
    ModelInfo,
    Recovery,
    decode_manifest,
    encode_index,
    encode_manifest,
    manifest_schema,
    replace_file,
    replace_files,
)
from run_writer import RunWriter


def full() -> Manifest:
    return Manifest(
        status="failed",
        cause="disk full",
        created="2026-01-02T03:04:05",
        closed="2026-01-02T03:05:06",
        metadata_file="activation_capture.json",
        versions={"torch": "2.13.0", "triton": None},
        model=ModelInfo(class_name="LlamaForCausalLM", name_or_path="demo", revision="main", dtype="float32"),
        options={"dtype": "bfloat16", "ring_bytes": 1 << 28, "policy": "drop"},
        hooks={"h": ManifestHook(layer_name="l", component="mlp", module="l.mlp", output=0, positions=[0, -1])},
        counters=Counters(records=3, bytes_in=30, stall_seconds=0.25, drops=1),
        warnings=["one"],
        dropped=[Dropped("h", 4, prompt=1)],
        recovery=Recovery(at="2026-01-01T00:00:00", lost=[LostTensor("a", "h/000001", "why")]),
        checksums=Checksums.of({"activations-int8-00000.safetensors": {"h/000000": 0xDEADBEEF, "h/000001": 7}}),
    )


def test_it_reads_back() -> None:
    data = encode_manifest(full())
    again = decode_manifest(data)
    assert encode_manifest(again) == data
    assert data.startswith(b'{\n  "format": "neuroscope-fast run",\n  "format_version": 1,\n  "status": "failed",\n')
    assert list(json.loads(data)) == [
        "format",
        "format_version",
        "status",
        "cause",
        "created",
        "closed",
        "metadata_file",
        "versions",
        "model",
        "options",
        "hooks",
        "counters",
        "devices",
        "warnings",
        "dropped",
        "checksums",
        "file_checksums",
        "recovery",
        "generation",
        "resumptions",
    ]
    assert again.hooks == full().hooks
    assert again.counters == full().counters
    assert again.dropped == full().dropped
    assert again.recovery == full().recovery


def test_checksums() -> None:
    checksums = full().checksums
    assert json.loads(bytes(checksums.shards)) == {
        "activations-int8-00000.safetensors": {"h/000000": "deadbeef", "h/000001": "00000007"}
    }
    assert decode_manifest(encode_manifest(full())).checksums.by_shard() == {
        "activations-int8-00000.safetensors": {"h/000000": 0xDEADBEEF, "h/000001": 7}
    }
    assert Checksums().by_shard() == {}


def test_the_schema_in_the_package_is_that_of_the_struct() -> None:
    schema = json.loads((SCHEMAS / "manifest.schema.json").read_text(encoding="utf-8"))
    assert schema == manifest_schema(), "run python tests/golden_runs.py"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(json.loads(encode_manifest(full())))
    wrong = [
        {"status": "done"},
        {"format": "x"},
        {"format_version": 2},
        {"checksums": {"shards": {"a": {"b": "xyz"}}}},
    ]
    for change in wrong:
        assert not validator.is_valid(json.loads(encode_manifest(full())) | change)


def test_the_manifest_of_the_test_writer_fits_the_schema(tmp_path: Path) -> None:
    folder = RunWriter(tmp_path, ["a", "b"], shared={"b": "a"}).close()
    jsonschema.validate(json.loads((folder / "capture.json").read_text()), manifest_schema())


def test_the_index() -> None:
    index = encode_index({"h/000000": "activations-int8-00000.safetensors"}, 42)
    assert json.loads(index) == {
        "metadata": {"total_size": 42},
        "weight_map": {"h/000000": "activations-int8-00000.safetensors"},
    }


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "capture.json"
    replace_file(file, b"old")
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, b"newer")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["capture.json"]


def test_files_are_replaced_together_and_the_one_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_files(tmp_path, {"a": b"1", "b": b"2", "c": b""})
    assert {name: (tmp_path / name).read_bytes() for name in "abc"} == {"a": b"1", "b": b"2", "c": b""}
    replace, replaced = os.replace, []

    def fails_at_b(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(5, "Input/output error")
        replace(source, target)
        replaced.append(target.name)

    monkeypatch.setattr(os, "replace", fails_at_b)
    with pytest.raises(OSError, match="Input/output error") as failure:
        replace_files(tmp_path, {"a": b"3", "b": b"4", "c": b"5"})
    assert failure.value.filename == str(tmp_path / "b")
    assert replaced == ["a"]
    assert {name: (tmp_path / name).read_bytes() for name in "abc"} == {"a": b"3", "b": b"2", "c": b""}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_what_is_no_manifest() -> None:
    with pytest.raises(RunError, match="x is not the manifest of a neuroscope-fast run"):
        decode_manifest(b"{", "x")
