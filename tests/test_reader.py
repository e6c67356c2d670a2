"""Opening a run, and what is no run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from neuroscope_fast.errors import RunError
from neuroscope_fast.reader import HookNotCaptured, open_run
from neuroscope_fast.records import ActivationCapture, CircuitAnalysis
from run_writer import NAMES, RunWriter, bytes_of, random_tensor


def generation(folder: Path, steps: int = 4, **options: object) -> RunWriter:
    """Two hooks over a prefill of 7 tokens and some decode steps."""
    writer = RunWriter(folder, ["layer_2", "layer_10"], **options)  # type: ignore[arg-type]
    for step in range(steps):
        for seed, hook in enumerate(writer.hooks):
            if hook not in writer.shared:
                writer.add(hook, random_tensor((1, 1 if step else 7, 8), "float32", 10 * step + seed), step=step)
    return writer


def test_a_complete_run(tmp_path: Path) -> None:
    run = open_run(generation(tmp_path / "run", analysis="attention_patterns").close())
    assert run.path == tmp_path / "run"
    assert run.hooks == list(run) == ["layer_2", "layer_10"]
    assert "layer_2" in run
    assert len(run) == 2
    assert (run.status, run.notice) == ("complete", None)
    assert run.stats.records == 8
    assert run.stats.bytes_written == 123
    assert run.manifest.hooks["layer_10"].output == 2
    assert repr(run) == f"<Run {tmp_path / 'run'}: 2 hooks, complete>"
    assert [tensor.shape for tensor in run["layer_2"]] == [(1, 7, 8)] + [(1, 1, 8)] * 3
    assert bytes_of(run["layer_10"][2]) == bytes_of(random_tensor((1, 1, 8), "float32", 21))
    assert [(record.hook_id, record.step) for record in run.records] == [
        (hook, step) for hook in run.hooks for step in range(4)
    ]
    assert isinstance(run.metadata, CircuitAnalysis)
    assert run.metadata.analysis_name == "attention_patterns"
    assert run.metadata.activations["layer_2"] == run["layer_2"].records
    assert run.metadata.usage.total_tokens == 10


def test_a_plain_capture(tmp_path: Path) -> None:
    metadata = open_run(str(generation(tmp_path).close())).metadata
    assert isinstance(metadata, ActivationCapture)
    assert metadata.total_hooks == 2


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype(dtype: str, tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    tensors = [random_tensor(shape, dtype) for shape in ((2, 3, 4), (), (0, 4), (5,))]
    for step, tensor in enumerate(tensors):
        writer.add("h", tensor, step=step)
    for read, tensor in zip(open_run(writer.close())["h"], tensors, strict=True):
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert bytes_of(read) == bytes_of(tensor)


def test_several_shards_and_a_shared_tensor(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["a", "b"], shared={"b": "a"})
    for step in range(3):
        writer.add("a", torch.full((1, 1, 2), step, dtype=torch.float32), step=step)
        writer.roll_over("float32")
    run = open_run(writer.close())
    assert len({record.data.file for record in run.records if record.data}) == 3
    assert [record.hook_id for record in run["b"].records] == ["b"] * 3
    assert torch.equal(run["a"].cat(), run["b"].cat())
    assert run["a"][0].data_ptr() == run["b"][0].data_ptr()


def test_an_unknown_hook_names_near_ones(tmp_path: Path) -> None:
    run = open_run(generation(tmp_path).close())
    with pytest.raises(HookNotCaptured, match=r"^this run has no hook 'layer_3'; it has layer_2"):
        run["layer_3"]
    with pytest.raises(KeyError):
        run["something else"]


def test_a_hook_that_captured_nothing(tmp_path: Path) -> None:
    run = open_run(RunWriter(tmp_path, ["h"]).close())
    assert len(run["h"]) == 0
    assert run["h"].records == []
    with pytest.raises(RunError, match="holds nothing to stack"):
        run["h"].stack()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run directory: it has no capture\.json"):
        open_run(tmp_path)
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"")
    with pytest.raises(RunError, match=r"is a file, not a run directory; .* safetensors"):
        open_run(shard)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not the manifest"),
        ("[]", "is not the manifest"),
        ("{}", "is not the manifest"),
        ('{"format": "something", "format_version": 1}', "its format is 'something'"),
        ('{"format": "neuroscope-fast run", "format_version": 7, "x": []}', r"version 7; .* reads version 1"),
        ('{"format": "neuroscope-fast run", "format_version": 1, "status": "odd"}', "is not the manifest"),
        ("[" * 100_000, "is not the manifest"),
        (b"\xff\xfe", "is not the manifest"),
    ],
)
def test_a_manifest_that_is_none(content: str | bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "capture.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RunError, match=problem) as caught:
        open_run(tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_that_is_missing_or_torn(tmp_path: Path) -> None:
    folder = generation(tmp_path).close()
    file = folder / "activation_capture.json"
    text = file.read_text()
    file.write_text(text.replace('"is_input": false', '"is_input": 7'))
    run = open_run(folder)  # the records of a hook are read when they are asked for
    with pytest.raises(RunError, match=re.escape(f"{file} is not the metadata JSON")):
        run["layer_2"]
    file.write_text(text[: len(text) // 2])
    with pytest.raises(RunError, match=re.escape(f"{file} is not the metadata JSON")):
        open_run(folder)
    file.unlink()
    with pytest.raises(RunError, match=re.escape(f"{file} is missing")):
        open_run(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a\\b", "a\0b"])
def test_a_run_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    writer = generation(tmp_path)
    folder = writer.close()
    for records in writer.records.values():
        records[0]["data"]["file"] = name
    writer.write_metadata()
    with pytest.raises(RunError, match="not in its directory"):
        open_run(folder)["layer_2"][0]
    manifest = writer.manifest("complete") | {"metadata_file": name}
    (folder / "capture.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="not in its directory"):
        open_run(folder)


def test_a_shard_that_is_missing_or_torn(tmp_path: Path) -> None:
    folder = generation(tmp_path).close()
    shard = folder / "activations-float32-00000.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(RunError, match=re.escape(f"{shard} is no whole shard")):
        open_run(folder)["layer_2"][0]
    shard.unlink()
    with pytest.raises(RunError, match=re.escape(f"{shard} is missing")):
        open_run(folder)["layer_2"][0]


def test_a_record_that_disagrees_with_its_shard(tmp_path: Path) -> None:
    writer = generation(tmp_path)
    folder = writer.close()
    writer.records["layer_2"][0]["shape"] = [1, 8, 7]
    writer.write_metadata()
    with pytest.raises(RunError, match=r"is float32 \[1, 7, 8\], and its record says float32 \[1, 8, 7\]"):
        open_run(folder)["layer_2"][0]


def test_keys_that_a_later_version_adds_are_passed_over(tmp_path: Path) -> None:
    writer = generation(tmp_path)
    folder = writer.close()
    writer.records["layer_2"][0]["a_new_field"] = [1, {"x": None}]
    writer.write_metadata()
    manifest = writer.manifest("complete") | {"a_new_key": 1}
    (folder / "capture.json").write_text(json.dumps(manifest))
    assert len(open_run(folder)["layer_2"]) == 4


def test_opening_needs_neither_the_native_module_nor_torch(tmp_path: Path) -> None:
    folder = generation(tmp_path).close()
    program = (
        "import sys; sys.modules['torch'] = sys.modules['neuroscope_fast._core'] = None\n"
        "from neuroscope_fast.reader import open_run\nfrom neuroscope_fast.report import render\n"
        f"assert len(open_run({str(folder)!r}).records) == 8\n"
        f"assert render({str(folder / 'activation_capture.json')!r}).startswith('# Activation Capture')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
