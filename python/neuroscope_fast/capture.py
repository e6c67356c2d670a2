"""`capture(model, hooks, …)`: everything the named places compute, while the model runs as it does without.

with nsf.capture(model, ["model.layers.*:residual"], out="runs/a", dtype="bfloat16") as cap:
    model.generate(**inputs, max_new_tokens=30)
run = cap.result
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .collect import Collected, checksums_of, collect, collect_dropped, never_ran
from .environment import float8_rules, model_info, versions
from .errors import CaptureError, CaptureWarning, OptionError
from .manifest import INDEX_FILE, Counters, Manifest, ManifestHook, Status, encode_index
from .records import (
    ActivationCapture,
    CircuitAnalysis,
    Generation,
    HookConfiguration,
    Metadata,
    Usage,
    encode_metadata,
)
from .run_directory import RunDirectory, metadata_file_name, report_file_name
from .spec import CAST_DTYPES, Hooks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._core import Session
    from .hooks import Plan
    from .passes import PassObserver
    from .reader import Run

Overflow = Literal["block", "drop", "fail"]

MIB = 1 << 20


class CaptureOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a capture stores what it takes. Sizes are in bytes."""

    dtype: str | None = None
    overflow: Overflow = "block"
    ring_bytes: int = 256 * MIB
    block_bytes: int = 4 * MIB
    shard_bytes: int = 4096 * MIB
    direct_io: bool = True
    tensor_access: Literal["automatic", "dlpack", "attributes"] = "automatic"
    analysis: str | None = None
    description: str = ""


def capture(
    model: nn.Module,
    hooks: Hooks,
    out: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
    analysis: str | None = None,
    description: str = "",
    **options: Any,
) -> Capture:
    """Prepare the capture of `hooks` on `model`; it runs inside a `with` block.

    Args:
        model: any torch.nn.Module. Its hooks are as they were when the block is left, whatever happened in it.
        hooks: one hook or several, in every form that `parse_hooks` takes.
        out: the run directory, created where it is not there; None keeps the records in memory.
        dtype: floating-point activations are cast to it on copy (`float32`, `bfloat16`, `float16`, `float8_e4m3fn`,
            `float8_e5m2`, or `int8` with a float32 scale for each row); None stores them as they are. A hook's own
            dtype comes first.
        overwrite: replace a run that stands in `out`.
        analysis: a name; the run then is a circuit analysis in the reference document's form.
        description: a sentence on the analysis.
        options: `overflow` (`block`: a tap waits while the ring is full and nothing is lost; `drop`: the record is
            left out and listed in the manifest; `fail`: CaptureError), `ring_bytes`, `block_bytes`, `shard_bytes`,
            `direct_io`, `tensor_access`.

    Raises HookError for hooks that cannot be on this model, OptionError for options that cannot be.
    """
    if dtype is not None:
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in CAST_DTYPES:
            raise OptionError(f"cannot store activations as {dtype!r}; available: {', '.join(CAST_DTYPES)}")
    given = {**options, "dtype": dtype, "analysis": analysis, "description": description}
    known = CaptureOptions.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; available: {', '.join(known)}")
    try:
        chosen = msgspec.convert(given, CaptureOptions)
    except msgspec.ValidationError as error:
        raise OptionError(f"wrong option: {error}") from error
    return Capture(model, hooks, None if out is None else Path(out), chosen, overwrite=overwrite)


