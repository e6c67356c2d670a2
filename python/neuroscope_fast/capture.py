"""`capture(model, hooks, …)`: everything the named places compute, while the model runs as it does without.

with nsf.capture(model, ["model.layers.*:residual"], out="runs/a", dtype="bfloat16") as cap:
    model.generate(**inputs, max_new_tokens=30)
run = cap.result
"""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from .durability import parse_durability
from .errors import CaptureError, OptionError, one_line
from .manifest import Counters
from .options import CaptureOptions
from .prompt_log import Text
from .records import Usage
from .run_directory import metadata_file_name
from .running_capture import RunningCapture
from .spec import CAST_DTYPES, Hooks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .reader import Run


def capture(
    model: nn.Module,
    hooks: Hooks,
    out: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
    resume: bool = False,
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
        resume: continue the run that stands in `out`, if there is one, with the same model, hooks and options, at the
            first prompt that is not whole: `first_prompt` says which; what there was of it is captured anew.
        analysis: a name; the run then is a circuit analysis in the reference document's form.
        description: a sentence on the analysis.
        options: `overflow` (`block`: a tap waits while the ring is full and nothing is lost; `drop`: the record is
            left out and listed in the manifest; `fail`: CaptureError), `ring_bytes`, `block_bytes`, `shard_bytes`,
            `durability` (how far behind the disk may be: `close`; `shard`, each full file; a size such as `64MiB` or
            seconds such as `5s`, after which everything is made durable), `on_error` (`raise`; `detach`: a capture that
            fails ends with a CaptureWarning, and the model goes on without it), `store_readout` (keep the final norm
            and the unembedding in the run, and the output projections of layers whose `head_output` is captured: logit
            lens and direct logit attribution then need no model), `direct_io`, `tensor_access`, and for
            CUDA devices `staging_bytes` and `staging_share`. `patience`: after so many seconds in which the disk takes
            nothing (a network mount that is gone) nobody waits for it any longer, and the capture fails; 0 is for ever.

    Raises HookError for hooks that cannot be on this model, OptionError for options that cannot be; entering the block
    raises OptionError where the run to be resumed is of another model, or of other hooks or options.
    """
    if type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
        # What torch.compile was given: it is captured when the compiled one runs, and its names are the user's.
        model = cast("nn.Module", model._orig_mod)
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
    if resume and (overwrite or out is None):
        raise OptionError("a run is either resumed or overwritten" if overwrite else "resume needs a run: give out=DIR")
    return Capture(model, hooks, _absolute(out), chosen, overwrite=overwrite, resume=resume)


class Capture:
    """A capture of one model. Made by `capture()`; runs once, as a context manager."""

    def __init__(
        self,
        model: nn.Module,
        hooks: Hooks,
        out: Path | None,
        options: CaptureOptions,
        *,
        overwrite: bool,
        resume: bool = False,
    ):
        from .hooks import make_plan, refuse_compiled_ahead
        from .model_map import resolve_hooks

        self.options = options
        self.vocabulary: Sequence[str] = ()
        """The text of each token id, which `store_readout` keeps; to be set before the block is entered."""
        self._model: nn.Module | None = model
        self._out = out
        self._overwrite = overwrite
        self._resume = resume
        self.generation: dict[str, Any] = {}
        """How the texts are generated, for the manifest; a capture that resumes the run must say the same."""
        metadata_file_name(options.analysis)  # raises for a name that cannot be part of a file name
        parse_durability(options.durability)
        if options.store_readout and out is None:
            raise OptionError("store_readout writes a file into the run: give out the path of a folder")
        self._plan = make_plan(resolve_hooks(model, hooks), options.dtype)
        refuse_compiled_ahead(model, self._plan)
        self._running: RunningCapture | None = None
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
            if self._running is not None and self._running.finished:
                raise CaptureError(f"the capture has no result: {self._running.manifest.cause}")
            raise CaptureError("a capture has its result once its with-block has been left")
        return self._result

    def sync(self) -> None:
        """Return when everything captured so far is durable: what `stats.acknowledged` then counts survives a crash of
        the machine. Does nothing for a capture in memory. Raises CaptureError where the capture has failed.
        """
        if self._out is not None:
            self._entered().sync()

    @property
    def first_prompt(self) -> int:
        """The number of the prompt that is captured first: of a resumed run the first that is not whole, else 0.

        Raises CaptureError before the block is entered.
        """
        return self._entered().first_prompt

    def next_prompt(self) -> None:
        """What runs from here on belongs to the next prompt: its steps are counted from 0 again."""
        self._entered().prompts.next_prompt()

    def add_generation(
        self,
        prompt: str,
        generated_text: str,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        token_ids: Sequence[int] = (),
        tokens: Sequence[str] = (),
    ) -> None:
        """Say what text the model read and wrote in this prompt; of a batch once for each row, in their order.

        Without it the metadata counts the tokens that went through. `token_ids` and `tokens`, their texts, are those of
        the prompt and then the generated ones; analyses and pictures need them. Raises OptionError where the counts do
        not agree, or something is no text or no number.
        """
        usage = Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
        try:
            text = msgspec.convert(
                {
                    "prompt": prompt,
                    "generated_text": generated_text,
                    "usage": {name: operator.index(getattr(usage, name)) for name in usage.__struct_fields__},
                    "token_ids": [operator.index(token) for token in token_ids],  # of a tensor too
                    "tokens": list(tokens),
                },
                Text,
            )
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise OptionError(f"this is no text and its tokens: {one_line(str(error))}") from error
        total = text.usage.total_tokens
        for name, given in (("token_ids", text.token_ids), ("tokens", text.tokens)):
            if len(given) not in (0, total):
                raise OptionError(f"{name} has {len(given)} entries, and there are {total} tokens")
        if text.tokens and not text.token_ids:
            raise OptionError("tokens are the texts of token_ids: give these too")
        self._entered().prompts.add_text(text)

    def __enter__(self) -> Capture:
        if self._running is not None or self._model is None:
            raise CaptureError("a capture runs once: make a new one with nsf.capture(…)")
        self._running = running = RunningCapture(
            self._model,
            self._plan,
            self.options,
            self._out,
            overwrite=self._overwrite,
            resume=self._resume,
            generation=self.generation,
        )
        # The backstop for a block that is never left: the interpreter exits, or the object is lost.
        self._finalizer = weakref.finalize(
            self, running.finish, "interrupted", "the interpreter exited, or the capture was dropped"
        )
        try:
            running.start(self._model, self.vocabulary)
        except BaseException:
            self._finalizer.detach()
            running.cancel()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running = self._entered()
        try:
            if error is None:
                running.finish("complete", None)
                running.warn()
            else:
                running.finish("interrupted", " ".join(f"{type(error).__name__}: {error}".split()))
        except CaptureError:
            if error is None:
                raise
            # The exception that left the block goes on; the manifest tells of both.
        finally:
            self._result = running.result
            self._model = None
            if running.finished:
                self._finalizer.detach()

    def _entered(self) -> RunningCapture:
        if self._running is None:
            raise CaptureError("the capture has not started: use it as `with nsf.capture(…) as cap:`")
        return self._running


def _absolute(out: str | os.PathLike[str] | None) -> Path | None:
    """The run directory, independent of later changes of the working directory."""
    if out is None:
        return None
    try:
        text = os.fspath(out)
    except TypeError:
        raise OptionError(f"out is a {type(out).__name__}; give the path of a folder, or None for memory") from None
    if not text:
        raise OptionError("out is empty; give the path of a folder, or None for memory")
    return Path(text).absolute()
