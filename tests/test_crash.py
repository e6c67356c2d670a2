"""Recovered: captures killed at random times (crash_harness.py), and power cuts (test_power_cut_faults.cpp)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import neuroscope_fast as nsf
import pytest
from neuroscope_fast.manifest import Manifest, ManifestHook, encode_manifest
from neuroscope_fast.reader import DirectorySource

HERE = Path(__file__).parent
TRIALS = 200
CPP_TESTS = HERE.parent / "build/tests/tests/cpp/nsf_tests"


def test_killed_captures_keep_what_was_acknowledged() -> None:
    line = [sys.executable, str(HERE / "crash_harness.py"), "--trials", str(TRIALS), "--seed", "1"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(rf"{TRIALS} trials, (\d+) tensors whole, (\d+) lost\n", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 50 * TRIALS  # most were killed at work, not before it


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder for each state that a cut before a system call may leave; in each the list of what was promised."""
    if not CPP_TESTS.exists():
        assert os.environ.get("NSF_TESTS") != "REQUIRED", f"{CPP_TESTS} is not there"
        pytest.skip("the C++ tests are not built: make cpp-test")
    folder = tmp_path_factory.mktemp("images")
    done = subprocess.run(
        [CPP_TESTS, "--gtest_filter=*PowerCut*"],
        env={**os.environ, "NSF_POWER_CUT_IMAGES": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return sorted(folder.iterdir())


def bytes_of(dtype: str, step: int) -> bytes:
    """As in the C++ test."""
    size = (step * 1237 % 9000 + 1) * (4 if dtype == "float32" else 1)
    return bytes((i * 31 + step * 7 + i // 253) & 0xFF for i in range(size))


def test_power_cuts_are_recovered(images: list[Path]) -> None:
    assert len(images) > 400
    dtypes = ("uint8", "float32")
    expected = {f"{dtype}/{step:06d}": bytes_of(dtype, step) for dtype in dtypes for step in range(12)}
    manifest = Manifest(
        status="writing",
        created="2026-01-01T00:00:00",
        metadata_file="activation_capture.json",
        hooks={
            dtype: ManifestHook(layer_name=dtype, component="residual", module=dtype, output=stream)
            for stream, dtype in enumerate(dtypes)
        },
    )
    whole = 0
    for folder in images:
        promised = (folder / "promised").read_text().split()
        (folder / "promised").unlink()
        (folder / "capture.json").write_bytes(encode_manifest(manifest))
        run = nsf.recover(folder)
        recovery = run.manifest.recovery
        assert recovery is not None
        assert run.verify() == []
        refs = [record.data for record in run.records if record.data is not None]
        shards = DirectorySource(folder)
        found = {ref.key: bytes(shards.shard(ref.file).view(ref.key)) for ref in refs}
        assert set(promised) <= set(found), folder.name
        assert all(expected[key] == data for key, data in found.items()), folder.name
        assert recovery.acknowledged <= len(found), folder.name
        whole += len(found)
    assert whole > 4 * len(images)
