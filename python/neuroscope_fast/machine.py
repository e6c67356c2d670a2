"""The machine that a figure was measured on, and what else it was doing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine(folder: Path | None = None) -> dict[str, Any]:
    """System, processor, memory (GiB), load averages and the settings of allocator and threads; `folder`: where is
    written, if it is, for its file system.
    """
    found: dict[str, Any] = {
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
