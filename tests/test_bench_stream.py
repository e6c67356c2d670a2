"""bench/stream.py checks itself, runs, gives every row its figures, and leaves nothing on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "stream.py"


def test_a_quick_run(tmp_path: Path) -> None:
    written = tmp_path / "stream.json"
    folder = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--json", written, "--folder", folder],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(written.read_text())
    assert results["quick"] is True
    sections = {section["name"]: section for section in results["sections"]}
    for name in ("float32", "float32 stored as bfloat16"):
        rates = {row["name"]: row for row in sections[name]["rows"]}
        assert sections[name]["stored_bytes"] > 0
        captured = {name: row for name, row in rates.items() if name.startswith("neuroscope-fast")}
        assert len(captured) == 2
        assert rates["buffered"]["median"] > 0
        for row in rates.values():
            # tmp_path may lie on a file system that has no O_DIRECT.
            assert row.get("median", 0) > 0 or row["refused"] == "the file system has no O_DIRECT"
        for row in captured:
            series = sections[name]["resident_mib_over_time"][row]
            assert len(series) >= 2
            assert series[-1][0] > 0
            assert sections[name]["counters"][row]["bytes_written"] == sections[name]["stored_bytes"]
        memory = sections[f"{name}: peak resident memory above the model's"]["rows"]
        assert [row["name"] for row in memory] == list(captured)
        cpu = {row["name"] for row in sections[f"{name}: CPU time"]["rows"] if row["median"] >= 0}
        assert {f"{row}: {part}" for row in captured for part in ("checks and writes", "taps")} <= cpu
    assert list(folder.iterdir()) == []
