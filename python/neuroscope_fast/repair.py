"""`recover_run(DIR)`: makes a run that was never closed, or whose closing failed, into one with all its files.

Shards that were left open are published from their journals, then metadata JSON, index, report and manifest are
written, and only then the journals go. The run's directory is locked meanwhile. Each step can be done again: a recovery
that was killed anywhere is finished by the next one, and one of a run that needs none changes nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from msgspec.structs import replace

from .errors import CaptureError, RunError
from .files import plain_name, read_regular
from .journal import JOURNAL_HEADER_BYTES, Journal
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
    sync_folder,
)
from .reader import Run, RunIncompleteWarning, open_run, read_manifest, read_unfinished
from .records import DataRef, Metadata, Record, decode_metadata_lazily, encode_metadata
from .recovery import JOURNAL, LOST_KEY, PARTIAL, Crc32c, read_journals, shard_names
from .report import render
from .run_directory import is_metadata_file, lock_folder, report_file_name
from .shard_file import ShardFile
from .shard_repair import repair_shard
from .verify import native_crc32c

DAMAGED_JOURNAL = ".damaged-journal"


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
        descriptor = lock_folder(folder, must=True)
    except CaptureError as error:
        raise RunError(str(error)) from error
    try:
        manifest = read_manifest(folder)  # what it says now that nobody writes it
        if not is_metadata_file(manifest.metadata_file):
            raise RunError(
                f"{folder / MANIFEST_FILE} names {manifest.metadata_file!r}, which is no metadata of a capture"
            )
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
    left = [name + ending for name in shard_names(folder) for ending in (PARTIAL, JOURNAL)]
    known = set(manifest.recovery.unreadable) if manifest.recovery is not None else set()
    return manifest.status == "writing" or any(os.path.lexists(folder / name) for name in left if name not in known)


@dataclass
class _Done:
    """What came of the shards."""

    checksums: dict[str, dict[str, int]]
    shards: list[str] = field(default_factory=list)
    acknowledged: int = 0
    lost: list[LostTensor] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _recover(folder: Path, manifest: Manifest, crc32c: Crc32c) -> None:
    _remove_empty(folder)
    metadata, found = read_unfinished(folder, manifest)
    before = manifest.recovery or Recovery(at="")
    done = _Done(
        manifest.checksums.by_shard(),
        list(before.shards),
        before.acknowledged,
        list(before.lost),
        problems=found.problems,
    )
    for name, journal in read_journals(folder, []).items():
        # A recovery that was killed as it removed the journals has told of them already.
        if name not in before.shards:
            _finish_shard(folder, name, journal, crc32c, done)
    _keep_torn_metadata(folder, manifest, done)
    now = datetime.now().isoformat()
    killed = manifest.status == "writing"
    counters = manifest.counters
    if killed:
        whole = sum(len(keys) for keys in done.checksums.values())
        # Before a run was resumed it counted what it went on from, all of which is durable.
        acknowledged = counters.acknowledged + done.acknowledged - before.acknowledged
        counters = replace(counters, records=whole, acknowledged=acknowledged)
    manifest = replace(
        manifest,
        status="interrupted" if killed else manifest.status,
        cause="the process that wrote it was gone" if killed else manifest.cause,
        closed=manifest.closed or now,
        counters=counters,
        checksums=Checksums.of(done.checksums),
        recovery=Recovery(
            at=now,
            shards=done.shards,
            acknowledged=max(done.acknowledged, counters.acknowledged),
            lost=done.lost,
            unreadable=done.unreadable,
            problems=done.problems,
        ),
    )
    _write_files(folder, manifest, _published(folder, metadata))
    _remove_journals(folder, done.shards)


def _finish_shard(
    folder: Path,
    name: str,
    journal: Journal | None,
    crc32c: Crc32c,
    done: _Done,
) -> None:
    """Publish a shard, or leave it as it is and say so: one that cannot be read keeps no other from being recovered."""
    left = [name + ending for ending in (PARTIAL, JOURNAL) if os.path.lexists(folder / (name + ending))]
    if journal is None:  # what is wrong with it has been said
        done.unreadable += left
        return
    reasons: dict[str, str] = {}
    try:
        if os.path.lexists(folder / (name + PARTIAL)):
            reasons = repair_shard(folder, name, journal, crc32c)
        entries = ShardFile.published(folder / name).entries
    except (RunError, FileNotFoundError) as error:
        done.unreadable += left
        done.problems.append(f"{name} is missing" if isinstance(error, FileNotFoundError) else str(error))
        done.lost += [LostTensor(name, record.key, "its shard cannot be read") for record in journal.records]
        return
    of_shard = done.checksums.setdefault(name, {})
    for record in journal.records:
        if record.key in entries:
            of_shard[record.key] = record.crc32c
        else:
            done.lost.append(LostTensor(name, record.key, reasons.get(record.key, "it is not in its shard")))
    done.shards.append(name)
    done.acknowledged += journal.acknowledged
    if journal.damaged:
        kept = name + DAMAGED_JOURNAL
        done.problems.append(f"the journal of {name} is damaged in the middle: it is kept as {kept}")
        os.rename(folder / (name + JOURNAL), folder / kept)


def _keep_torn_metadata(folder: Path, manifest: Manifest, done: _Done) -> None:
    """A metadata JSON that cannot be read is about to be replaced: what is in it shall stay."""
    path = folder / manifest.metadata_file
    try:
        decode_metadata_lazily(read_regular(path), str(path))
    except FileNotFoundError:
        return
    except RunError as error:
        read_regular(path)  # where it cannot even be read, nothing is replaced
        kept = f"{path.name}.unreadable"
        if os.path.lexists(folder / kept):
            raise RunError(f"{folder / kept} is there already: look at it and move it away") from error
        os.rename(path, folder / kept)
        done.unreadable.append(kept)
        done.problems.append(str(error))


def _remove_empty(folder: Path) -> None:
    """Shards that were being created at the end: without a byte, and without a journal's header, which comes first."""
    for name in shard_names(folder):
        partial, journal = folder / (name + PARTIAL), folder / (name + JOURNAL)
        if not os.path.lexists(partial) or partial.is_symlink() or partial.lstat().st_size > 0:
            continue
        if not os.path.lexists(journal) or journal.lstat().st_size < JOURNAL_HEADER_BYTES:
            partial.unlink()
            journal.unlink(missing_ok=True)


