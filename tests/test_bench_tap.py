"""bench/tap.py runs in its quick form, checks its contestants first, and says what it does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "tap.py"
OURS = "neuroscope-fast, memory"


def test_quick(tmp_path: Path) -> None:
    disk, scratch = tmp_path / "disk", tmp_path / "scratch"
    disk.mkdir()
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--json", tmp_path / "tap.json", "--folder", disk],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads((tmp_path / "tap.json").read_text())
    assert results["quick"]
    light, *llamas = results["sections"]
    assert len(llamas) == 2
    for section in results["sections"]:
        assert section["bare_pass_ms"]["bare"]["median"] > 0
        rows = {row["name"]: row for row in section["rows"]}
        assert "bare" not in rows, "what costs are counted from has no cost"
        for row in rows.values():
            if "refused" in row:
                assert row["refused"].startswith("not installed"), row
            else:
                assert row["p20"] <= row["median"] <= row["p80"]
        assert {"no-op hook", "clone hook", OURS, "nnsight"} <= rows.keys()
        assert "note" not in rows["clone hook"], "a clone is a copy"
        assert "note" not in rows[OURS], "a capture is a copy"
    ours = next(row for row in light["rows"] if row["name"] == OURS)
    assert {"no-op hook", "clone hook"} <= ours["ratio_to"].keys()
    for section in llamas:
        rows = {row["name"]: row for row in section["rows"]}
        assert {"TransformerLens", "output_hidden_states"} <= rows.keys()
        assert rows["output_hidden_states"]["note"].startswith("25 tensors, the residual stream alone")
    assert not list(disk.iterdir()), "it leaves nothing behind"
