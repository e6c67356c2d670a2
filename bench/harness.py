"""What every benchmark shares: the race of the package (`neuroscope_fast.racing`), and the process that it runs in."""

from __future__ import annotations

import os
import sys

from neuroscope_fast.racing import (
    CheckError,
    Contestant,
    Row,
    Work,
    costs,
    floors,
    missing,
    race,
    ratios,
    rises,
    round_to,
    row_named,
    spread,
    timed,
)

__all__ = [
    "CheckError",
    "Contestant",
    "Row",
    "Work",
    "costs",
    "floors",
    "missing",
    "race",
    "ratios",
    "rises",
    "round_to",
    "row_named",
    "settle_process",
    "spread",
    "timed",
]

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""For all contestants alike: without these glibc gives memory back and faults it in again at every pass, and a bare
forward pass runs slower than a hooked one."""


def settle_process(threads: int = 1) -> None:
    """Starts this process again with the allocator's settings and so many compute threads, unless it has them.

    They are read when a process starts. Call it first in `main()`, before anything large is imported.
    """
    wanted = {**ALLOCATOR, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if "torch" in sys.modules:
        raise RuntimeError("settle_process() comes before torch is imported")
