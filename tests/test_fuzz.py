"""Each reader is fed with changed files: for a moment with seeded changes, and where atheris is there, guided by what
code they reach. tests/fuzz/fuzz_readers.py says how to do it for longer.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import fuzz_readers
import pytest
from fuzz_readers import SEEDS, TARGETS
from mutations import mutate

DRIVER = Path(fuzz_readers.__file__)
INPUTS = {"run": 100, "metadata": 1000, "spec": 1500}
SECONDS = 8


def seeds_of(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SEEDS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_themselves(target: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds_of(target):
            TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
def test_changed_seeds(target: str) -> None:
    """The same changes each time."""
    seeds = seeds_of(target)
    chance = random.Random(zlib.crc32(target.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(INPUTS.get(target, 3000)):
            changed = mutate(chance, chance.choice(seeds), seeds)
            try:
                TARGETS[target](changed)
            except BaseException as error:
                error.add_note(f"target {target}, input {changed!r}") if hasattr(error, "add_note") else None
                raise


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_guided_by_coverage(target: str, tmp_path: Path) -> None:
    options = ["-seed=1", f"-max_total_time={SECONDS}", "-timeout=30", "-rss_limit_mb=4096", "-max_len=6000"]
    options += [f"-dict={DRIVER.with_name('tokens.dict')}", f"-artifact_prefix={tmp_path}/"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run(
        [sys.executable, DRIVER, target, *options, corpus, SEEDS / target],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert "Done " in done.stderr
