"""The beginning of a run becomes durable while the model runs: what waits for it, and what happens when it cannot."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast import background_sync
from neuroscope_fast.background_sync import BackgroundSync
from neuroscope_fast.manifest import sync_folder
from torch import nn

HOOK = {"layer_name": "0", "component": "mlp", "hook_id": "x"}


class Disk:
    """Holds every synchronisation of the beginning back until it is let go, and can then refuse it."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.synced: list[Path] = []
        self.error: OSError | None = None

    def sync(self, path: Path) -> None:
        assert self.may_go.wait(60)
        if self.error is not None:
            raise self.error
        sync_folder(path)
        self.synced.append(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(background_sync, "sync_folder", disk.sync)
    yield disk
    disk.may_go.set()


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4))


X = torch.ones(1, 2, 4)


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "capture.json").read_bytes())
    return found


def test_the_model_runs_before_the_disk_answers(model: nn.Module, tmp_path: Path, disk: Disk) -> None:
    out = tmp_path / "new" / "run"
    with nsf.capture(model, [HOOK], out=out) as cap:
        model(X)
        assert disk.synced == []
        assert status(out)["status"] == "writing"
        disk.may_go.set()
        cap.sync()
        assert disk.synced == [tmp_path, tmp_path / "new", out / "capture.json", out]
    assert status(out)["status"] == "complete"


@pytest.mark.parametrize("leave", [False, True])
def test_sync_and_the_end_wait(leave: bool, model: nn.Module, tmp_path: Path, disk: Disk) -> None:
    cap = nsf.capture(model, [HOOK], out=tmp_path / "run")
    cap.__enter__()
    model(X)
    thread = threading.Thread(target=(lambda: cap.__exit__(None, None, None)) if leave else cap.sync)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    disk.may_go.set()
    thread.join()
    cap.__exit__(None, None, None)
    assert cap.result.status == "complete"


@pytest.mark.parametrize("options", [{"durability": "1MiB"}, {"durability": "5s"}, {"shard_bytes": 1 << 20}])
def test_where_tensors_are_acknowledged_soon_the_beginning_is_durable_first(
    options: dict[str, Any], model: nn.Module, tmp_path: Path, disk: Disk
) -> None:
    disk.may_go.set()
    with nsf.capture(model, [HOOK], out=tmp_path / "run", **options):
        assert disk.synced == [tmp_path, tmp_path / "run" / "capture.json", tmp_path / "run"]
        model(X)


def test_a_disk_that_refuses_fails_the_run_and_what_there_is_is_kept(
    model: nn.Module, tmp_path: Path, disk: Disk
) -> None:
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    disk.may_go.set()
    cap = nsf.capture(model, [HOOK], out=tmp_path / "run")
    cap.__enter__()
    expected = model(X)
    with pytest.raises(nsf.CaptureError, match=r"^cannot write .*: Input/output error"):
        cap.sync()
    with pytest.raises(nsf.CaptureError, match=r"^cannot write .*: Input/output error"):
        cap.__exit__(None, None, None)
    assert status(tmp_path / "run")["status"] == "failed"
    assert torch.equal(cap.result["x"][0], expected)


@pytest.mark.usefixtures("disk")
def test_a_disk_that_does_not_answer_is_given_up(model: nn.Module, tmp_path: Path) -> None:
    cap = nsf.capture(model, [HOOK], out=tmp_path / "run", patience=0.2)
    cap.__enter__()
    model(X)
    with pytest.raises(nsf.CaptureError, match=r"is not durable after 0\.2 s: the disk or the network does not answer"):
        cap.__exit__(None, None, None)
    assert not model[0]._forward_hooks
    assert status(tmp_path / "run")["status"] == "writing"  # nothing more is written to such a disk


def test_an_interrupt_while_the_end_waits_is_raised_when_all_is_written(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = nsf.capture(model, [HOOK], out=tmp_path / "run")
    cap.__enter__()
    model(X)
    wait, interrupts = BackgroundSync.wait, iter([KeyboardInterrupt])

    def interrupted(self: BackgroundSync, patience: float = 0) -> None:
        for error in interrupts:
            raise error
        wait(self, patience)

    monkeypatch.setattr(BackgroundSync, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cap.__exit__(None, None, None)
    assert status(tmp_path / "run")["status"] == "interrupted"
    assert len(cap.result["x"].records) == 1


def test_what_replaces_an_earlier_manifest_is_durable_at_once(model: nn.Module, tmp_path: Path, disk: Disk) -> None:
    """A resumed run's: until the new one is whole on the disk, the old one must be."""
    out = tmp_path / "run"
    disk.may_go.set()
    with nsf.capture(model, [HOOK], out=out):
        model(X)
    disk.synced.clear()
    disk.may_go.clear()
    with nsf.capture(model, [HOOK], out=out, resume=True):
        model(X)
    assert disk.synced == []  # it was not left to the background
