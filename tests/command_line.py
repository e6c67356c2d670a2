"""Runs the command line: in this process, or in one of its own; a helper of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from neuroscope_fast.cli import main


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """In this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return Outcome(code, *capsys.readouterr())


def command(*arguments: object) -> list[str]:
    """The command line for a process of its own."""
    return [sys.executable, "-m", "neuroscope_fast", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """Of such a process: no width, and one thread, since the tests share their machine."""
    kept = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | changes


def run_process(*arguments: object, **options: Any) -> Outcome:
    """In a process of its own."""
    options = {"env": environment(), "encoding": "utf-8", **options}
    done = subprocess.run(command(*arguments), capture_output=True, check=False, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)
