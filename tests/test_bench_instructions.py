"""bench/instructions.py counts the instructions of each thread of a capture; how it reads callgrind's profiles."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from test_bench_questions import BENCH, run_quick

spec = importlib.util.spec_from_file_location("callgrind_profiles", BENCH / "callgrind.py")
assert spec is not None
assert spec.loader is not None
callgrind = importlib.util.module_from_spec(spec)
spec.loader.exec_module(callgrind)

PROFILE = """# callgrind format
events: Ir
summary: 145

fn=(1) main
12 30
+1 5
cfn=(2) copy
calls=2 7
* 100
fn=(2)
7 100
fi=(4) other.h
-2 10

totals: 145
"""
PARTS = ["taps: casts and copies", "taps: the rest", "checksum thread", "writer thread", "all threads", "memcpy"]


def test_what_a_function_calls_is_not_its_own() -> None:
    assert callgrind.functions(PROFILE) == {"main": 35, "copy": 110}


def test_a_profile_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(callgrind.CallgrindError, match="145 instructions, and says that it has 146"):
        callgrind.functions(PROFILE.replace("totals: 145", "totals: 146"))


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(
    shutil.which("cmake") is None and not (Path(sys.executable).parent / "cmake").exists(),
    reason="cmake is not installed",
)
@pytest.mark.skipif(not (BENCH.parent / "csrc").is_dir(), reason="there are no sources to build")
def test_quick(tmp_path) -> None:
    results = run_quick("instructions", tmp_path)
    sections = {section["name"]: section for section in results["sections"]}
    assert len(sections) == 8
    for name, section in sections.items():
        rows = {row["name"]: row for row in section["rows"]}
        assert all("refused" not in row for row in rows.values()), rows
        figures = {part: rows[part]["median"] for part in PARTS}
        assert min(figures.values()) > 0
        assert sum(figures[part] for part in PARTS[:4]) == pytest.approx(figures["all threads"], rel=0.05)
        assert 0 <= rows["plain write"]["median"] < figures["memcpy"]
        assert set(section["functions"]) == {"taps", "checksum thread", "writer thread"}
        if name.startswith("float32 → float32"):
            assert section["unit"] == "instructions a stored byte"
            assert figures["taps: casts and copies"] == pytest.approx(figures["memcpy"], rel=0.1), "it is a memcpy"
    short, long = (sections[f"64 float32 a record, {way}, memory"] for way in ("try_submit", "submit"))
    assert short["rows"][1]["median"] < long["rows"][1]["median"], "the short way is shorter"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
