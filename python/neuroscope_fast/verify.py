"""Compares the stored bytes of a run with the checksums that were taken when they were written."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from .activations import Source, data_ref, is_quantised
from .errors import RunError
from .files import open_regular, plain_name
from .manifest import Manifest
from .records import DataRef, Record
from .recovery import Crc32c
from .sources import DirectorySource

Progress = Callable[[int], None]


class BadRecord(NamedTuple):
    """A tensor that `verify` could not confirm. `key` ends in `/scale` or `/indices` where it is those of the
    record; it is empty where `file` is a whole file beside the shards, whose name then is the record's hook id.
    """

    record: Record
    file: str
    key: str
    reason: str


def verify_records(
    records: Iterable[Record], source: Source, manifest: Manifest, progress: Progress | None = None
) -> list[BadRecord]:
    """See `neuroscope_fast.reader.Run.verify`."""
    if not isinstance(source, DirectorySource):
        return []
    crc32c = native_crc32c()
    if crc32c is None:
        raise RunError("verify needs the native module neuroscope_fast._core: build it with `pip install .`")
    checksums = manifest.checksums.by_shard()
    for name, journal in source.journals.items():
        checksums.setdefault(name, {}).update({record.key: record.crc32c for record in journal.records})
    bad: list[BadRecord] = []
    seen: set[_Part] = set()
    for record in records:
        for part in _stored_parts(record):
            if part in seen:
                continue
            seen.add(part)
            file, key = part.ref.file, part.ref.key
            reason = _check(source, part, checksums.get(file, {}).get(key), crc32c, progress)
            if reason is not None:
                bad.append(BadRecord(record, file, key, reason))
    for name, expected_hex in manifest.file_checksums.items():
        reason = _check_file(source.folder, name, expected_hex, crc32c, progress)
        if reason is not None:
            stands_for_it = Record(hook_id=name, layer_name="", component="", shape=[], dtype="uint8", is_input=False)
            bad.append(BadRecord(stands_for_it, name, "", reason))
    return bad


def _check_file(folder: Path, name: str, expected: str, crc32c: Crc32c, progress: Progress | None) -> str | None:
    actual = 0
    try:
        with open_regular(folder / plain_name(name)) as file:
            while piece := file.read(1 << 20):
                actual = crc32c(piece, actual)
                if progress is not None:
                    progress(len(piece))
    except FileNotFoundError:
        return f"{folder / name} is missing"
    except RunError as error:
        return str(error)
    except OSError as error:
        return f"{folder / name} cannot be read: {error.strerror}"
    return None if f"{actual:08x}" == expected else _differs(actual, expected)


def _differs(actual: int, expected: str) -> str:
    return f"its checksum is {actual:08x} and was {expected} when it was written"


class _Part(NamedTuple):
    """A stored tensor, and what it is as its record says; a dtype that the record does not tell is None."""

    ref: DataRef
    dtype: str | None
    shape: tuple[int, ...]


def _stored_parts(record: Record) -> list[_Part]:
    data, shape = data_ref(record), tuple(record.shape)
    parts = [_Part(data, record.dtype, shape)]
    if is_quantised(record):
        parts.append(_Part(record.scale or DataRef(data.file, data.key + "/scale"), "float32", shape[:-1]))
    if record.indices is not None:
        parts.append(_Part(record.indices, None, shape))
    return parts


def _check(
    source: DirectorySource, part: _Part, expected: int | None, crc32c: Crc32c, progress: Progress | None
) -> str | None:
    try:
        shard = source.shard(part.ref.file)
        entry = shard.entry(part.ref.key)
        stored = shard.view(part.ref.key)
    except RunError as error:
        return str(error)
    # Checksums are of bytes alone: what is read from them is in the shard's header, which has none.
    dtype = part.dtype or entry.dtype.name
    if (entry.dtype.name, entry.shape) != (dtype, part.shape):
        return f"its shard says {entry.dtype.name} {list(entry.shape)}, its record {dtype} {list(part.shape)}"
    if expected is None:
        return "no checksum is recorded for it"
    actual = crc32c(stored)
    if progress is not None:
        progress(len(stored))
    return None if actual == expected else _differs(actual, f"{expected:08x}")


def native_crc32c() -> Crc32c | None:
    """CRC-32C from the native module, or None where that is not built."""
    try:
        core = importlib.import_module("neuroscope_fast._core")
    except ImportError:
        return None
    crc32c: Crc32c = core.crc32c
    return crc32c
