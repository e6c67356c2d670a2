"""Where a figure comes from: the commit, the versions, the machine and what else it was doing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

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
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "load_average": list(os.getloadavg()),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("MALLOC_", "OMP_"))},
    }
    if folder is not None:
        found["file_system"] = file_system(folder)
    return found


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the working tree, with `+changes` where it differs; NSF_COMMIT where there is no git."""
    try:
        told = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--abbrev=12", "--dirty=+changes"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("NSF_COMMIT", "unknown")
    return told.stdout.strip()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`, as /proc/mounts names it."""
    here, best, kind = str(folder.resolve()), "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, point, type_name, *_ = line.split()
        if (here == point or here.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, type_name
    return kind
