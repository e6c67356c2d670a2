"""Opens a run: `open_run(DIR)` maps its shards lazily and gives every captured tensor with its record.

Neither the native module nor the model is needed, and torch only once a tensor is asked for.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .activations import Activations, Source, data_ref
from .errors import RunError, one_line
from .files import plain_name, read_regular
from .manifest import MANIFEST_FILE, Counters, Manifest, Status, decode_manifest
from .prompt_log import PromptEntry, read_prompts, texts_of
from .records import Metadata, Record, decode_metadata_lazily, decode_records
from .recovery import Recovered, merge, metadata_of, recover
from .sources import DirectorySource, MemorySource
from .verify import BadRecord, native_crc32c, verify_records

__all__ = [
    "Activations",
    "BadRecord",
    "DirectorySource",
    "HookNotCaptured",
    "MemorySource",
    "Run",
    "RunIncompleteWarning",
    "open_run",
]


Undecoded = msgspec.Raw | Callable[[], msgspec.Raw]


class RunIncompleteWarning(UserWarning):
    """The run is still being written, or was interrupted, or failed: what is whole can be read."""


class HookNotCaptured(RunError, KeyError):
    """The run has no hook of this id."""

    __str__ = Exception.__str__  # KeyError's own shows the message in quotes


class Run:
    """One capture: `run[hook_id]` is what that hook captured.

    `source` gives the tensors; a run in memory is `Run(metadata, manifest, MemorySource(tensors))`. `undecoded`: hooks
    whose records are still JSON, or what makes it: they are decoded when they are asked for.
    """

    def __init__(
        self,
        metadata: Metadata,
        manifest: Manifest,
        source: Source,
        path: Path | None = None,
        *,
        undecoded: Mapping[str, Undecoded] | None = None,
        prompts: Sequence[PromptEntry] | None = None,
        notice: str | None = None,
        status: Status | None = None,
    ):
        self.path = path
        self.manifest = manifest
        self.status: Status = status or manifest.status
        self.notice = notice
        self._head = metadata
        self._source = source
        self._prompts = None if prompts is None else list(prompts)
        self._records: dict[str, list[Record] | Undecoded] = {**metadata.activations, **(undecoded or {})}

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "run in memory" if self.path is None else self.path.resolve().name

    @property
    def hooks(self) -> list[str]:
        """The hook ids, in the order in which they were asked for."""
        return list(self._records)

    @property
    def records(self) -> list[Record]:
        """Every record, hook by hook."""
        return [record for hook_id in self._records for record in self._records_of(hook_id)]

    @property
    def prompts(self) -> list[PromptEntry]:
        """What was read and written in each prompt, tokens included, as far as the capture was told."""
        if self._prompts is None:
            unfinished = self.status != "complete"
            self._prompts = [] if self.path is None else read_prompts(self.path, torn=unfinished)
        return list(self._prompts)

    @property
    def stats(self) -> Counters:
        """What the engine counted."""
        return self.manifest.counters

    @property
    def metadata(self) -> Metadata:
        """The whole metadata JSON."""
        return msgspec.structs.replace(
            self._head, activations={hook_id: self._records_of(hook_id) for hook_id in self._records}
        )

    def __getitem__(self, hook_id: str) -> Activations:
        if hook_id not in self._records:
            near = difflib.get_close_matches(hook_id, self._records, n=3) or self.hooks[:8]
            raise HookNotCaptured(f"this run has no hook {hook_id!r}; it has {', '.join(near) or 'none'}")
        return Activations(hook_id, self._records_of(hook_id), self._source)

    def __contains__(self, hook_id: object) -> bool:
        return hook_id in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Run {self.path or 'in memory'}: {len(self)} hooks, {self.status}>"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: all records decoded, and in memory their tensors alone."""
        records = {hook_id: self._records_of(hook_id) for hook_id in self._records}
        source = self._source
        if isinstance(source, MemorySource):
            source = source.of(data_ref(record).key for found in records.values() for record in found)
        return {**vars(self), "_records": records, "_source": source}

    def _records_of(self, hook_id: str) -> list[Record]:
        records = self._records[hook_id]
        if not isinstance(records, list):  # read from the JSON when first asked for
            text = records if isinstance(records, msgspec.Raw) else records()
            records = decode_records(text, str((self.path or Path()) / self.manifest.metadata_file))
            self._records[hook_id] = records
        return records

    def verify(self, progress: Callable[[int], None] | None = None) -> list[BadRecord]:
        """Reads every stored byte again and compares checksums. Gives the tensors that are not as they were
        written.

        `progress` is called with the number of bytes of each tensor that has been read. A run in memory has
        nothing to verify. Raises RunError where the native module, which computes CRC-32C, is not there.
        """
        return verify_records(self.records, self._source, self.manifest, progress)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Opens a run directory, whatever state it is in.

    A run that is not complete is opened with what is whole in it: `.notice` says so, as does a
    RunIncompleteWarning. Raises RunError where `path` is no run, or the run is of a format version that is
    not known here.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    live = manifest.status == "writing" and _is_locked(folder)
    if manifest.status == "writing" and not live:
        manifest = read_manifest(folder)  # it may have been closed between the two looks
    run = (
        _open_complete(folder, manifest) if manifest.status == "complete" else _open_unfinished(folder, manifest, live)
    )
    if run.notice is not None:
        warnings.warn(run.notice, RunIncompleteWarning, stacklevel=2)
    return run


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run directory. Raises RunError, which says what `folder` is where it is none."""
    path = folder / MANIFEST_FILE
    if folder.is_file():
        hint = "; one shard alone can be read with safetensors" if folder.suffix == ".safetensors" else ""
        raise RunError(f"{folder} is a file, not a run directory{hint}")
    try:
        return decode_manifest(read_regular(path), str(path))
    except FileNotFoundError:
        pass
    if not folder.exists():
        raise RunError(f"{folder} does not exist")
    raise RunError(f"{folder} is not a run directory: it has no {MANIFEST_FILE}")


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the run directory: the one that writes it keeps an exclusive lock."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _read_metadata(folder: Path, manifest: Manifest) -> tuple[Metadata, dict[str, msgspec.Raw]] | None:
    path = folder / plain_name(manifest.metadata_file)
    try:
        return decode_metadata_lazily(read_regular(path), str(path))
    except FileNotFoundError:
        return None


def _open_complete(folder: Path, manifest: Manifest) -> Run:
    read = _read_metadata(folder, manifest)
    if read is None:
        raise RunError(f"{folder / manifest.metadata_file} is missing")
    metadata, undecoded = read
    return Run(metadata, manifest, DirectorySource(folder), folder, undecoded=undecoded)


def read_unfinished(folder: Path, manifest: Manifest, *, live: bool = False) -> tuple[Metadata, Recovered]:
    """What is whole in a run that is still written (`live`), or was interrupted, or failed."""
    try:
        read = _read_metadata(folder, manifest)
    except RunError:
        read = None  # torn as the disk filled up, say: everything in it is rebuilt from the shards
    crc32c = None if live else native_crc32c()
    found = recover(folder, manifest, published=read is None or manifest.status == "writing", crc32c=crc32c)
    if read is None:
        metadata = metadata_of(manifest, found.activations)
    else:
        metadata, undecoded = read
        name = str(folder / manifest.metadata_file)
        known = {hook_id: decode_records(raw, name) for hook_id, raw in undecoded.items()}
        together = {
            hook_id: merge(known.get(hook_id, []), found.activations.get(hook_id, []))
            for hook_id in {**known, **found.activations}
        }
        metadata = msgspec.structs.replace(metadata, activations=together)
    if manifest.status == "writing" and (entries := read_prompts(folder, torn=True)):
        metadata = msgspec.structs.replace(metadata, **texts_of(entries))  # more than a JSON from before a resumption
    return metadata, found


def _open_unfinished(folder: Path, manifest: Manifest, live: bool) -> Run:
    metadata, found = read_unfinished(folder, manifest, live=live)
    killed = manifest.status == "writing" and not live
    count = sum(len(records) for records in metadata.activations.values())
    notice = f"{folder} {_what_happened(manifest, live)}; {count} records are whole"
    unpublished = [name for name in found.journals if not (folder / name).exists()]
    if unpublished and not live and native_crc32c() is None:
        notice += ", their checksums not looked at"
    if manifest.recovery is not None and manifest.recovery.lost:
        notice += f", {len(manifest.recovery.lost)} tensors were lost"
    notice = "; ".join([notice, *found.problems])
    if not live and (killed or unpublished):
        notice += f"; `neuroscope-fast recover {folder}` makes it a run with all its files"
    notice = one_line(notice)
    source = DirectorySource(folder, found.journals)
    return Run(metadata, manifest, source, folder, notice=notice, status="interrupted" if killed else manifest.status)


def _what_happened(manifest: Manifest, live: bool) -> str:
    cause = f" ({manifest.cause})" if manifest.cause else ""
    if live:
        return "is still being written"
    if manifest.status == "writing":
        return "was interrupted: the process that wrote it is gone"
    return ("failed" if manifest.status == "failed" else "was interrupted") + cause
