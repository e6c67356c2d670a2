"""bench/scale.py checks itself, runs, and fits an exponent to every part of a capture along every dimension."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"
PARTS = {"neuroscope-fast: passes", "clone hook: passes", "neuroscope-fast: entry", "neuroscope-fast: leaving"}


def test_a_quick_run(tmp_path: Path) -> None:
    written = tmp_path / "scale.json"
    folder = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, BENCH / "scale.py", "--quick", "--json", written, "--folder", folder],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(written.read_text())
    points = [section for section in results["sections"] if "x" in section]
    panels = {section["panel"]: section["x_label"] for section in points}
    assert list(panels) == ["hooks (disk)", "hidden (memory)", "sequence (memory)", "steps (disk)"]
    for section in points:
        on_disk = section["panel"].endswith("(disk)")
        names = {row["name"] for row in section["rows"]}
        assert names == PARTS | ({"neuroscope-fast: opening the run"} if on_disk else set())
        assert all({"median", "p20", "p80"} <= row.keys() for row in section["rows"])
    upper, whole = results["sections"][-2:]
    for section in (upper, whole):
        assert section["tolerance"] > 0
        named = {row["name"] for row in section["rows"] if "median" in row}
        for dimension in ("hooks", "hidden", "sequence", "steps"):
            assert f"{dimension}, neuroscope-fast: leaving" in named
    assert list(folder.iterdir()) == []


def test_exponents_are_those_of_the_costs(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("harness", "scale"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scale
    from harness import Row

    xs = [1, 10, 100, 1000, 10000]
    linear = [Row("linear", rounds=[100 + x, 200 + 2 * x]) for x in xs]
    square = [Row("square", rounds=[100 + x * x, 100 + x * x]) for x in xs]
    upper, whole = scale.fits("steps", xs, {"linear": linear, "square": square})
    assert [row.name for row in upper] == [row.name for row in whole] == ["steps, linear", "steps, square"]
    assert all(0.8 < slope < 1.01 for slope in upper[0].rounds)
    assert all(slope < 0.6 for slope in whole[0].rounds)
    assert all(1.9 < slope < 2.01 for slope in upper[1].rounds)
    assert "MORE THAN LINEAR" in upper[1].note
    assert "MORE" not in upper[0].note
