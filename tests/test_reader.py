"""Opening a run, in whatever state it is, and what is no run."""

import fcntl
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from neuroscope_fast.errors import RunError
from neuroscope_fast.reader import HookNotCaptured, Run, RunIncompleteWarning, open_run
from neuroscope_fast.records import ActivationCapture, CircuitAnalysis
from run_writer import NAMES, RunWriter, bytes_of, random_tensor


def generation(folder: Path, steps: int = 4, **options: object) -> RunWriter:
    """Two hooks over a prefill of 7 tokens and some decode steps."""
    writer = RunWriter(folder, ["layer_2", "layer_10"], **options)  # type: ignore[arg-type]
    for step in range(steps):
        for seed, hook in enumerate(writer.hooks):
            if hook not in writer.shared:
                writer.add(
                    hook, random_tensor((1, 1 if step else 7, 8), "float32", 10 * step + seed), step=step
                )
    return writer


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """As the process that writes a run holds its directory."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


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


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_was_closed_early_says_so(status: str, tmp_path: Path) -> None:
    folder = generation(tmp_path).close(status, "no space left on device")
    with pytest.warns(
        RunIncompleteWarning, match=r"\(no space left on device\); 8 records are whole$"
    ) as caught:
        run = open_run(folder)
    assert [str(warning.message) for warning in caught] == [run.notice]
    assert caught[0].filename == __file__
    assert run.status == status
    assert len(run["layer_2"].cat()[0]) == 10


def test_a_failed_run_with_an_open_shard_gives_both_parts(tmp_path: Path) -> None:
    whole, cut = generation(tmp_path / "whole"), generation(tmp_path / "cut")
    file = "activations-float32-00000.safetensors"
    for item in cut.shards[file][5:]:
        cut.records[item.hook_id].pop()
    whole.kill()
    for ending in (".partial", ".journal"):
        (tmp_path / "whole" / (file + ending)).rename(tmp_path / "cut" / (file + ending))
    cut.write_metadata()
    cut.write_manifest("failed", "disk full", checksums=False)
    with pytest.warns(RunIncompleteWarning, match="failed \\(disk full\\); 8 records are whole"):
        run = open_run(tmp_path / "cut")
    assert [record.step for record in run["layer_2"].records] == [0, 1, 2, 3]
    assert run["layer_10"].cat().shape == (1, 10, 8)


def test_a_failed_run_whose_metadata_is_torn_is_rebuilt(tmp_path: Path) -> None:
    folder = generation(tmp_path).close("failed", "disk full")
    file = folder / "activation_capture.json"
    file.write_text(file.read_text()[:99])
    with pytest.warns(RunIncompleteWarning, match="8 records are whole"):
        assert len(open_run(folder).records) == 8


def test_a_run_that_is_still_written(tmp_path: Path) -> None:
    folder = generation(tmp_path).kill()
    with (
        locked(folder),
        pytest.warns(RunIncompleteWarning, match=r"is still being written; 8 records are whole$"),
    ):
        run = open_run(folder)
    assert run.status == "writing"
    assert run["layer_2"].cat().shape == (1, 10, 8)


def test_a_shard_that_is_published_while_the_run_is_open(tmp_path: Path) -> None:
    writer = generation(tmp_path)
    folder = writer.kill()
    with locked(folder), pytest.warns(RunIncompleteWarning):
        run = open_run(folder)
    for file in folder.glob("activations-*"):
        file.unlink()
    writer.close()
    assert run["layer_2"].cat().shape == (1, 10, 8)


def test_a_run_that_is_closed_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = generation(tmp_path)
    folder = writer.kill()

    def lock_that_is_released(descriptor: int, operation: int) -> None:
        assert operation == fcntl.LOCK_SH | fcntl.LOCK_NB
        writer.close()

    monkeypatch.setattr(fcntl, "flock", lock_that_is_released)
    assert open_run(folder).status == "complete"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    folder = generation(tmp_path).kill()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(RunIncompleteWarning, match="the process that wrote it is gone"):
        assert open_run(folder).status == "interrupted"


def test_opening_needs_neither_the_native_module_nor_torch(tmp_path: Path) -> None:
    folder = generation(tmp_path).close()
    program = (
        "import sys; sys.modules['torch'] = sys.modules['neuroscope_fast._core'] = None\n"
        "from neuroscope_fast.reader import open_run\nfrom neuroscope_fast.report import render\n"
        f"assert len(open_run({str(folder)!r}).records) == 8\n"
        f"assert render({str(folder / 'activation_capture.json')!r}).startswith('# Activation Capture')\n"
    )
    package = Path(sys.modules[Run.__module__].__file__ or "").parent
    # The package's __init__ may import what it likes: what is checked is that these modules do not.
    program = f"import types; p = types.ModuleType('neuroscope_fast'); p.__path__ = [{str(package)!r}]\n" + (
        f"import sys; sys.modules['neuroscope_fast'] = p\n{program}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_the_warning_can_be_silenced(tmp_path: Path) -> None:
    folder = generation(tmp_path).kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunIncompleteWarning)
        run = open_run(folder)
    assert run.notice is not None
