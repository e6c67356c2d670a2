"""bench/generate.py runs in its quick form: tokens and values are checked, both marks of every round are there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "generate.py"
OURS = ("neuroscope-fast, disk", "neuroscope-fast, disk, bfloat16", "neuroscope-fast, memory")
BY_HAND = ("clone hooks, save_file", "clone hooks, torch.save", "clone hooks, 8 writer threads")
PEERS = ("nnsight", "TransformerLens", "output_hidden_states")


def test_quick(tmp_path: Path) -> None:
    disk, scratch = tmp_path / "disk", tmp_path / "scratch"
    disk.mkdir()
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--json", tmp_path / "generate.json", "--folder", disk],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads((tmp_path / "generate.json").read_text())
    sections = {section["name"]: section for section in results["sections"]}
    assert any(name.startswith("disk (") for name in sections)
    for name, section in sections.items():
        rows = {row["name"]: row for row in section["rows"]}
        raced = {"bare", *PEERS} if name.startswith("peers, ") else {"bare", *OURS, *BY_HAND}
        assert raced <= rows.keys()
        for row in rows.values():
            if "refused" in row:
                assert row["name"] in PEERS
                assert row["refused"].startswith("not installed")
                continue
            assert row["median"] > 0
            assert row["name"] == "bare" or row["ratio_to"]["bare"]["rounds"] == row["rounds"]
        if not name.startswith("peers, "):
            assert set(section["stages_ms"]) == set(OURS)
            assert set(section["stages_ms"][OURS[0]]) == {"entering", "generating", "leaving"}
        if name.endswith("until generate returns"):
            durable = sections[name.replace("generate returns", "all is durable")]
            for one, other in zip(section["rows"], durable["rows"], strict=True):
                assert "refused" in one or one["median"] <= other["median"]
    assert not list(disk.iterdir()), "it leaves nothing behind"
