"""A capture between the entry of its block and its end: the session, the hooks, and bringing all of it to disk."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .attachment import Attachment
from .collect import Collected, HeldTensors, collect_dropped, never_ran
from .devices import device_counters
from .durability import parse_durability
from .environment import float8_rules, model_info, versions
from .errors import CaptureError, CaptureWarning, OptionError
from .manifest import INDEX_FILE, MANIFEST_FILE, Counters, Manifest, Resumption, Status, encode_manifest
from .memory import refuse_too_large_a_ring
from .options import CaptureOptions
from .prompt_log import texts_of
from .prompt_recorder import PromptRecorder
from .records import Metadata, encode_metadata, metadata_pieces
from .repair import recover_run
from .resume import Earlier, cut_back, look_back
from .run_directory import RunDirectory, metadata_file_name, report_file_name
from .run_metadata import add_counters, manifest_hooks, run_metadata

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session
    from .compiled import CompiledCode
    from .hooks import Plan
    from .passes import PassObserver
    from .reader import Run


_UNKNOWN_GRAPH = (
    "a CUDA graph that had been captured before the block was replayed in it: if hooked modules are part of it, what "
    "they computed there is not in the run; capture the graph inside the block, with torch.cuda.graph"
)


_FILLED_IN_A_SECOND = 1 << 30
"""Bytes of a shard: any disk has made a small file durable long before such a one is full."""


@contextlib.contextmanager
def _resuming(folder: Path) -> Iterator[None]:
    """What the system refuses, as a CaptureError."""
    try:
        yield
    except OSError as error:
        raise CaptureError(f"{error.filename or folder} cannot be resumed: {error.strerror}") from error


class RunningCapture:
    """What lives from the entry of the block to its end. Knows the Capture no more, so that it can outlive it."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        options: CaptureOptions,
        out: Path | None,
        *,
        overwrite: bool,
        resume: bool,
        generation: dict[str, Any],
    ):
        from . import _core

        self.plan = plan
        self.options = options
        self.result: Run | None = None
        self.finished = False
        self._metadata_file = metadata_file_name(options.analysis)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._attachment = Attachment()
        self.manifest = self._first_manifest(model, generation)
        self._observer: PassObserver | None = None
        self._compiled: CompiledCode | None = None
        self._graph_warnings: list[str] = []
        self._directory: RunDirectory | None = None
        self._earlier: Earlier | None = None
        e4m3_saturates, e5m2_saturates = float8_rules()
        durability = parse_durability(options.durability)
        refuse_too_large_a_ring(options.ring_bytes)
        if out is not None:
            if resume and (out / MANIFEST_FILE).exists():
                recover_run(out)
            self._directory = RunDirectory(out, self._metadata_file, overwrite=overwrite, resume=resume)
        try:
            if self._directory is not None and self._directory.resumes:
                self._resume(self._directory.path)
            self.session: Session = _core.Session(
                self.plan.streams,
                len(self.plan.taps),
                folder=None if self._directory is None else str(self._directory.path),
                ring_bytes=options.ring_bytes,
                block_bytes=options.block_bytes,
                shard_bytes=options.shard_bytes,
                sync_at_close=durability.at_close,
                sync_bytes=durability.bytes,
                sync_seconds=durability.seconds,
                patience=options.patience,
                first_prompt=self.first_prompt,
                first_shards={} if self._earlier is None else self._earlier.first_shards,
                detaches=options.on_error == "detach",
                overflow=options.overflow,
                direct_io=options.direct_io,
                e4m3_saturates=e4m3_saturates,
                e5m2_saturates=e5m2_saturates,
                tensor_access=options.tensor_access,
                staging_bytes=options.staging_bytes,
                staging_share=options.staging_share,
            )
            self.prompts = PromptRecorder(self.session, out, [] if self._earlier is None else self._earlier.prompts)
        except BaseException as error:
            self.cancel()
            if isinstance(error, MemoryError):
                raise OptionError(f"there is no memory for a ring of {options.ring_bytes} bytes") from error
            if isinstance(error, (ValueError, TypeError)) and not isinstance(error, OptionError):
                raise OptionError(f"wrong option: {error}") from error
            raise

    @property
    def first_prompt(self) -> int:
        """The number of the first prompt that is captured: not 0 where a run is continued."""
        return 0 if self._earlier is None else self._earlier.first_prompt

    def _resume(self, folder: Path) -> None:
        """Take the prompts of the run in `folder` that are whole as the beginning of this one."""
        with _resuming(folder):
            earlier = look_back(folder, self.manifest)
        self._earlier = earlier
        before = earlier.manifest
        resumption = Resumption(
            at=self.manifest.created, first_prompt=earlier.first_prompt, versions=self.manifest.versions
        )
        self.manifest = msgspec.structs.replace(
            self.manifest,
            created=before.created,
            versions=before.versions,
            counters=before.counters,
            dropped=before.dropped,
            checksums=before.checksums,
            file_checksums=before.file_checksums,
            recovery=before.recovery,
            resumptions=[*before.resumptions, resumption],
        )

    def start(self, model: nn.Module, vocabulary: Sequence[str] = ()) -> None:
        """Put the hooks on and, on disk, say that a run is being written."""
        from .compiled import CompiledCode
        from .devices import open_devices
        from .hooks import attach_taps
        from .passes import PassObserver

        if self.options.store_readout and self._directory is not None:
            if self._earlier is None:
                self._directory.write_manifest(self.manifest)  # or nobody knows whose file it is, should this be killed
            self._store_readout(self._directory, model, vocabulary)  # first: it runs the model, which is not captured
        open_devices(model, self.plan, self.session)
        self._observer = PassObserver(model, self.session, [tap.place.module for tap in self.plan.taps])
        self.prompts.count_tokens = self._observer.usage
        self.prompts.take_padding = self._observer.take_padding
        self._compiled = CompiledCode(self._observer, self._attachment)
        self._compiled.start()
        self._observer.attach_first(self._attachment, self._compiled)
        attach_taps(model, self.plan, self.session, self._attachment, self._compiled)
        self._observer.attach_last(self._attachment, self._compiled)
        self._compiled.forget_code()
        self._observer.graphs.start(self._observer)
        if self._directory is not None:
            if self._earlier is not None:
                with _resuming(self._directory.path):
                    cut_back(self._directory.path, self._earlier)  # what could be wrong with the capture has been said
            self._directory.begin(self.manifest)
            if self._acknowledges_soon():
                self._directory.settle(self.options.patience)

    def _acknowledges_soon(self) -> bool:
        """Whether tensors may be acknowledged as durable before what the beginning wrote is."""
        durability = parse_durability(self.options.durability)
        fills_shards = not durability.at_close and self.options.shard_bytes < _FILLED_IN_A_SECOND
        return fills_shards or durability.bytes > 0 or durability.seconds > 0

    def _store_readout(self, directory: RunDirectory, model: nn.Module, vocabulary: Sequence[str]) -> None:
        from .model_readout import readout_of
        from .readout import READOUT_FILE, put_readout

        heads = [
            each.hook.output.module
            for each in self.plan.hooks
            if each.hook.component == "head_output"
            and each.hook.spec.reduction is None
            and each.hook.output is not None
        ]
        checksum = put_readout(readout_of(model, heads, vocabulary), directory.write)
        self.manifest.file_checksums = {READOUT_FILE: f"{checksum:08x}"}

    def cancel(self) -> None:
        """Undo a start that did not come to its end: nothing was captured, and nothing stays behind."""
        self._detach()
        self.finished = True
        session = getattr(self, "session", None)
        if session is not None:  # what it holds of a device must not wait for the traceback to be forgotten
            session.close()
        prompts = getattr(self, "prompts", None)
        if prompts is not None:
            prompts.close()
        if self._directory is not None:
            if not self._directory.resumes:
                self._directory.discard()
            self._directory.release()

    def _detach(self) -> None:
        """Take every hook off, and those that were compiled into code too. Can be called again."""
        self._attachment.detach()
        if self._observer is not None:
            self._observer.stop()
        if self._compiled is not None:
            self._compiled.stop()

    def _first_manifest(self, model: nn.Module, generation: dict[str, Any]) -> Manifest:
        return Manifest(
            status="writing",
            created=datetime.now().isoformat(),
            metadata_file=self._metadata_file,
            versions=versions(),
            model=model_info(model),
            options=msgspec.to_builtins(self.options),
            hooks=manifest_hooks(self.plan),
            generation=generation,
        )

    def sync(self) -> None:
        """Return when everything so far is durable. Raises CaptureError."""
        if self._directory is not None:
            self._directory.settle(self.options.patience)
        self.session.sync()
        self.prompts.sync()

    def counters(self) -> Counters:
        return msgspec.convert(self.session.stats(), Counters, strict=False)

    def finish(self, status: Status, cause: str | None) -> None:
        """Take the hooks off, bring everything to its place, and make `result`. Does its work once.

        Raises CaptureError where the engine failed or a file could not be written; what could be saved is. With
        on_error='detach' that is a CaptureWarning, and `result` has what is whole. An interrupt while the ring drains
        is raised when all is written.
        """
        with self._lock:
            if self.finished or os.getpid() != self._process:  # a forked child must not touch the parent's files
                return
            failure, interrupt = self._stop()
            if failure is not None:
                status, cause = "failed", str(failure)
            elif interrupt is not None and status == "complete":
                status, cause = "interrupted", "KeyboardInterrupt"
            if self.session.detached_by:
                status, cause = "failed", self.session.detached_by
            # On a disk that does not answer, what is written beside the shards would wait too.
            hung = self.session.hung or (self._directory is not None and not self._directory.settled)
            if not hung:
                self.prompts.finish(ended=status == "complete")
            if self.prompts.failure is not None and failure is None:
                failure, status, cause = self.prompts.failure, "failed", str(self.prompts.failure)
            try:
                if hung:
                    self.manifest = msgspec.structs.replace(self.manifest, status="failed", cause=cause)
                else:
                    self._write(status, cause)
            except CaptureError as error:
                self._write_failure(str(failure or error))
                if failure is not None:
                    failure.__cause__ = error
                failure = failure or error
            finally:
                self.finished = True
                self._observer = self._compiled = None
                if not hung:  # the run is still being written, if its disk ever comes back
                    self.prompts.close()
                    if self._directory is not None:
                        self._directory.release()
        if failure is not None and self.options.on_error == "raise":
            raise failure
        if failure is not None and not self.session.detached_by:  # otherwise it has been said
            warnings.warn(f"the capture is not whole: {failure}", CaptureWarning, stacklevel=3)
        if interrupt is not None:
            raise interrupt

    def _stop(self) -> tuple[CaptureError | None, KeyboardInterrupt | None]:
        """Take the hooks off and wait for all that is under way, whatever comes in between; returns what came."""
        failure: CaptureError | None = None
        interrupt: KeyboardInterrupt | None = None
        for part in (self._detach, self.session.close, self._settle):
            while True:
                try:
                    part()
                except CaptureError as error:
                    failure = failure or error
                except KeyboardInterrupt as error:  # kept until all is done: a hook left behind would outlive us
                    interrupt = error
                    continue
                break
        return failure, interrupt

    def _settle(self) -> None:
        if self._directory is not None and not self.session.hung:
            self._directory.settle(self.options.patience)

    def _write_failure(self, cause: str) -> None:
        """The files beside the shards could not be written: say so in the manifest, if at least that can be."""
        self.manifest = msgspec.structs.replace(self.manifest, status="failed", cause=cause)
        if self._directory is not None:
            with contextlib.suppress(CaptureError):  # the error that is on its way to the user says the same
                self._directory.write_manifest(self.manifest)

    def _write(self, status: Status, cause: str | None) -> None:
        from .reader import DirectorySource, MemorySource, Run

        directory, earlier = self._directory, self._earlier
        collected = Collected(
            self.session, self.plan, published=None if directory is None else directory.published, earlier=earlier
        )
        counters, dropped = self.counters(), collect_dropped(self.session, self.plan)
        if earlier is not None:
            counters = add_counters(earlier.manifest.counters, counters)
            dropped = earlier.manifest.dropped + dropped
        head = run_metadata(self.plan, self.options, self.manifest.created, texts_of(self.prompts.entries))
        self.manifest = msgspec.structs.replace(
            self.manifest,
            status=status,
            cause=cause,
            closed=datetime.now().isoformat(),
            counters=counters,
            devices=device_counters(self.session),
            warnings=self._warnings(collected, counters),
            dropped=dropped,
            checksums=collected.checksums(),
        )
        undecoded = collected.undecoded()
        if directory is None:
            held = MemorySource(HeldTensors(collected))
            self.result = Run(head, self.manifest, held, undecoded=undecoded, prompts=self.prompts.entries)
            return
        stored = DirectorySource(directory.path)
        self.result = Run(head, self.manifest, stored, directory.path, undecoded=undecoded)
        self._write_files(directory, head, collected)

    def _write_files(self, directory: RunDirectory, head: Metadata, collected: Collected) -> None:
        from .report import render_counted

        metadata = metadata_pieces(head, collected.lines())
        directory.write({self._metadata_file: metadata, INDEX_FILE: collected.index()})
        self.prompts.sync()
        # The manifest last: it says of the others that they are whole.
        report = render_counted(encode_metadata(head), collected.counted()).encode()
        directory.write({report_file_name(self._metadata_file): report, MANIFEST_FILE: encode_manifest(self.manifest)})
        directory.remove_journals(collected.shards)

    def warn(self) -> None:
        """Tell of memory that could not be had in full, and of hooks whose module never ran, most likely since
        the model that ran is not the one that was hooked.
        """
        for line in self.session.warnings() + self._graph_warnings:
            warnings.warn(line, CaptureWarning, stacklevel=3)
        for reason, hooks in never_ran(self.plan, self.session).items():
            silent = [hook_id for hook_id in hooks if not self._captured_earlier(hook_id)]
            if not silent:
                continue
            shown = ", ".join(silent[:4]) + (f" and {len(silent) - 4} more" if len(silent) > 4 else "")
            warnings.warn(
                f"nothing was captured for {shown}: the hooked {reason.replace('module', 'modules', 1)}",
                CaptureWarning,
                stacklevel=3,
            )

    def _captured_earlier(self, hook_id: str) -> bool:
        return self._earlier is not None and bool(self._earlier.metadata.activations.get(hook_id))

    def _warnings(self, collected: Collected, counters: Counters) -> list[str]:
        silent = {hook_id: why for why, hooks in never_ran(self.plan, self.session).items() for hook_id in hooks}
        lines = [
            f"hook {hook_id!r} captured nothing" + (f": its {silent[hook_id]}" if hook_id in silent else "")
            for hook_id in collected.silent()
        ]
        if self._observer is not None and self._observer.graphs.replayed_unknown:
            self._graph_warnings = [_UNKNOWN_GRAPH]
        lines += self.session.warnings() + self._graph_warnings
        if drops := counters.drops:
            lines.append(f"records dropped because the ring was full: {drops}")
        return lines