class Capture:
    """A capture of one model. Made by `capture()`; runs once, as a context manager."""

    def __init__(self, model: nn.Module, hooks: Hooks, out: Path | None, options: CaptureOptions, *, overwrite: bool):
        from .hooks import make_plan, refuse_compiled
        from .model_map import resolve_hooks

        self.options = options
        self._model = model
        self._out = out
        self._overwrite = overwrite
        self._metadata_file = metadata_file_name(options.analysis)
        self._plan = make_plan(resolve_hooks(model, hooks), options.dtype)
        refuse_compiled(model, self._plan)
        self._running: _Running | None = None
        self._result: Run | None = None

    @property
    def hook_ids(self) -> list[str]:
        """The ids of the hooks, patterns expanded."""
        return [each.hook.hook_id for each in self._plan.hooks]

    @property
    def stats(self) -> Counters:
        """What the engine has counted so far. Raises CaptureError before the block is entered."""
        return self._entered().counters()

    @property
    def result(self) -> Run:
        """The run, once the block has been left. Raises CaptureError before that."""
        if self._result is None:
            raise CaptureError("a capture has its result once its with-block has been left")
        return self._result

    def next_prompt(self) -> None:
        """What runs from here on belongs to the next prompt: its steps are counted from 0 again."""
        self._entered().session.next_prompt()

    def add_generation(self, prompt: str, generated_text: str, *, prompt_tokens: int, completion_tokens: int) -> None:
        """Say what text the model read and wrote; without it the metadata counts the tokens that went through."""
        usage = Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
        self._entered().generations.append(Generation(prompt, generated_text, usage))

    def __enter__(self) -> Capture:
        if self._running is not None:
            raise CaptureError("a capture runs once: make a new one with nsf.capture(…)")
        self._running = _Running(self)
        # The backstop for a block that is never left: the interpreter exits, or the object is lost.
        self._finalizer = weakref.finalize(
            self, self._running.finish, "interrupted", "the interpreter exited, or the capture was dropped"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running = self._entered()
        self._finalizer.detach()
        try:
            if error is None:
                self._result = running.finish("complete", None)
                running.warn()
            else:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                self._result = running.finish("interrupted", text)
        except CaptureError:
            self._result = running.result
            if error is None:
                raise
            # The exception that left the block goes on; the manifest tells of both.

    def _entered(self) -> _Running:
        if self._running is None:
            raise CaptureError("the capture has not started: use it as `with nsf.capture(…) as cap:`")
        return self._running


class _Running:
    """What lives from the entry of the block to its end. Knows the Capture no more, so that it can outlive it."""

    def __init__(self, capture: Capture):
        from . import _core
        from .hooks import attach_taps, detach
        from .passes import PassObserver

        options = capture.options
        self.plan: Plan = capture._plan
        self.options = options
        self.generations: list[Generation] = []
        self.result: Run | None = None
        self._metadata_file = capture._metadata_file
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._finished = False
        self._directory: RunDirectory | None = None
        self._removers: list[Callable[[], None]] = []
        if capture._out is not None:
            self._directory = RunDirectory(capture._out, self._metadata_file, overwrite=capture._overwrite)
        try:
            e4m3_saturates, e5m2_saturates = float8_rules()
            try:
                self.session: Session = _core.Session(
                    self.plan.streams,
                    len(self.plan.taps),
                    folder=None if self._directory is None else str(self._directory.path),
                    ring_bytes=options.ring_bytes,
                    block_bytes=options.block_bytes,
                    shard_bytes=options.shard_bytes,
                    overflow=options.overflow,
                    direct_io=options.direct_io,
                    e4m3_saturates=e4m3_saturates,
                    e5m2_saturates=e5m2_saturates,
                    tensor_access=options.tensor_access,
                )
            except (ValueError, TypeError) as error:
                raise OptionError(f"wrong option: {error}") from error
            self.manifest = self._first_manifest(capture._model)
            if self._directory is not None:
                self._directory.write_manifest(self.manifest)
            self._observer: PassObserver = PassObserver(capture._model, self.session)
            self._removers += self._observer.attach_first(capture._model)
            self._removers += attach_taps(capture._model, self.plan, self.session)
            self._removers += self._observer.attach_last(capture._model)
        except BaseException:
            detach(self._removers)
            if self._directory is not None:
                self._directory.release()
            raise

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
                )
                for each in self.plan.hooks
            },
        )

    def counters(self) -> Counters:
        return msgspec.convert(self.session.stats(), Counters, strict=False)

    def finish(self, status: Status, cause: str | None) -> Run | None:
        """Take the hooks off, bring everything to its place, and give the run. Does its work once.

        Raises CaptureError where the engine failed or a file could not be written; what could be saved is.
        """
        from .hooks import detach

        detach(self._removers)
        with self._lock:
            if self._finished or os.getpid() != self._process:  # a forked child must not touch the parent's files
                return self.result
            self._finished = True
        try:
            failure: CaptureError | None = None
            try:
                self.session.close()
            except CaptureError as error:
                failure, status, cause = error, "failed", str(error)
            self._write(status, cause)
            if failure is not None:
                raise failure
            return self.result
        finally:
            if self._directory is not None:
                self._directory.release()

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
            warnings=self._warnings(collected),
            dropped=collect_dropped(self.session, self.plan),
            checksums=checksums_of(collected),
        )
        if directory is None:
            self.result = Run(metadata, self.manifest, MemorySource(collected.tensors))
            return
        self._write_files(directory, metadata, collected)
        self.result = Run(metadata, self.manifest, DirectorySource(directory.path), directory.path)

    def _write_files(self, directory: RunDirectory, metadata: Metadata, collected: Collected) -> None:
        from .report import render

        encoded = encode_metadata(metadata)
        directory.write(self._metadata_file, encoded)
        directory.write(report_file_name(self._metadata_file), render(encoded).encode())
        directory.write(INDEX_FILE, encode_index(collected.weight_map, collected.total_size))
        directory.write_manifest(self.manifest)
        directory.remove_journals(collected.checksums)

    def warn(self) -> None:
        """Tell of hooks whose module never ran: most likely the model that ran is not the one that was hooked."""
        silent = never_ran(self.plan, self.session)
        if silent:
            shown = ", ".join(silent[:4]) + (f" and {len(silent) - 4} more" if len(silent) > 4 else "")
            warnings.warn(
                f"nothing was captured for {shown}: the hooked modules never ran "
                "(a model compiled with torch.compile before the capture does not call hooks)",
                CaptureWarning,
                stacklevel=3,
            )

    def _warnings(self, collected: Collected) -> list[str]:
        silent = set(never_ran(self.plan, self.session))
        return [
            f"hook {hook_id!r} captured nothing" + (": its module never ran" if hook_id in silent else "")
            for hook_id, records in collected.activations.items()
            if not records
        ]

    def _metadata(self, collected: Collected) -> Metadata:
        generations = self.generations
        usage = _sum(each.usage for each in generations) if generations else self._observer.usage()
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


def _module_of(hook: Any) -> str:
    place = hook.output or hook.input
    return str(place.module)


def _sum(usages: Iterable[Usage]) -> Usage:
    each = list(usages)
    return Usage(
        sum(usage.prompt_tokens for usage in each),
        sum(usage.completion_tokens for usage in each),
        sum(usage.total_tokens for usage in each),
    )
