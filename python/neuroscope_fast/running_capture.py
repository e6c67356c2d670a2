"""A capture between the entry of its block and its end: the session, the hooks, and bringing all of it to disk."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .attachment import Attachment
from .collect import Collected, checksums_of, collect, collect_dropped, never_ran
from .devices import device_counters
from .durability import parse_durability
from .environment import float8_rules, model_info, versions
from .errors import CaptureError, CaptureWarning, OptionError
from .manifest import INDEX_FILE, MANIFEST_FILE, Counters, Manifest, ManifestHook, Status, encode_index, encode_manifest
from .memory import available_bytes
from .options import CaptureOptions
from .prompt_log import PromptEntry, PromptLog, Text, generations_of
from .records import (
    ActivationCapture,
    CircuitAnalysis,
    Generation,
    HookConfiguration,
    Metadata,
    Usage,
    encode_metadata,
    total_usage,
)
from .run_directory import RunDirectory, metadata_file_name, report_file_name

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


class RunningCapture:
    """What lives from the entry of the block to its end. Knows the Capture no more, so that it can outlive it."""

    def __init__(self, model: nn.Module, plan: Plan, options: CaptureOptions, out: Path | None, *, overwrite: bool):
        from . import _core

        self.plan = plan
        self.options = options
        self._texts: list[Text] = []  # of the prompt that is under way
        self._generations: list[Generation] = []
        self._entries: list[PromptEntry] = []  # of a capture in memory; on disk they are in the log
        self._log: PromptLog | None = None
        self._log_failure: CaptureError | None = None
        self._counted = (0, 0)  # records taken and dropped before the prompt that is under way
        self.result: Run | None = None
        self.finished = False
        self._metadata_file = metadata_file_name(options.analysis)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._attachment = Attachment()
        self.manifest = self._first_manifest(model)
        self._observer: PassObserver | None = None
        self._compiled: CompiledCode | None = None
        self._graph_warnings: list[str] = []
        self._directory: RunDirectory | None = None
        e4m3_saturates, e5m2_saturates = float8_rules()
        durability = parse_durability(options.durability)
        _refuse_too_large_a_ring(options.ring_bytes)
        if out is not None:
            self._directory = RunDirectory(out, self._metadata_file, overwrite=overwrite)
            self._log = PromptLog(out)
        try:
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
                detaches=options.on_error == "detach",
                overflow=options.overflow,
                direct_io=options.direct_io,
                e4m3_saturates=e4m3_saturates,
                e5m2_saturates=e5m2_saturates,
                tensor_access=options.tensor_access,
                staging_bytes=options.staging_bytes,
                staging_share=options.staging_share,
            )
        except BaseException as error:
            self.cancel()
            if isinstance(error, MemoryError):
                raise OptionError(f"there is no memory for a ring of {options.ring_bytes} bytes") from error
            if isinstance(error, (ValueError, TypeError)):
                raise OptionError(f"wrong option: {error}") from error
            raise

    def start(self, model: nn.Module) -> None:
        """Put the hooks on and, on disk, say that a run is being written."""
        from .compiled import CompiledCode
        from .devices import open_devices
        from .hooks import attach_taps
        from .passes import PassObserver

        open_devices(model, self.plan, self.session)
        self._observer = PassObserver(model, self.session, [tap.place.module for tap in self.plan.taps])
        self._compiled = CompiledCode(self._observer, self._attachment)
        self._compiled.start()
        self._observer.attach_first(self._attachment, self._compiled)
        attach_taps(model, self.plan, self.session, self._attachment, self._compiled)
        self._observer.attach_last(self._attachment, self._compiled)
        self._compiled.forget_code()
        self._observer.graphs.start(self._observer)
        if self._directory is not None:
            self._directory.write_manifest(self.manifest)

    def cancel(self) -> None:
        """Undo a start that did not come to its end: nothing was captured, and nothing stays behind."""
        self._detach()
        self.finished = True
        session = getattr(self, "session", None)
        if session is not None:  # what it holds of a device must not wait for the traceback to be forgotten
            session.close()
        if self._log is not None:
            self._log.close()
        if self._directory is not None:
            self._directory.discard()
            self._directory.release()

    def _detach(self) -> None:
        """Take every hook off, and those that were compiled into code too. Can be called again."""
        self._attachment.detach()
        if self._observer is not None:
            self._observer.graphs.stop()
        if self._compiled is not None:
            self._compiled.stop()

    def _first_manifest(self, model: nn.Module) -> Manifest:
        return Manifest(
            status="writing",
            created=datetime.now().isoformat(),
            metadata_file=self._metadata_file,
            versions=versions(),
            model=model_info(model),
            options=msgspec.to_builtins(self.options),
            hooks={
                each.hook.hook_id: ManifestHook(
                    layer_name=each.hook.layer_name,
                    component=each.hook.component,
                    module=_module_of(each.hook),
                    input=each.input,
                    output=each.output,
                    dtype=each.dtype,
                    positions=each.hook.spec.positions,
                    phase=each.hook.spec.phase,
                    every=each.hook.spec.every,
                    heads=_heads_of(each.hook),
                    reduction=each.hook.spec.reduction,
                    top_k=each.hook.spec.top_k,
                    indices=each.indices,
                )
                for each in self.plan.hooks
            },
        )

    def add_text(self, text: Text) -> None:
        """What the model read and wrote in the prompt that is under way, for its next row."""
        with self._lock:
            self._texts.append(text)

    def next_prompt(self) -> None:
        """End the prompt that is under way, if anything has run in it."""
        with self._lock:
            before = self.session.prompt
            self.session.next_prompt()
            if self.session.prompt != before:
                self._end_prompt(before, ended=True)

    def sync(self) -> None:
        """Return when everything so far is durable. Raises CaptureError."""
        self.session.sync()
        with self._lock:
            if self._log is not None:
                self._log.sync()

    def _end_prompt(self, number: int, *, ended: bool) -> None:
        stats = self.session.stats()
        taken, drops = stats["taken"], stats["drops"]
        texts, self._texts = self._texts, []
        entry = PromptEntry(
            prompt=number,
            records=taken - self._counted[0],
            drops=drops - self._counted[1],
            ended=ended,
            texts=texts,
        )
        self._counted = (taken, drops)
        self._generations += generations_of([entry])
        if self._log is None:
            self._entries.append(entry)
        elif self._log_failure is None:
            try:
                self._log.append(entry)
            except CaptureError as error:  # raised at the end: the model is not to be stopped by it
                self._log_failure = error

    def counters(self) -> Counters:
        return msgspec.convert(self.session.stats(), Counters, strict=False)

    def finish(self, status: Status, cause: str | None) -> None:
        """Take the hooks off, bring everything to its place, and make `result`. Does its work once.

        Raises CaptureError where the engine failed or a file could not be written; what could be saved is. With
        on_error='detach' that is a CaptureWarning, and `result` has what is whole. An interrupt while the ring drains
        is raised when all is written.
        """
        interrupt: KeyboardInterrupt | None = None
        with self._lock:
            if self.finished or os.getpid() != self._process:  # a forked child must not touch the parent's files
                return
            failure: CaptureError | None = None
            while True:
                try:
                    self._detach()
                    self.session.close()
                    break
                except CaptureError as error:
                    failure, status, cause = error, "failed", str(error)
                    break
                except KeyboardInterrupt as error:  # kept until all is done: a hook left behind would outlive us
                    interrupt = error
            if interrupt is not None and status == "complete":
                status, cause = "interrupted", "KeyboardInterrupt"
            if self.session.detached_by:
                status, cause = "failed", self.session.detached_by
            if self._texts or self.session.stats()["taken"] + self.session.stats()["drops"] > sum(self._counted):
                self._end_prompt(self.session.prompt, ended=status == "complete")
            if self._log_failure is not None and failure is None:
                failure, status, cause = self._log_failure, "failed", str(self._log_failure)
            try:
                self._write(status, cause)
            except CaptureError as error:
                self._write_failure(str(failure or error))
                if failure is not None:
                    failure.__cause__ = error
                failure = failure or error
            finally:
                self.finished = True
                self._observer = self._compiled = None
                if self._log is not None:
                    self._log.close()
                if self._directory is not None:
                    self._directory.release()
        if failure is not None and self.options.on_error == "raise":
            raise failure
        if failure is not None and not self.session.detached_by:  # otherwise it has been said
            warnings.warn(f"the capture is not whole: {failure}", CaptureWarning, stacklevel=3)
        if interrupt is not None:
            raise interrupt

    def _write_failure(self, cause: str) -> None:
        """The files beside the shards could not be written: say so in the manifest, if at least that can be."""
        self.manifest = msgspec.structs.replace(self.manifest, status="failed", cause=cause)
        if self._directory is not None:
            with contextlib.suppress(CaptureError):  # the error that is on its way to the user says the same
                self._directory.write_manifest(self.manifest)

    def _write(self, status: Status, cause: str | None) -> None:
        from .reader import DirectorySource, MemorySource, Run

        directory = self._directory
        on_disk = directory is not None
        collected = collect(
            self.session,
            self.plan,
            on_disk=on_disk,
            published=directory.published if directory is not None else lambda _: False,
        )
        metadata = self._metadata(collected)
        self.manifest = msgspec.structs.replace(
            self.manifest,
            status=status,
            cause=cause,
            closed=datetime.now().isoformat(),
            counters=self.counters(),
            devices=device_counters(self.session),
            warnings=self._warnings(collected),
            dropped=collect_dropped(self.session, self.plan),
            checksums=checksums_of(collected),
        )
        if directory is None:
            self.result = Run(metadata, self.manifest, MemorySource(collected.tensors), prompts=self._entries)
            return
        self.result = Run(metadata, self.manifest, DirectorySource(directory.path), directory.path)
        self._write_files(directory, metadata, collected)

    def _write_files(self, directory: RunDirectory, metadata: Metadata, collected: Collected) -> None:
        from .report import render

        encoded = encode_metadata(metadata)
        index = encode_index(collected.weight_map, collected.total_size)
        directory.write({self._metadata_file: encoded, INDEX_FILE: index})
        if self._log is not None:
            self._log.sync()
        # The manifest last: it says of the others that they are whole.
        report = render(encoded).encode()
        directory.write({report_file_name(self._metadata_file): report, MANIFEST_FILE: encode_manifest(self.manifest)})
        directory.remove_journals(collected.checksums)

    def warn(self) -> None:
        """Tell of memory that could not be had in full, and of hooks whose module never ran, most likely since
        the model that ran is not the one that was hooked.
        """
        for line in self.session.warnings() + self._graph_warnings:
            warnings.warn(line, CaptureWarning, stacklevel=3)
        for reason, silent in never_ran(self.plan, self.session).items():
            shown = ", ".join(silent[:4]) + (f" and {len(silent) - 4} more" if len(silent) > 4 else "")
            warnings.warn(
                f"nothing was captured for {shown}: the hooked {reason.replace('module', 'modules', 1)}",
                CaptureWarning,
                stacklevel=3,
            )

    def _warnings(self, collected: Collected) -> list[str]:
        silent = {hook_id: why for why, hooks in never_ran(self.plan, self.session).items() for hook_id in hooks}
        lines = [
            f"hook {hook_id!r} captured nothing" + (f": its {silent[hook_id]}" if hook_id in silent else "")
            for hook_id, records in collected.activations.items()
            if not records
        ]
        if self._observer is not None and self._observer.graphs.replayed_unknown:
            self._graph_warnings = [_UNKNOWN_GRAPH]
        lines += self.session.warnings() + self._graph_warnings
        if drops := self.counters().drops:
            lines.append(f"records dropped because the ring was full: {drops}")
        return lines

    def _metadata(self, collected: Collected) -> Metadata:
        generations = self._generations
        if generations:
            usage = total_usage(each.usage for each in generations)
        else:
            usage = self._observer.usage() if self._observer is not None else Usage()
        common: dict[str, Any] = {
            "timestamp": self.manifest.created,
            "generated_text": "\n\n".join(each.generated_text for each in generations),
            "activations": collected.activations,
            "usage": usage,
            "hook_configurations": [
                HookConfiguration(
                    layer_name=each.hook.layer_name,
                    component=each.hook.component,
                    hook_id=each.hook.hook_id,
                    capture_output=each.output is not None,
                    capture_input=each.input is not None,
                    dtype=each.hook.spec.dtype,
                    positions=each.hook.spec.positions,
                    phase=each.hook.spec.phase,
                    every=each.hook.spec.every,
                    heads=_heads_of(each.hook),
                    reduction=each.hook.spec.reduction,
                    top_k=each.hook.spec.top_k,
                )
                for each in self.plan.hooks
            ],
            "generations": generations if len(generations) > 1 else [],
        }
        if self.options.analysis is None:
            return ActivationCapture(demo_type="activation_capture", total_hooks=len(self.plan.hooks), **common)
        return CircuitAnalysis(
            demo_type="circuit_analysis",
            analysis_name=self.options.analysis,
            analysis_description=self.options.description,
            hooks_used=len(self.plan.hooks),
            **common,
        )


def _refuse_too_large_a_ring(ring_bytes: int) -> None:
    """Its memory is taken as it is used: better to say now that there is not enough than to be killed then."""
    available = available_bytes()
    if available is not None and ring_bytes > available:
        raise OptionError(
            f"there is no memory for a ring of {ring_bytes} bytes: {available} are available; lower ring_bytes"
        )


def _module_of(hook: Any) -> str:
    place = hook.output or hook.input
    return str(place.module)


def _heads_of(hook: Any) -> list[int] | None:
    """Counted from the front; None for all of them."""
    part = hook.output.part if hook.output is not None else None
    return list(part.heads) if part is not None and part.heads is not None else None
