"""Takes tensors out of a published shard: those of a prompt that will be captured anew."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

import msgspec

from .errors import RunError
from .manifest import sync_folder
from .recovery import LOST_KEY
from .shard_file import Entry, ShardFile, parse_header

_PIECE = 64 << 20  # bytes copied at once


def trim_shard(folder: Path, name: str, kept: Container[str]) -> None:
    """Leave only the tensors `kept` in a shard, and its file away where that is none.

    Tensors of a run stand in the order of its prompts, so that what goes is mostly the end of the file. What goes and
    stands before something that stays is kept as bytes under a key of no hook, since a safetensors file has no holes.
    The shard is replaced in one step. Raises RunError where it cannot be read, OSError where it cannot be written.
    """
    path = folder / name
    shard = ShardFile.published(path)
    some = any(key in kept for key in shard.entries)
    if some and all(key in kept or key.startswith(LOST_KEY) for key in shard.entries):
        return
    if not some:
        path.unlink()
        sync_folder(folder)
        return
    entries = sorted(shard.entries.items(), key=lambda item: (item[1].begin, item[1].end))
    last = max(number for number, (key, _) in enumerate(entries) if key in kept)
    data_start, end = entries[0][1].begin, entries[last][1].end
    header = _header(entries[: last + 1], kept, data_start).ljust(data_start - 8)
    if len(header) != data_start - 8:
        raise RunError(f"{path} has no room for a header of {len(header)} bytes: it is not that of its writer")
    parse_header(header, data_start, end, str(path))  # nothing is written that a reader would refuse
    beside = folder / f"{name}.tmp"
    try:
        beside.unlink(missing_ok=True)
        _copy(path, beside, (data_start - 8).to_bytes(8, "little") + header, end)
        os.replace(beside, path)
        sync_folder(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        error.filename, error.filename2 = os.fspath(path), None
        raise


def _header(entries: list[tuple[str, Entry]], kept: Container[str], data_start: int) -> bytes:
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", "writer": "neuroscope-fast", "format_version": "1"},
    }
    at = 0  # up to here the header tells of all bytes; neighbours that go are told of as one
    for key, entry in entries:
        if key in kept:
            begin, end = entry.begin - data_start, entry.end - data_start
            if begin > at:
                header[f"{LOST_KEY}{at}"] = {"dtype": "U8", "shape": [begin - at], "data_offsets": [at, begin]}
            header[key] = {"dtype": entry.dtype.header, "shape": list(entry.shape), "data_offsets": [begin, end]}
            at = end
    return msgspec.json.encode(header)


def _copy(source: Path, target: Path, front: bytes, end: int) -> None:
    """The bytes of `source` up to `end`, with `front` in place of as many at their beginning; durable on return."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(source, "rb") as before, open(os.open(target, flags, 0o666), "wb") as after:
        after.write(front)
        before.seek(len(front))
        left = end - len(front)
        while left > 0:
            piece = before.read(min(_PIECE, left))
            if not piece:
                raise RunError(f"{source} is cut short: it has become smaller since it was opened")
            after.write(piece)
            left -= len(piece)
        after.flush()
        os.fsync(after.fileno())
