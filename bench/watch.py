"""What a process used while it did something: resident memory over time, and CPU time by thread."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MIB = 1 << 20
STATM = Path("/proc/self/statm")
SERIES_POINTS = 200


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say. A file that is only written to is not part of it."""
    try:
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def give_memory_back() -> None:
    """So that what an earlier round left in the allocator's hands does not hide what the next one takes."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Watch:
    """Watches this process for the length of a `with` block, from a thread of its own that wakes every few ms.

    The thread's own CPU time is left out of the figures. `others` is the CPU time of all threads but the one that
    entered the block: of the threads behind a capture's ring, where nothing else runs.
    """

    def __init__(self, interval: float = 0.01):
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._own_cpu = 0.0
        self.series: list[tuple[float, float]] = []

    def __enter__(self) -> Watch:
        give_memory_back()
        self._base = resident_bytes()
        self._start = time.perf_counter()
        self._process_cpu, self._thread_cpu = time.process_time(), time.thread_time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        process, thread = time.process_time() - self._process_cpu, time.thread_time() - self._thread_cpu
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()
        self.own_thread, self.others = thread, max(0.0, process - thread - self._own_cpu)

    def _sample(self) -> None:
        begun = time.thread_time()
        done = False
        while True:
            rise = resident_bytes() - self._base
            self.series.append((time.perf_counter() - self._start, rise / MIB))
            self._own_cpu = time.thread_time() - begun
            if done:  # the end has been looked at too, however soon it came
                return
            done = self._done.wait(self._interval)

    @property
    def peak_mib(self) -> float:
        """The most that resident memory rose above what it was on entry."""
        return max(rise for _, rise in self.series)

    def thinned(self) -> list[list[float]]:
        """[seconds, MiB above the start] at some 200 moments; of each stretch the highest."""
        size = max(1, -(-len(self.series) // SERIES_POINTS))
        parts = [self.series[at : at + size] for at in range(0, len(self.series), size)]
        return [[round(each, 3) for each in max(part, key=lambda sample: sample[1])] for part in parts]


def sync_folder(folder: Path) -> None:
    """Brings the folder's names to the disk, and with them the removal of the files that stood in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def facts_of(watches: dict[str, list[Watch]]) -> dict[str, Any]:
    """The last round's resident memory over time, by contestant."""
    return {name: each[-1].thinned() for name, each in watches.items() if each}
