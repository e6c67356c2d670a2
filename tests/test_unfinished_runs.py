"""Opening a run that is still written, or was interrupted, or failed. What a killed one holds is in
test_recovery.
"""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from neuroscope_fast.reader import RunIncompleteWarning, open_run
from test_reader import generation


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """As the process that writes a run holds its directory."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_was_closed_early_says_so(status: str, tmp_path: Path) -> None:
    folder = generation(tmp_path).close(status, "no space left on device")
    with pytest.warns(RunIncompleteWarning, match=r"\(no space left on device\); 8 records are whole$") as caught:
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

    def lock_that_is_released(_: int, operation: int) -> None:
        assert operation == fcntl.LOCK_SH | fcntl.LOCK_NB
        writer.close()

    monkeypatch.setattr(fcntl, "flock", lock_that_is_released)
    assert open_run(folder).status == "complete"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    folder = generation(tmp_path).kill()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(RunIncompleteWarning, match="the process that wrote it is gone"):
        assert open_run(folder).status == "interrupted"


def test_the_warning_can_be_silenced(tmp_path: Path) -> None:
    folder = generation(tmp_path).kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunIncompleteWarning)
        run = open_run(folder)
    assert run.notice is not None
