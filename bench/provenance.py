"""Where a figure comes from: the commit, the versions, the machine and what else it was doing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from neuroscope_fast.environment import package_version
from neuroscope_fast.machine import machine

PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "numpy",
    "safetensors",
    "msgspec",
    "orjson",
    "nnsight",
    "transformer-lens",
)
ROOT = Path(__file__).resolve().parent.parent


def provenance(folder: Path | None = None) -> dict[str, Any]:
    """What the JSON of a benchmark says of its origin; `folder`: where it writes, if it does."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        **machine(folder),
    }


def commit() -> str:
    """The commit of the working tree, with `+changes` where it differs; NSF_COMMIT where there is no git."""
    try:
        told = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--abbrev=12", "--dirty=+changes"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("NSF_COMMIT", "unknown")
    return told.stdout.strip()
