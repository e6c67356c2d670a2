"""bench/generate.py runs in its quick form: tokens and values are checked, both marks of every round are there."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from generate import median_interval

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
        kind = name.partition(", ")[0]
        raced = {"peers": PEERS, "alone": OURS[:1]}.get(kind, (*OURS, *BY_HAND))
        assert {"bare", *raced} <= rows.keys()
        assert ("bare, again" in rows) == (kind != "peers")
        for row in rows.values():
            if "refused" in row:
                assert row["name"] in PEERS
                assert row["refused"].startswith("not installed")
                continue
            assert row["median"] > 0
            assert row["name"] == "bare" or row["ratio_to"]["bare"]["rounds"] == row["rounds"]
        if not name.startswith("peers, "):
            assert set(section["stages_ms"]) == set(raced) & set(OURS)
            assert set(section["stages_ms"][OURS[0]]) == {"entering", "generating", "leaving"}
        if name.endswith("until generate returns"):
            durable = sections[name.replace("generate returns", "all is durable")]
            for one, other in zip(section["rows"], durable["rows"], strict=True):
                assert "refused" in one or one["median"] <= other["median"]
    assert not list(disk.iterdir()), "it leaves nothing behind"


@pytest.mark.parametrize("count", [6, 7, 12, 13])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    """Every way in which values can fall below (0) and above (1) a median: the interval misses it in 5 % at most."""
    missed = 0
    for draws in itertools.product((0, 1), repeat=count):
        low, high = median_interval(draws) or (0, 1)
        missed += low == high
    assert 0 < missed / 2**count <= 0.05
    assert missed / 2**count > 0.005, "and is no wider than that asks for"


def test_the_interval_of_few_values_is_none() -> None:
    assert [median_interval([1.0] * count) for count in range(6)] == [None] * 6
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert median_interval([float(value) for value in range(1, 101)]) == (40.0, 61.0)
