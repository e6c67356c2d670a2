"""Feature detection keeps memory for the neurons, not for the run."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.analysis.features import detect_features
from torch import nn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WIDTH, LENGTH = 512, 1 << 16
RUN = WIDTH * LENGTH * 4  # bytes: 128 MiB
LIMIT = 48 << 20


def anonymous() -> int:
    """Bytes of this process that are in memory and of no file: pages of mapped shards are not among them."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak_of(work: Callable[[], Any]) -> int:
    """By how much the anonymous memory grew at most while `work` ran, looked at every millisecond."""
    done = threading.Event()
    before = anonymous()
    most = [before]

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return most[0] - before


class Through(nn.Module):
    """Gives on what it gets, so that a hook captures it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mlp(hidden_states)
        return result


@pytest.mark.parametrize(("dtype", "records"), [("float32", 1), ("float32", 16), ("int8", 4)])
def test_memory_is_bounded(dtype: str, records: int, tmp_path: Path) -> None:
    """One record of the whole run, or several; int8 records are not made float32 as a whole either."""
    hook = {"layer_name": "mlp", "component": "mlp", "hook_id": "h", "dtype": dtype}
    generator = torch.Generator().manual_seed(0)
    model = Through()
    with nsf.capture(model, [hook], out=tmp_path / "run") as cap:
        for number in range(records):
            if number:
                cap.next_prompt()
            model(torch.randn(1, LENGTH // records, WIDTH, generator=generator))
    run = nsf.open(tmp_path / "run")
    found: list[Any] = []
    peak = peak_of(lambda: found.append(detect_features(run, ["h"])))
    assert found[0].layers[0].positions == LENGTH - records
    assert peak < LIMIT < RUN // 2
