"""A ring that there is no memory for is refused before the model runs."""

from __future__ import annotations

from pathlib import Path

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast import memory
from torch import nn


def test_the_machine_says_how_much_there_is() -> None:
    found = memory.available_bytes()
    assert found is not None
    assert 1 << 20 < found < 1 << 50


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 4 GiB, and a process three control groups down."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    4194304 kB\n")
    (tmp_path / "own").write_text("1:name=systemd:/old\n0::/slice/job/step\n")
    (tmp_path / "cgroup/slice/job/step").mkdir(parents=True)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    return tmp_path


def limit(folder: Path, most: str, used: int) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")


def test_the_tightest_limit_counts(system: Path) -> None:
    assert memory.available_bytes() == 4 << 30
    limit(system / "cgroup/slice/job/step", "max", 5)
    assert memory.available_bytes() == 4 << 30
    limit(system / "cgroup/slice", str(3 << 30), 1 << 30)
    assert memory.available_bytes() == 2 << 30
    limit(system / "cgroup/slice/job", str(1 << 30), 2 << 30)  # over it already
    assert memory.available_bytes() == 0


def test_a_system_that_does_not_say(system: Path) -> None:
    (system / "meminfo").write_bytes(b"\xff\xfe")
    (system / "own").unlink()
    assert memory.available_bytes() is None


def test_a_ring_larger_than_the_memory_is_refused(system: Path, tmp_path: Path) -> None:
    limit(system / "cgroup/slice", str(1 << 30), (1 << 30) - 100_000)
    model = nn.Sequential(nn.Linear(4, 4))
    place = {"layer_name": "0", "component": "mlp"}
    out = tmp_path / "run"
    capture = nsf.capture(model, [place], out=out, ring_bytes=1 << 20, block_bytes=4096)
    with pytest.raises(nsf.OptionError, match="no memory for a ring of 1048576 bytes: 100000 are available; lower"):
        capture.__enter__()
    assert not model[0]._forward_hooks
    assert "_compiled_call_impl" not in vars(model[0])
    assert not out.exists()
    with nsf.capture(model, [place], out=out, ring_bytes=1 << 16, block_bytes=4096):
        model(torch.ones(1, 2, 4))
