"""The benchmarks of casts, GPUs, metadata and reading run anywhere, check themselves first, and say what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
KEY_ROWS = {
    "cast": [
        ("float32 → bfloat16, 64 KiB, contiguous", "neuroscope-fast"),
        ("float32 → int8, 64 KiB, contiguous", "neuroscope-fast"),
        ("float64 → float32, 1 MiB, contiguous", "torch"),
        ("float32 → bfloat16, 1 MiB, transposed", "neuroscope-fast"),
    ],
    "gpu": [
        ("decode, batch 1", "nsf disk"),
        ("decode, batch 4", "nsf memory"),
        ("prefill, 32 tokens", "hooks .clone()"),
    ],
    "metadata": [
        ("encoded, 1,000 records", "neuroscope-fast"),
        ("written, 1,000 records", "json"),
        ("opened, 1,000 records", "neuroscope-fast, open"),
        ("other files of a run, 1,000 records", "report rendered"),
        ("resident rise, 1,000 records", "neuroscope-fast, open"),
    ],
    "read": [
        ("warm, prefill: 8 of 8 tensors of 128 KiB", "neuroscope-fast, open"),
        ("warm, decode: 1 of 128 tensors of 2 KiB", "torch.load, mmap"),
    ],
}


def run_quick(question: str, folder: Path, *more: str | Path) -> dict[str, Any]:
    path = folder / "results.json"
    done = subprocess.run(
        [sys.executable, BENCH / f"{question}.py", "--quick", "--folder", folder, "--json", path, *more],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("question", KEY_ROWS)
def test_quick(question: str, tmp_path: Path) -> None:
    results = run_quick(question, tmp_path)
    assert results["question"] == question
    sections = {section["name"]: {row["name"]: row for row in section["rows"]} for section in results["sections"]}
    for rows in sections.values():
        for row in rows.values():
            if "refused" in row:
                assert row["refused"] in ("not installed", "the file system keeps its pages in memory")
            else:
                assert 0 < row["p20"] <= row["median"] <= row["p80"]
    for section, name in KEY_ROWS[question]:
        assert "refused" not in sections[section][name]
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plot_of_dots(tmp_path: Path) -> None:
    run_quick("cast", tmp_path, "--plot", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
