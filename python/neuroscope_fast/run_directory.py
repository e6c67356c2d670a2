"""The run directory from the writing side: claiming it, the files beside the shards, and leaving it whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

from .background_sync import BackgroundSync
from .errors import CaptureError, OptionError, RunError
from .files import open_regular, read_regular
from .manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    Manifest,
    decode_manifest,
    encode_manifest,
    replace_files,
)
from .prompt_log import LINE_BEGIN, PROMPTS_FILE
from .readout import READOUT_FILE

_SHARD = re.compile(r"activations-\w+-\d+\.safetensors(\.partial|\.journal)?")
_ANALYSIS_NAME = re.compile(r"\w[\w.\-]{0,99}")


def metadata_file_name(analysis: str | None) -> str:
    """The metadata JSON's name. Raises OptionError for an analysis name that cannot stand in a file name."""
    if analysis is None:
        return "activation_capture.json"
    if not _ANALYSIS_NAME.fullmatch(analysis):
        raise OptionError(
            f"the analysis name {analysis!r} becomes part of a file name: "
            "use letters, digits, '_', '-' and '.', at most 100"
        )
    return f"circuit_analysis_{analysis}.json"


def report_file_name(metadata_file: str) -> str:
    """The Markdown report that belongs to a metadata JSON."""
    return metadata_file.removesuffix(".json") + "_format.md"


def lock_folder(path: Path, *, must: bool = False) -> int:
    """A descriptor of the folder that holds an exclusive lock on it until it is closed, or the process ends.

    Raises CaptureError where another process holds it, and OSError where the folder cannot be opened. A file system
    without locks gives none, a CaptureError where there `must` be one: a reader takes a run that is being written there
    for a killed one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CaptureError(
            f"another process is writing to {path}: wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        if must:
            os.close(descriptor)
            raise CaptureError(
                f"{path} is on a file system without locks, so that nobody knows whether it is still being written: "
                "copy it to another one"
            ) from error
    return descriptor


def _make_folder(path: Path) -> list[Path]:
    """With the folders above it. The folders that have a new one in them, which is not durable there yet."""
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return [each.parent for each in reversed(new)]


def is_metadata_file(name: str) -> bool:
    """Whether a capture writes its metadata JSON under this name. A manifest of any origin may name another file."""
    analysis = name.removeprefix("circuit_analysis_").removesuffix(".json")
    return name == "activation_capture.json" or (
        name == f"circuit_analysis_{analysis}.json" and _ANALYSIS_NAME.fullmatch(analysis) is not None
    )


def _refuse_other_prompts(folder: Path) -> None:
    """Raise CaptureError where a file has the name of the log of prompts, and is none: somebody's own prompts, say."""
    try:
        with open_regular(folder / PROMPTS_FILE) as file:
            begin = file.read(len(LINE_BEGIN)).rstrip(b"\0")  # zeros: as a power cut can leave it
    except FileNotFoundError:
        return
    except (OSError, RunError) as error:
        raise CaptureError(f"{folder / PROMPTS_FILE} cannot be read: {error}") from error
    if not LINE_BEGIN.startswith(begin):
        raise CaptureError(f"{folder / PROMPTS_FILE} is there, and is not of a run: choose another folder, or move it")


_locked: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


def _forget_in_child() -> None:
    for directory in list(_locked):
        directory.forget()


os.register_at_fork(after_in_child=_forget_in_child)


class RunDirectory:
    """A folder that this process is writing a run into. It holds an exclusive lock on it until `release`."""

    def __init__(self, path: Path, metadata_file: str, *, overwrite: bool, resume: bool = False):
        """Create the folder, lock it, and make sure that no run stands in it. With `resume` one may: `.resumes` says
        whether it does.

        Raises CaptureError where it holds a run already and `overwrite` is False, or another process writes there.
        """
        self.path = path
        self.metadata_file = metadata_file
        self._beginning: BackgroundSync | None = None
        try:
            self._not_durable = _make_folder(path)
            self._descriptor = lock_folder(path)
        except OSError as error:
            raise CaptureError(f"cannot create the run directory {path}: {error.strerror}") from error
        _locked.add(self)
        self.resumes = resume and (path / MANIFEST_FILE).exists()
        try:
            _refuse_other_prompts(path)
            if not self.resumes:
                self._clear(overwrite)
        except BaseException:
            self.release()
            raise

    def _clear(self, overwrite: bool) -> None:
        standing = self._files_of_a_run()
        if not standing:
            return
        if not overwrite:
            raise CaptureError(
                f"{self.path} already holds a run ({standing[0].name}): choose another folder, "
                "or ask for it to be overwritten"
            )
        for file in standing:
            file.unlink(missing_ok=True)

    def _files_of_a_run(self) -> list[Path]:
        """What a run left here. Files of any other name are nobody's business."""
        names = {MANIFEST_FILE, INDEX_FILE, PROMPTS_FILE, READOUT_FILE}
        names |= {self.metadata_file, report_file_name(self.metadata_file)}
        try:
            before = decode_manifest(read_regular(self.path / MANIFEST_FILE))
            if is_metadata_file(before.metadata_file):
                names |= {before.metadata_file, report_file_name(before.metadata_file)}
        except (OSError, RunError):
            pass  # none, or none that can be read: its shards are known by their names
        return sorted(
            entry
            for entry in self.path.iterdir()
            if entry.is_file() and (entry.name in names or _SHARD.fullmatch(entry.name))
        )

    def begin(self, manifest: Manifest) -> None:
        """Write the first manifest. It, and the folder, become durable behind the model's back: see `settle`."""
        file = self.path / MANIFEST_FILE
        if file.exists():  # of what was captured earlier: what replaces it must be whole on the disk first
            self.write_manifest(manifest)
        else:
            self.write({MANIFEST_FILE: encode_manifest(manifest)}, durable=False)
            self._not_durable += [file, self.path]
        if self._not_durable:
            self._beginning = BackgroundSync(self._not_durable)

    def settle(self, patience: float = 0) -> None:
        """Return when what `begin` wrote is durable. Raises CaptureError, as `BackgroundSync.wait` does."""
        if self._beginning is not None:
            self._beginning.wait(patience)

    @property
    def settled(self) -> bool:
        """Whether `settle` has nothing to wait for."""
        return self._beginning is None or self._beginning.ended

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace `capture.json` in one step."""
        self.write({MANIFEST_FILE: encode_manifest(manifest)})

    def write(self, files: Mapping[str, bytes | Iterable[bytes | memoryview]], *, durable: bool = True) -> None:
        """Replace files of the run, each in one step. Raises CaptureError."""
        try:
            replace_files(self.path, files, durable=durable)
        except OSError as error:
            raise CaptureError(f"cannot write {error.filename}: {error.strerror}") from error

    def published(self, shard: str) -> bool:
        """Whether a shard has its final name."""
        return (self.path / shard).exists()

    def remove_journals(self, shards: Iterable[str]) -> None:
        """Drop the journals of published shards: the metadata JSON now says all that they did."""
        for shard in shards:
            (self.path / f"{shard}.journal").unlink(missing_ok=True)

    def discard(self) -> None:
        """Take away the files of a run that never began."""
        for name in (MANIFEST_FILE, READOUT_FILE):
            (self.path / name).unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back. A forked child that still has the descriptor does not keep it."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def forget(self) -> None:
        """In a forked child: drop the descriptor, so that the lock ends with the process that holds it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