def _remove_journals(folder: Path, shards: Iterable[str]) -> None:
    """Those of shards that are published."""
    for name in map(plain_name, shards):
        if os.path.lexists(folder / name) and not os.path.lexists(folder / (name + PARTIAL)):
            (folder / (name + JOURNAL)).unlink(missing_ok=True)
    sync_folder(folder)


def _write_files(folder: Path, manifest: Manifest, metadata: Metadata) -> None:
    weight_map: dict[str, str] = {}
    total_size = 0
    for name in sorted({ref.file for record in _records(metadata) for ref in _refs(record)}):
        for key, entry in ShardFile.published(folder / plain_name(name)).entries.items():
            if not key.startswith(LOST_KEY):
                weight_map[key] = name
                total_size += entry.end - entry.begin
    encoded = encode_metadata(metadata)
    report_file = report_file_name(manifest.metadata_file)
    index = encode_index(weight_map, total_size)
    replace_files(folder, {manifest.metadata_file: encoded, INDEX_FILE: index})
    # The manifest last: it says of the others that they are whole.
    replace_files(folder, {report_file: render(encoded).encode(), MANIFEST_FILE: encode_manifest(manifest)})


def _published(folder: Path, metadata: Metadata) -> Metadata:
    """Without the records of shards that had to be left as they are."""
    names = set(os.listdir(folder))
    activations = {
        hook_id: [record for record in records if all(ref.file in names for ref in _refs(record))]
        for hook_id, records in metadata.activations.items()
    }
    return replace(metadata, activations=activations)


def _records(metadata: Metadata) -> Iterator[Record]:
    for records in metadata.activations.values():
        yield from records


def _refs(record: Record) -> list[DataRef]:
    return [ref for ref in (record.data, record.scale, record.indices) if ref is not None]
