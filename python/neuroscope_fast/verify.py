"""Compares the stored bytes of a run with the checksums that were taken when they were written."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .activations import Source, data_ref, is_quantised
from .errors import RunError
from .manifest import Manifest
from .records import DataRef, Record
from .recovery import Crc32c
from .sources import DirectorySource

Progress = Callable[[int], None]


class BadRecord(NamedTuple):
    """A tensor that `verify` could not confirm. `key` ends in `/scale` or `/indices` where it is those of the
    record.
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
    seen: set[DataRef] = set()
    for record in records:
        for ref in _stored_parts(record):
            if ref in seen:
                continue
            seen.add(ref)
            reason = _check(source, ref, checksums.get(ref.file, {}).get(ref.key), crc32c, progress)
            if reason is not None:
                bad.append(BadRecord(record, ref.file, ref.key, reason))
    return bad


def _stored_parts(record: Record) -> list[DataRef]:
    parts = [data_ref(record)]
    if is_quantised(record):
        parts.append(record.scale or DataRef(parts[0].file, parts[0].key + "/scale"))
    if record.indices is not None:
        parts.append(record.indices)
    return parts


def _check(
    source: DirectorySource,
    ref: DataRef,
    expected: int | None,
    crc32c: Crc32c,
    progress: Progress | None,
) -> str | None:
    try:
        stored = source.shard(ref.file).view(ref.key)
    except RunError as error:
        return str(error)
    if expected is None:
        return "no checksum is recorded for it"
    actual = crc32c(stored)
    if progress is not None:
        progress(len(stored))
    if actual == expected:
        return None
    return f"its checksum is {actual:08x} and was {expected:08x} when it was written"


def native_crc32c() -> Crc32c | None:
    """CRC-32C from the native module, or None where that is not built."""
    try:
        core = importlib.import_module("neuroscope_fast._core")
    except ImportError:
        return None
    crc32c: Crc32c = core.crc32c
    return crc32c
