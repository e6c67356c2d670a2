"""`recover_run(DIR)`: makes a run that was never closed, or whose closing failed, into one with all its files.

Shards that were left open are published from their journals, then metadata JSON, index, report and manifest are
written, and only then the journals go. The run's directory is locked meanwhile. Each step can be done again: a recovery
that was killed anywhere is finished by the next one, and one of a run that needs none changes nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from msgspec.structs import replace

from .errors import CaptureError, RunError
from .files import plain_name
from .journal import JOURNAL_HEADER_BYTES
from .manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    Checksums,
    LostTensor,
    Manifest,
    Recovery,
    encode_index,
    encode_manifest,
    replace_files,
)
from .reader import Run, RunIncompleteWarning, open_run, open_unfinished, read_manifest
from .records import Metadata, Record, encode_metadata
from .recovery import JOURNAL, LOST_KEY, PARTIAL, Crc32c, read_journals
from .report import render
from .run_directory import lock_folder, report_file_name
from .shard_file import ShardFile
from .shard_repair import repair_shard, sync_folder
from .verify import native_crc32c


def recover_run(path: str | os.PathLike[str]) -> Run:
    """Recover the run in `path` and open it; its `manifest.recovery` tells what was done.

    Every tensor whose bytes and journal entry are on the disk is kept, with the checksum taken when it was written;
    those that are not are listed. Raises RunError where `path` is no run, is still being written, or a file cannot be
    read or written; what was done until then need not be done again.
    """
    folder = Path(path)
    read_manifest(folder)  # says what is wrong with a folder that is no run
    crc32c = native_crc32c()
    if crc32c is None:
        raise RunError("recovering needs the native module neuroscope_fast._core: build it with `pip install .`")
    try:
        descriptor = lock_folder(folder)
    except CaptureError as error:
        raise RunError(str(error)) from error
    try:
        manifest = read_manifest(folder)  # what it says now that nobody writes it
        if manifest.status == "complete":  # all but the last step of its closing, at least
            _remove_journals(folder, manifest.checksums.by_shard())
        elif _needs_recovery(folder, manifest):
            _recover(folder, manifest, crc32c)
    except OSError as error:
        raise RunError(f"{error.filename or folder} cannot be recovered: {error.strerror}") from error
    finally:
        os.close(descriptor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunIncompleteWarning)  # the caller knows
        return open_run(folder)


def _needs_recovery(folder: Path, manifest: Manifest) -> bool:
    left = [name for name in os.listdir(folder) if name.endswith((PARTIAL, JOURNAL))]
    known = set(manifest.recovery.unreadable) if manifest.recovery is not None else set()
    return manifest.status == "writing" or any(name not in known for name in left)


def _recover(folder: Path, manifest: Manifest, crc32c: Crc32c) -> None:
    _remove_empty(folder)
    metadata = open_unfinished(folder, manifest).metadata
    before = manifest.recovery or Recovery(at="")
    problems: list[str] = []
    journals = read_journals(folder, problems)
    # A recovery that was killed as it removed the journals has told of them already.
    new = {name: journal for name, journal in journals.items() if journal is not None and name not in before.shards}
    checksums = manifest.checksums.by_shard()
    lost = list(before.lost)
    for name, journal in new.items():
        reasons = {}
        if (folder / (name + PARTIAL)).exists():
            reasons = repair_shard(folder, name, journal, crc32c)
        entries = ShardFile.published(folder / name).entries
        of_shard = checksums.setdefault(name, {})
        for record in journal.records:
            if record.key in entries:
                of_shard[record.key] = record.crc32c
            else:
                lost.append(LostTensor(name, record.key, reasons.get(record.key, "it is not in its shard")))
    now = datetime.now().isoformat()
    left = [name + ending for name, journal in journals.items() if journal is None for ending in (PARTIAL, JOURNAL)]
    recovery = Recovery(
        at=now,
        shards=[*before.shards, *new],
        acknowledged=before.acknowledged + sum(journal.acknowledged for journal in new.values()),
        lost=lost,
        unreadable=[name for name in left if (folder / name).exists()],
        problems=problems,
    )
    killed = manifest.status == "writing"
    counters = manifest.counters
    if killed:
        whole = sum(len(keys) for keys in checksums.values())
        counters = replace(counters, records=whole, acknowledged=recovery.acknowledged)
    manifest = replace(
        manifest,
        status="interrupted" if killed else manifest.status,
        cause="the process that wrote it was gone" if killed else manifest.cause,
        closed=manifest.closed or now,
        counters=counters,
        checksums=Checksums.of(checksums),
        recovery=recovery,
    )
    _write_files(folder, manifest, metadata)
    _remove_journals(folder, recovery.shards)


def _remove_empty(folder: Path) -> None:
    """Shards that were being created at the end: without a byte, and without a journal's header, which comes first."""
    for partial in folder.glob(f"activations-*{PARTIAL}"):
        journal = partial.with_name(partial.name.removesuffix(PARTIAL) + JOURNAL)
        has_header = os.path.lexists(journal) and journal.lstat().st_size >= JOURNAL_HEADER_BYTES
        if partial.lstat().st_size == 0 and not partial.is_symlink() and not has_header:
            partial.unlink()
            journal.unlink(missing_ok=True)


def _remove_journals(folder: Path, shards: Iterable[str]) -> None:
    for name in shards:
        (folder / (plain_name(name) + JOURNAL)).unlink(missing_ok=True)
    sync_folder(folder)


def _write_files(folder: Path, manifest: Manifest, metadata: Metadata) -> None:
    weight_map: dict[str, str] = {}
    total_size = 0
    for name in {record.data.file for record in _records(metadata) if record.data is not None}:
        for key, entry in ShardFile.published(folder / plain_name(name)).entries.items():
            if not key.startswith(LOST_KEY):
                weight_map[key] = name
                total_size += entry.end - entry.begin
    encoded = encode_metadata(metadata)
    metadata_file = plain_name(manifest.metadata_file)
    report_file = report_file_name(metadata_file)
    index = encode_index(dict(sorted(weight_map.items())), total_size)
    replace_files(folder, {metadata_file: encoded, INDEX_FILE: index})
    # The manifest last: it says of the others that they are whole.
    replace_files(folder, {report_file: render(encoded).encode(), MANIFEST_FILE: encode_manifest(manifest)})


def _records(metadata: Metadata) -> Iterator[Record]:
    for records in metadata.activations.values():
        yield from records
