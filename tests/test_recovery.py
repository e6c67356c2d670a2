"""A run that was killed gives every record that is whole, and says what is not."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from neuroscope_fast.errors import RunError
from neuroscope_fast.manifest import decode_manifest
from neuroscope_fast.reader import Run, RunIncompleteWarning, open_run
from neuroscope_fast.records import ActivationCapture, CircuitAnalysis, Record
from neuroscope_fast.recovery import merge, recover
from run_writer import RunWriter, bytes_of, crc32c, journal_header, random_tensor

FILE = "activations-float32-00000.safetensors"


@pytest.fixture(params=["native", "pure"], autouse=True)
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without the native module, of which only the checksum is used."""
    there = request.param == "native"
    module = SimpleNamespace(crc32c=crc32c) if there else None
    monkeypatch.setitem(sys.modules, "neuroscope_fast._core", module)
    return there


def steps(folder: Path, count: int = 4, roll_over_at: int | None = None, **options: object) -> RunWriter:
    writer = RunWriter(folder, ["a", "b"], **options)  # type: ignore[arg-type]
    for step in range(count):
        if step == roll_over_at:
            writer.roll_over("float32")
        for seed, hook in enumerate(hook for hook in writer.hooks if hook not in writer.shared):
            writer.add(hook, random_tensor((1, 2, 4), "float32", 10 * step + seed), step=step)
    return writer


def open_killed(folder: Path) -> Run:
    with pytest.warns(RunIncompleteWarning, match="was interrupted: the process that wrote it is gone") as caught:
        run = open_run(folder)
    assert run.status == "interrupted"
    assert str(caught[0].message) == run.notice
    return run


def test_a_killed_run_has_the_records_of_a_complete_one(tmp_path: Path, native: bool) -> None:
    whole, killed = steps(tmp_path / "whole"), steps(tmp_path / "killed")
    run = open_killed(killed.kill())
    assert run.notice is not None
    whole_text = "8 records are whole" + ("" if native else ", their checksums not looked at")
    assert f"{whole_text}; `neuroscope-fast recover {tmp_path / 'killed'}` makes it" in run.notice
    complete = open_run(whole.close())
    assert run.records == complete.records
    assert all(torch.equal(run[hook].cat(), complete[hook].cat()) for hook in run.hooks)
    assert isinstance(run.metadata, ActivationCapture)
    assert run.metadata.timestamp == "2026-01-02T03:04:05.678901"
    assert [asked.hook_id for asked in run.metadata.hook_configurations] == ["a", "b"]


def test_published_and_open_shards_together(tmp_path: Path) -> None:
    run = open_killed(steps(tmp_path, roll_over_at=2).kill())
    assert (tmp_path / FILE).exists()
    assert [record.step for record in run["a"].records] == [0, 1, 2, 3]
    assert run["a"].cat().shape == (1, 8, 4)


def test_the_name_of_the_analysis_is_kept(tmp_path: Path) -> None:
    metadata = open_killed(steps(tmp_path, analysis="flow").kill()).metadata
    assert isinstance(metadata, CircuitAnalysis)
    assert (metadata.analysis_name, metadata.hooks_used) == ("flow", 2)


def test_hooks_that_share_a_tensor(tmp_path: Path) -> None:
    run = open_killed(steps(tmp_path, shared={"b": "a"}).kill())
    assert [record.hook_id for record in run["b"].records] == ["b"] * 4
    assert run["b"].records[0].data == run["a"].records[0].data


def test_prompts_calls_inputs_and_notes(tmp_path: Path) -> None:
    whole = RunWriter(tmp_path / "whole", ["h"])
    killed = RunWriter(tmp_path / "killed", ["h"])
    for writer in (whole, killed):
        for prompt in range(2):
            for step in range(2):
                for call in range(2):
                    note = {"positions": [step + 3], "real_tokens": [[0, 1], []]} if prompt else None
                    facts = {"prompt": prompt, "step": step, "call": call, "note": note, "source": "bfloat16"}
                    writer.add("h", torch.zeros(2, 1, 4), is_input=True, **facts)  # type: ignore[arg-type]
                    writer.add("h", torch.ones(2, 1, 4), **facts)  # type: ignore[arg-type]
    run = open_killed(killed.kill())
    assert run.records == open_run(whole.close()).records
    assert run["h"].records[-1].positions == [4]
    assert run["h"].records[-1].real_tokens == [[0, 1], []]
    assert run["h"].records[-1].source_dtype == "bfloat16"
    assert len(run["h"].inputs) == len(run["h"].outputs) == 8


