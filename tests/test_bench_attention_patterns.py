"""bench/attention_patterns.py runs, checks itself first, and says what it does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "attention_patterns.py"


def test_a_short_row(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCH, "--lengths", "128", "--rounds", "1", "--out", tmp_path / "row.json"],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "row.json").read_text())
    assert results["largest_difference"] < 1e-5
    [row] = results["rows"]
    assert row["tokens"] == 128
    assert row == json.loads(done.stdout)
    for contestant in ("bare", "capture", "eager"):
        assert row[contestant]["seconds"] > 0
    assert row["seconds_capture_to_eager"][1] > 0
