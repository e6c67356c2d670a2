"""Makes a shard that was left open into a safetensors file: its header is written from its journal.

Everything happens in place, and the file keeps its `.partial` name until all of it is durable: a repair that is killed
anywhere is begun again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .errors import RunError
from .journal import ALIGNMENT, Journal, JournalRecord
from .manifest import sync_folder
from .recovery import LOST_KEY, PARTIAL, Crc32c
from .shard_file import LARGEST_HEADER, ShardFile, parse_header


def repair_shard(folder: Path, name: str, journal: Journal, crc32c: Crc32c) -> dict[str, str]:
    """Publish `{name}.partial` with the records whose bytes have the checksums of the journal.

    All other bytes stay, under keys of no hook, since a safetensors file has no holes and a journal may be torn; only
    the last ones are cut off, where they are no more than the padding that a writer leaves. Gives for each record that
    is lost the reason why, by its key. Raises RunError where the files are not those of a writer, OSError where they
    cannot be written.
    """
    path = folder / (name + PARTIAL)
    shard = ShardFile.open_shard(path, journal)
    kept: list[JournalRecord] = []
    lost: dict[str, str] = {}
    for record in journal.records:
        if record.key not in shard.entries:
            lost[record.key] = "its bytes had not reached the disk"
        elif crc32c(shard.view(record.key)) != record.crc32c:
            lost[record.key] = "its bytes are not those that were written"
        else:
            kept.append(record)
    del shard  # and with it the mapping
    status = path.lstat()
    if status.st_nlink != 1:
        raise RunError(f"{path} is a file that has another name too, and is not changed: put a copy of it there")
    size = status.st_size
    # The room for the header is written first of all: where it is not there, nothing is.
    data_start = journal.data_start if size >= journal.data_start else ALIGNMENT
    end = kept[-1].end if kept else 0
    if size - data_start - end >= ALIGNMENT:
        end = size - data_start
    if data_start > LARGEST_HEADER:
        raise RunError(f"{path} would have a header of {data_start} bytes: its journal is not that of its writer")
    entries = [(record.key, record.shape, record.begin, record.end) for record in kept]
    front = shard_front(path, journal.dtype.header, entries, data_start, end)
    try:
        _write(path, front, data_start + end)
        os.rename(path, folder / name)
        sync_folder(folder)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise
    return lost


def shard_front(
    path: Path, dtype: str, kept: Iterable[tuple[str, tuple[int, ...], int, int]], data_start: int, end: int
) -> bytes:
    """The first `data_start` bytes of a shard with these tensors (key, shape, begin, end), in their order, and `end`
    bytes of data: what is no tensor's is told of under keys of no hook. Raises RunError where the room is too small, or
    a reader would refuse it.
    """
    header = _header(dtype, kept, end)
    if 8 + len(header) > data_start:
        raise RunError(f"{path} has no room for a header of {len(header)} bytes: it is not that of its writer")
    padded = header.ljust(data_start - 8)
    parse_header(padded, data_start, data_start + end, str(path))
    return (data_start - 8).to_bytes(8, "little") + padded


def _header(dtype: str, kept: Iterable[tuple[str, tuple[int, ...], int, int]], end: int) -> bytes:
    entries: dict[str, object] = {
        "__metadata__": {"format": "pt", "writer": "neuroscope-fast", "format_version": "1"},
    }
    at = 0
    for key, shape, begin, stop in kept:
        if begin > at:
            entries[f"{LOST_KEY}{at}"] = _lost(at, begin)
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, stop]}
        at = stop
    if end > at:
        entries[f"{LOST_KEY}{at}"] = _lost(at, end)
    return msgspec.json.encode(entries)


def _lost(begin: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


def _write(path: Path, front: bytes, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        at = 0
        while at < len(front):
            at += os.pwrite(descriptor, front[at:], at)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
