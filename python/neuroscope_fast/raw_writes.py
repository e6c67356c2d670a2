"""The file system's own rate: plain sequential writes of blocks that are ready in memory, fsync counted in."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

from .racing import CheckError, timed

BLOCK_BYTES = 4 << 20


def aligned_copy(data: memoryview) -> mmap.mmap:
    """The bytes in memory that O_DIRECT takes: page-aligned and, as a capture's ring is, private, anonymous, and on
    huge pages where the system has them, without which the rate would not be the highest there is.
    """
    memory = mmap.mmap(-1, data.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = data.cast("B")
    return memory


def has_direct_io(folder: Path) -> bool:
    """Whether a file in `folder` can be opened with O_DIRECT."""
    path = folder / f".direct-{os.getpid()}"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def write_file(path: Path, data: mmap.mmap, total: int, *, direct: bool, threads: int = 1) -> None:
    """Writes `total` bytes in blocks, `data` over and over, and fsyncs.

    `threads`: so many blocks are under way at once; they take turns in the file, so that it still grows in order.
    """
    block = min(BLOCK_BYTES, len(data))
    view = memoryview(data)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)
    descriptor = os.open(path, flags, 0o666)
    failures: list[OSError] = []

    def write_every(first: int) -> None:
        try:
            for offset in range(first * block, total, threads * block):
                at = offset % len(data)
                written = os.pwrite(descriptor, view[at : at + min(block, total - offset)], offset)
                if written != min(block, total - offset):
                    raise OSError(f"{written} bytes written at {offset}, not a block")
        except OSError as error:
            failures.append(error)

    try:
        helpers = [threading.Thread(target=write_every, args=(number,)) for number in range(1, threads)]
        for helper in helpers:
            helper.start()
        write_every(0)
        for helper in helpers:
            helper.join()
        if failures:
            raise failures[0]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file(path: Path, data: mmap.mmap, total: int, *, direct: bool, threads: int) -> None:
    """Raises CheckError unless a short file written so holds what it should."""
    try:
        write_file(path, data, total, direct=direct, threads=threads)
        wanted = bytes(data) * (total // len(data)) + data[: total % len(data)]
        if path.read_bytes() != wanted:
            raise CheckError("the file does not hold what was written")
    except OSError as error:
        raise CheckError(str(error)) from error
    finally:
        path.unlink(missing_ok=True)


def direct_write_seconds(folder: Path, total: int, *, rounds: int, patience: float) -> list[float]:
    """How long it takes to bring `total` bytes, a multiple of BLOCK_BYTES, into a new file of `folder` by O_DIRECT, in
    each of some rounds; as few as one, where a round takes longer than `patience` seconds.

    The file is removed after each. Raises CheckError where it does not hold what was written.
    """
    data = aligned_copy(memoryview(os.urandom(BLOCK_BYTES)))
    path = folder / f"plain-{os.getpid()}"
    check_file(path, data, BLOCK_BYTES, direct=True, threads=1)
    found: list[float] = []
    for _ in range(rounds):
        try:
            found.append(timed(lambda: write_file(path, data, total, direct=True)))
        finally:
            path.unlink(missing_ok=True)
        if found[-1] > patience:
            break
    return found
