"""`nsf.recover`: runs whose process was killed, and recoveries that are killed too. At random: crash_harness.py."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast import repair, run_directory, shard_repair
from run_writer import RunWriter, journal_header, random_tensor
from test_reader import generation

FILE = "activations-float32-00000.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def steps(run: nsf.Run) -> dict[str, list[int]]:
    return {hook_id: [record.step for record in run[hook_id].records] for hook_id in run.hooks}


def killed(folder: Path) -> Path:
    return generation(folder).kill()


def open_quietly(folder: Path) -> nsf.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nsf.RunIncompleteWarning)
        return nsf.open(folder)


def test_a_killed_run_gets_all_its_files(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    before = open_quietly(folder)
    expected = {hook_id: [tensor.clone() for tensor in before[hook_id]] for hook_id in before.hooks}
    run = nsf.recover(folder)
    assert run.status == "interrupted"
    assert sorted(contents(folder)) == [
        "activation_capture.json",
        "activation_capture_format.md",
        FILE,
        "activations.safetensors.index.json",
        "capture.json",
    ]
    assert run.verify() == []
    for hook_id, tensors in expected.items():
        assert len(run[hook_id]) == len(tensors) > 0
        for a, b in zip(run[hook_id], tensors, strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))  # there are NaN among them
    index = json.loads((folder / "activations.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {FILE}
    assert len(index["weight_map"]) == run.stats.records == len(run.records)
    recovery = run.manifest.recovery
    assert recovery is not None
    assert recovery.lost == []
    assert recovery.shards == [FILE]


def test_a_second_recovery_changes_nothing(tmp_path: Path) -> None:
    nsf.recover(killed(tmp_path))
    before = contents(tmp_path)
    nsf.recover(tmp_path)
    assert contents(tmp_path) == before


def test_a_complete_run_is_left_alone_but_for_its_journals(tmp_path: Path) -> None:
    folder = generation(tmp_path).close()
    before = contents(folder)
    assert nsf.recover(folder).status == "complete"
    assert contents(folder) == before
    (folder / f"{FILE}.journal").write_bytes(b"left by a process that was killed as it removed them")
    nsf.recover(folder)
    assert contents(folder) == before


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_tensor_lost_in_the_middle_is_listed_and_never_given(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    whole = open_quietly(folder)
    ref = whole["layer_2"].records[1].data
    assert ref is not None
    source: Any = whole["layer_2"]._source
    flip(folder / f"{FILE}.partial", source.shard(FILE).entry(ref.key).begin)
    run = nsf.recover(folder)
    assert steps(run)["layer_2"] == [0, 2, 3]
    assert steps(run)["layer_10"] == [0, 1, 2, 3]
    recovery = run.manifest.recovery
    assert recovery is not None
    assert [(lost.file, lost.key) for lost in recovery.lost] == [(FILE, ref.key)]
    assert "not those that were written" in recovery.lost[0].reason
    assert run.verify() == []
    assert "1 tensors were lost" in (open_quietly(folder).notice or "")


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_a_cut_shard_gives_what_is_before_the_cut(kept: int, tmp_path: Path) -> None:
    folder = killed(tmp_path)
    partial = folder / f"{FILE}.partial"
    os.truncate(partial, kept)
    run = nsf.recover(folder)
    recovery = run.manifest.recovery
    assert recovery is not None
    count = len(run.records)
    assert count + len(recovery.lost) == 8
    assert all("had not reached the disk" in lost.reason for lost in recovery.lost)
    assert run.verify() == []


def test_a_shard_without_a_readable_journal_is_left_and_told_of(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    journal, partial = folder / f"{FILE}.journal", folder / f"{FILE}.partial"
    journal.write_bytes(journal.read_bytes()[:20])
    data = partial.read_bytes()
    run = nsf.recover(folder)
    recovery = run.manifest.recovery
    assert recovery is not None
    assert recovery.unreadable == [partial.name, journal.name]
    assert recovery.problems
    assert partial.read_bytes() == data
    assert run.records == []
    before = contents(folder)
    nsf.recover(folder)
    assert contents(folder) == before


def test_a_shard_that_was_just_being_created_goes(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    (folder / "activations-float32-00001.safetensors.partial").touch()
    (folder / "activations-float32-00002.safetensors.partial").touch()
    (folder / "activations-float32-00002.safetensors.journal").write_bytes(b"NSFJ")
    run = nsf.recover(folder)
    assert len(run.records) == 8
    assert run.manifest.recovery is not None
    assert run.manifest.recovery.unreadable == []
    assert not list(folder.glob("*.partial"))


def test_a_run_that_is_being_written_is_refused(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    before = contents(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(nsf.RunError, match="another process is writing to"):
            nsf.recover(folder)
    finally:
        os.close(descriptor)
    assert contents(folder) == before


def test_what_is_no_run_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(nsf.RunError, match=r"has no capture\.json"):
        nsf.recover(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_journal_damaged_in_the_middle_costs_no_byte(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    journal, partial = folder / f"{FILE}.journal", folder / f"{FILE}.partial"
    flip(journal, len(journal.read_bytes()) // 2)
    before, damaged = partial.read_bytes(), journal.read_bytes()
    run = nsf.recover(folder)
    assert 0 < len(run.records) < 8
    assert run.verify() == []
    after = (folder / FILE).read_bytes()
    assert after[8192:] == before[8192 : len(after)]
    assert len(before) - len(after) < 4096
    assert (folder / f"{FILE}.damaged-journal").read_bytes() == damaged
    recovery = run.manifest.recovery
    assert recovery is not None
    assert any("is damaged in the middle: it is kept as" in each for each in recovery.problems)


def test_an_old_partial_beside_a_published_shard_replaces_nothing(tmp_path: Path) -> None:
    old = killed(tmp_path / "old")
    folder = generation(tmp_path / "run").close("interrupted", "an exception")
    before = contents(folder)
    for ending in (".partial", ".journal"):
        (folder / (FILE + ending)).write_bytes((old / (FILE + ending)).read_bytes() + b"old")
    run = nsf.recover(folder)
    assert (folder / FILE).read_bytes() == before[FILE]
    assert len(run.records) == 8
    assert run.verify() == []
    recovery = run.manifest.recovery
    assert recovery is not None
    assert recovery.unreadable == [f"{FILE}.partial", f"{FILE}.journal"]
    assert (folder / f"{FILE}.partial").read_bytes().endswith(b"old")


@pytest.mark.parametrize(
    "name", ["thesis.md", FILE, "capture.json", "circuit_analysis_/x.json", "circuit_analysis_a.md"]
)
def test_a_manifest_cannot_name_the_file_that_is_overwritten(name: str, tmp_path: Path) -> None:
    folder = killed(tmp_path)
    (folder / "thesis.md").write_text("mine")
    manifest = json.loads((folder / "capture.json").read_text())
    (folder / "capture.json").write_text(json.dumps({**manifest, "metadata_file": name}))
    before = contents(folder)
    with pytest.raises(nsf.RunError, match=r"which is no metadata of a capture|not in its directory"):
        nsf.recover(folder)
    assert contents(folder) == before


def test_links_are_not_written_through(tmp_path: Path) -> None:
    folder, victim = killed(tmp_path / "run"), tmp_path / "victim"
    victim.write_bytes(b"x" * 100_000)
    (folder / "activation_capture.json.tmp").symlink_to(victim)
    nsf.recover(folder)
    assert victim.read_bytes() == b"x" * 100_000


def test_a_shard_with_another_name_is_not_changed(tmp_path: Path) -> None:
    folder, other = killed(tmp_path / "run"), tmp_path / "other"
    os.link(folder / f"{FILE}.partial", other)
    before = other.read_bytes()
    run = nsf.recover(folder)
    assert other.read_bytes() == before
    assert run.manifest.recovery is not None
    assert run.manifest.recovery.unreadable == [f"{FILE}.partial", f"{FILE}.journal"]


def two_dtypes(folder: Path) -> Path:
    writer = RunWriter(folder, ["a", "b"])
    for step in range(3):
        writer.add("a", random_tensor((1, 2, 4), "float32", step), step=step)
        writer.add("b", random_tensor((1, 2, 4), "bfloat16", step), step=step)
    return writer.kill()


@pytest.mark.parametrize("defect", ["gone", "no shard", "huge data start"])
def test_one_bad_shard_keeps_no_other_from_being_recovered(defect: str, tmp_path: Path) -> None:
    folder = two_dtypes(tmp_path)
    name = "activations-bfloat16-00000.safetensors"
    partial, journal = folder / f"{name}.partial", folder / f"{name}.journal"
    if defect == "gone":
        partial.unlink()
    elif defect == "no shard":
        partial.unlink()
        (folder / name).write_bytes(b"no shard at all")
    else:
        data = journal.read_bytes()
        journal.write_bytes(journal_header("bfloat16", data_start=1 << 32) + data[32:])
        os.truncate(partial, (1 << 32) + 8192)  # a hole: it takes no room
    run = nsf.recover(folder)
    assert [record.hook_id for record in run.records] == ["a"] * 3
    assert run.verify() == []
    recovery = run.manifest.recovery
    assert recovery is not None
    assert recovery.shards == [FILE]
    assert {lost.key for lost in recovery.lost} == {f"b/{step:06d}" for step in range(3)}
    assert recovery.problems
    assert f"{name}.journal" in recovery.unreadable
    before = set(contents_of_small(folder))
    nsf.recover(folder)
    assert set(contents_of_small(folder)) == before


def contents_of_small(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stat().st_size < 1 << 20}


def test_metadata_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    folder = generation(tmp_path).close("failed", "disk full")
    file = folder / "activation_capture.json"
    torn = file.read_bytes() + b"}"
    file.write_bytes(torn)
    (folder / f"{FILE}.journal").write_bytes(b"")  # there is something to recover
    run = nsf.recover(folder)
    assert len(run.records) == 8
    assert (folder / "activation_capture.json.unreadable").read_bytes() == torn
    assert run.manifest.recovery is not None
    assert "activation_capture.json.unreadable" in run.manifest.recovery.unreadable


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed(tmp_path)

    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_directory.fcntl, "flock", no_locks)
    before = contents(folder)
    with pytest.raises(nsf.RunError, match=r"file system without locks.*copy it to another one"):
        nsf.recover(folder)
    assert contents(folder) == before


def test_files_of_the_users_are_nobodys_business(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    for name in ("download.bin.partial", "activations-notes.partial", "my.journal"):
        (folder / name).touch()
    nsf.recover(folder)
    before = contents(folder)
    nsf.recover(folder)
    assert contents(folder) == before
    assert {"download.bin.partial", "activations-notes.partial", "my.journal"} <= set(before)


def test_the_index_names_scales_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    place = {"layer_name": "0", "component": "mlp"}
    for name in ("closed", "killed"):
        with nsf.capture(model, [place], out=tmp_path / name, dtype="int8") as capture, torch.no_grad():
            for step in range(5):
                model(torch.full((1, 3, 8), float(step)))
            capture.sync()
            if name == "killed":
                shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    nsf.recover(tmp_path / "copy")
    closed, recovered = (
        json.loads((tmp_path / name / "activations.safetensors.index.json").read_text()) for name in ("closed", "copy")
    )
    assert recovered == closed
    assert len(closed["weight_map"]) == 10


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class KillAt:
    """Ends everything at the n-th call that changes a file, before it or after it."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, after: bool):
        self.calls = 0
        self.at, self.after = at, after
        for module, name in [(os, "pwrite"), (os, "ftruncate"), (os, "fsync"), (os, "rename"), (os, "replace")]:
            patch.setattr(module, name, self._counted(getattr(module, name)))
        patch.setattr(Path, "unlink", self._counted(Path.unlink))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at and not self.after:
                raise Killed
            result = function(*args, **kwargs)
            if self.calls == self.at:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_recovery_that_is_killed_anywhere_is_finished_by_the_next(
    after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> Path:
        killed(folder)
        data = bytearray((folder / f"{FILE}.partial").read_bytes())
        data[-5000] ^= 1
        (folder / f"{FILE}.partial").write_bytes(data)
        return folder

    wanted = nsf.recover(broken(tmp_path / "undisturbed"))
    assert wanted.manifest.recovery is not None
    at = 1
    while True:
        folder = broken(tmp_path / str(at))
        with monkeypatch.context() as patch:
            kill = KillAt(patch, at, after=after)
            with contextlib.suppress(Killed):
                nsf.recover(folder)
        if kill.calls < at:
            break
        run = nsf.recover(folder)
        assert steps(run) == steps(wanted), at
        assert run.verify() == []
        recovery = run.manifest.recovery
        assert recovery is not None
        assert [(each.file, each.key) for each in recovery.lost] == [
            (each.file, each.key) for each in wanted.manifest.recovery.lost
        ], at
        assert recovery.acknowledged == wanted.manifest.recovery.acknowledged
        assert sorted(contents(folder)) == sorted(contents(tmp_path / "undisturbed")), at
        at += 1
    assert at > 12


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_repair.os, "ftruncate", full)
    with pytest.raises(nsf.RunError, match=r"float32-00000\.safetensors\.partial cannot be recovered: No space left"):
        nsf.recover(folder)
    monkeypatch.undo()
    assert len(nsf.recover(folder).records) == 8


def test_without_the_native_module_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed(tmp_path)
    monkeypatch.setattr(repair, "native_crc32c", lambda: None)
    with pytest.raises(nsf.RunError, match="recovering needs the native module"):
        nsf.recover(folder)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "neuroscope_fast", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    done = command("recover", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "(interrupted): 8 records whole" in done.stdout
    again = command("recover", str(folder), "--json")
    found = json.loads(again.stdout)
    assert (found["records"], found["lost"], found["status"]) == (8, [], "interrupted")
    complete = command("recover", str(generation(tmp_path / "complete").close()))
    assert "nothing to recover" in complete.stdout
    nothing = command("recover", str(tmp_path / "nowhere"))
    assert nothing.returncode == 1
    assert nothing.stderr.count("\n") == 1
