"""The short form of soak.py."""

import json
import subprocess
import sys
from pathlib import Path


def test_nothing_stays_behind() -> None:
    line = [sys.executable, str(Path(__file__).parent / "soak.py"), "--seconds", "20", "--seed", "3"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["captures"]) == 7  # every way has had its turn