def test_int8_records_need_their_scales(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    for step in range(3):
        writer.add("h", torch.ones(2, 4, dtype=torch.int8), step=step, source="float32", scale=torch.ones(2))
    writer.shards[FILE].pop()  # the scales of the last step were still in the ring
    run = open_killed(writer.kill())
    assert run.notice is not None
    assert "1 int8 records are left out, their scales are not there" in run.notice
    assert [tensor.dtype for tensor in run["h"]] == [torch.float32] * 2


def test_int8_that_the_model_computed_needs_none(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    writer.add("h", torch.ones(2, 4, dtype=torch.int8))
    assert open_killed(writer.kill())["h"][0].dtype == torch.int8


def test_a_cut_at_every_part_of_the_journal(tmp_path: Path) -> None:
    folder = steps(tmp_path / "run").kill()
    journal = folder / (FILE + ".journal")
    data = journal.read_bytes()
    counts = []
    for length in range(0, len(data) + 1, 7):
        journal.write_bytes(data[:length])
        run = open_killed(folder)
        for seed, hook in enumerate(run.hooks):
            for record, tensor in zip(run[hook].records, run[hook], strict=True):
                written = random_tensor((1, 2, 4), "float32", 10 * record.step + seed)
                assert bytes_of(tensor) == bytes_of(written)
        counts.append(len(run.records))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] >= 7


def test_a_shard_that_is_shorter_than_its_journal_says(tmp_path: Path) -> None:
    folder = steps(tmp_path).kill()
    partial = folder / (FILE + ".partial")
    partial.write_bytes(partial.read_bytes()[: 8192 + 32 * 5 + 1])
    run = open_killed(folder)
    assert run.notice is not None
    assert f"{FILE}.partial is cut short: 3 records of its journal are not in it" in run.notice
    assert len(run.records) == 5
    assert len(list(run["a"])) == 3


def test_bytes_that_never_reached_the_disk_are_left_out(tmp_path: Path, native: bool) -> None:
    folder = steps(tmp_path).kill()
    partial = folder / (FILE + ".partial")
    data = bytearray(partial.read_bytes())
    data[8192 + 32 * 6 :] = bytes(len(data) - 8192 - 32 * 6)  # a power cut: the pages were not written
    partial.write_bytes(data)
    run = open_killed(folder)
    assert run.notice is not None
    assert ("holds 2 records whose checksum does not agree" in run.notice) is native
    assert ("their checksums not looked at" in run.notice) is not native
    assert len(run.records) == (6 if native else 8)


@pytest.mark.parametrize(
    ("ending", "content", "problem"),
    [
        (".journal", b"", "cut short"),
        (".journal", bytes(4096), "no valid journal header"),
        (".journal", None, "has no journal that can be read"),
        (".partial", None, "is gone"),
        (".partial", b"", "is cut short: 8 records"),
    ],
)
def test_what_is_left_of_a_shard_that_had_just_been_opened(
    ending: str, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    folder = steps(tmp_path).kill()
    file = folder / (FILE + ending)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    run = open_killed(folder)
    assert run.notice is not None
    assert problem in run.notice
    assert "\n" not in run.notice
    assert run.records == []


def test_a_published_shard_that_is_torn_does_not_hide_the_rest(tmp_path: Path) -> None:
    folder = steps(tmp_path, roll_over_at=2).kill()
    shard = folder / FILE
    shard.write_bytes(shard.read_bytes()[:-1])
    run = open_killed(folder)
    assert run.notice is not None
    assert f"{shard} is no whole shard" in run.notice
    assert [record.step for record in run["a"].records] == [2, 3]


def test_an_unknown_journal_version_is_refused(tmp_path: Path) -> None:
    folder = steps(tmp_path).kill()
    (folder / (FILE + ".journal")).write_bytes(journal_header("float32", version=2))
    with pytest.raises(RunError, match="version 2"):
        open_run(folder)


def test_killed_between_publishing_and_removing_the_journal(tmp_path: Path) -> None:
    note = {"real_tokens": [[1, 2]]}
    writer = RunWriter(tmp_path / "run", ["h"])
    writer.add("h", torch.ones(1, 2, 4), note=note, source="float64")
    folder = writer.kill()
    closed = RunWriter(tmp_path / "closed", ["h"])
    closed.add("h", torch.ones(1, 2, 4))
    closed.close()
    (folder / (FILE + ".partial")).unlink()
    shutil.copy(tmp_path / "closed" / FILE, folder / FILE)
    (record,) = open_killed(folder).records
    assert record.real_tokens == [[1, 2]]
    assert record.source_dtype == "float64"


def test_tensors_of_no_hook_and_unknown_positions_are_said(tmp_path: Path) -> None:
    writer = steps(tmp_path)
    folder = writer.kill()
    manifest = decode_manifest((folder / "capture.json").read_bytes())
    del manifest.hooks["b"]
    manifest.hooks["a"].positions = "last"
    found = recover(folder, manifest, published=True)
    assert found.problems == [
        "4 tensors belong to no hook of the manifest",
        "which positions a stored is not known",
    ]
    assert list(found.activations) == ["a"]


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    folder = steps(tmp_path).kill()
    (folder / "model.safetensors").write_bytes(b"not ours")
    (folder / "activations-notes.txt").write_text("nor this")
    assert len(open_killed(folder).records) == 8


def test_merging_keeps_what_the_metadata_says() -> None:
    known = Record("h", "l", "residual", [1], "float32", False, step=1, positions=[4])
    again = Record("h", "l", "residual", [1], "float32", False, step=1)
    first, inside = (Record("h", "l", "residual", [1], "float32", side, step=0) for side in (False, True))
    assert merge([known], [again, first, inside]) == [inside, first, known]
