"""What a forward pass is about to read: batch, length, cache, padding. Looked up once for each pass."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .graphs import GraphWatch
from .pass_hooks import PassHooks
from .pass_inputs import (
    CACHES,
    DECODER_TOKENS,
    TOKENS,
    UNKNOWN_OFFSET,
    Given,
    Reading,
    padded_ranges,
    padding,
    parameter_names,
    read_count,
    tokens_counted_by,
    tokens_seen_in,
)
from .prompt_log import Padding
from .records import Usage

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session
    from .attachment import Attachment
    from .compiled import CompiledCode


class _Pass(NamedTuple):
    """A pass of a module that has begun on this thread. Of an interrupted one it keeps alive no more than the mask."""

    module: nn.Module
    call: int
    """The id of the frame that is the call of the module."""
    read: int
    """Tokens in the cache once it has ended, or UNKNOWN_OFFSET."""
    cache_counts: bool
    """The cache says itself how many tokens are in it."""
    guessed: bool
    """What it reads was taken from the first tensor among its inputs."""
    known: bool
    """What it reads, or one around it, was told without guessing: the session takes no facts of passes within it."""
    is_told: bool
    """The session was told of it, and is to be told of its end."""
    mask: torch.Tensor | None
    """Its attention mask, as it was given."""
    entry: FrameType | None = None
    """Of a pass inside compiled code: the frame that called that code."""


class PassObserver:
    """Tells a session of every forward pass of a model, through hooks of its own.

    They stand on the root and, since wrappers and users call inner models directly, on every module on the way down to
    the hooked ones that takes token ids; an inner pass belongs to the one around it. The encoder of an encoder-decoder
    model reads a sequence of its own and tells the session of that.
    """

    def __init__(self, model: nn.Module, session: Session, hooked: list[str]):
        self._session = session
        self._graphs = GraphWatch(session)
        encoder = encoder_of(model)
        self._hooks: list[PassHooks] = []
        for module in _models_on_the_way(model, hooked, encoder):
            names = parameter_names(module)
            of_decoder = encoder is not None and (module is model or bool(set(DECODER_TOKENS) & set(names)))
            reading = Reading(
                names,
                DECODER_TOKENS if of_decoder else TOKENS,
                "decoder_attention_mask" if of_decoder else "attention_mask",
                may_guess=module is model and encoder is None,
            )
            self._hooks.append(PassHooks(self, module, reading))
        self._encoder_hooks: PassHooks | None = None
        if encoder is not None:
            reading = Reading(parameter_names(encoder), TOKENS, "attention_mask", may_guess=False)
            self._encoder_hooks = PassHooks(self, encoder, reading)
        # Tokens that went through each cache, for caches that do not count them (state-space models).
        self._read: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._padding: list[list[int]] | None = None  # of the first pass of the prompt that is under way
        self._encoder_padding: list[list[int]] | None = None

    def __deepcopy__(self, _memo: dict[int, Any]) -> PassObserver:
        return self

    @property
    def graphs(self) -> GraphWatch:
        """The CUDA graphs that the model runs as."""
        return self._graphs

    def stop(self) -> None:
        """Observe no longer, and let go of what a pass that was interrupted has left. Can be called again."""
        self._graphs.stop()
        for hooks in (*self._hooks, self._encoder_hooks):
            if hooks is not None:
                hooks.stop()
        self._thread = threading.local()

    def usage(self) -> Usage:
        """The tokens that the model has read: padding not counted, and the last sampled token of a generation, which
        the model never reads, neither.
        """
        # Without the lock: an interrupt that comes as it is taken would leave it taken, and this is asked at the end.
        prefill, decode = self._prefill_tokens, self._decode_tokens
        return Usage(prefill, decode, prefill + decode)

    def take_padding(self) -> Padding:
        """What was padding in the first pass since this was asked last."""
        found = Padding(self._padding or [], self._encoder_padding or [])  # without the lock, as above
        self._padding = self._encoder_padding = None
        return found

    def first_real(self) -> list[int] | None:
        """For each row of the sequence whose prefill this thread has run last, the position of its first real token."""
        found: list[int] | None = getattr(self._thread, "first_real", None)
        return found

    def mask(self) -> torch.Tensor | None:
        """The attention mask that the innermost pass on this thread was given."""
        passes: list[_Pass] = getattr(self._thread, "passes", [])
        return next((each.mask for each in reversed(passes) if each.mask is not None), None)

    def attach_first(self, attachment: Attachment, compiled: CompiledCode) -> None:
        """The hooks that open a pass; to be put on before any tap."""
        for hooks in self._hooks:
            if hooks.module is not None:
                attachment.add_pre_hook(hooks.module, compiled.add_begin(hooks.module, hooks))
        encoder = self._encoder_hooks
        if encoder is not None and encoder.module is not None:
            attachment.add_pre_hook(encoder.module, compiled.add_begin_encoder(encoder.module, encoder))

    def attach_last(self, attachment: Attachment, compiled: CompiledCode) -> None:
        """The hooks that end a pass; to be put on after all taps."""
        for hooks in self._hooks:
            if hooks.module is not None:
                attachment.add_hook(hooks.module, compiled.add_end(hooks.module, hooks), always_call=True)

    def begin(self, module: nn.Module, given: Given) -> None:
        """A pass of `module` begins, which was given this."""
        graph = self._graphs.here()
        if graph is not None:
            graph.begin(module, given, tokens_counted_by(given.cache))
            return
        frame = _module_call(sys._getframe(1))
        passes = self._open_passes(module, frame.f_back)
        offset, counts = self._tokens_in(given.cache)
        self._begin_pass(passes, module, given, offset, cache_counts=counts, call=id(frame))

    def begin_compiled(self, module: nn.Module, given: Given, counted: torch.Tensor | int, entry: FrameType) -> None:
        """A pass of `module` begins in compiled code or a CUDA graph; `entry`, on this thread's stack, has called it.

        Such code cannot say which cache it is that grows (`given.cache` is only whether there is one), but what the
        cache counts.
        """
        graph = self._graphs.here()
        if graph is not None:
            graph.begin(module, given, counted)
            return
        offset = read_count(counted)
        passes = self._open_passes(module, sys._getframe(1))
        if offset == UNKNOWN_OFFSET:
            self._read.clear()  # one of these caches, or another
        self._begin_pass(passes, module, given, offset, cache_counts=False, entry=entry)

    def _begin_pass(
        self,
        passes: list[_Pass],
        module: nn.Module,
        given: Given,
        offset: int,
        *,
        cache_counts: bool,
        call: int = 0,
        entry: FrameType | None = None,
    ) -> None:
        known_around = bool(passes) and passes[-1].known
        # Within what is known only a prefill has something to say: an inner model may be the first to be given padding.
        is_told = offset == 0 or not known_around
        if is_told:
            self._tell(passes, given, offset)
        read = UNKNOWN_OFFSET if offset == UNKNOWN_OFFSET else offset + given.length
        known = known_around or (given.length > 0 and not given.guessed)
        passes.append(_Pass(module, call, read, cache_counts, given.guessed, known, is_told, given.mask, entry))

    def _tell(self, passes: list[_Pass], given: Given, offset: int) -> None:
        """Tell the session of a pass that begins within `passes`."""
        real = padding(given.mask, given.batch, given.length, offset)
        decode = offset != 0 and given.length == 1
        is_outermost = all(outer.guessed for outer in passes)
        # An inner model may be given its mask in another form, or none.
        if offset == 0 and not given.guessed and given.length > 0 and (real or not passes):
            rows = [real[row * given.length : (row + 1) * given.length] for row in range(given.batch)] if real else []
            self._thread.first_real = [max(row.find(1), 0) for row in rows] or [0] * given.batch
            self._note_padding(rows, is_outermost=is_outermost)
        if not given.guessed and is_outermost:
            self._count(sum(real) if real else given.batch * given.length, decode)
        self._session.begin_step(
            decode=decode,
            offset=offset,
            batch=given.batch,
            length=given.length,
            mask=real,
            logits_kept=given.logits_kept,
            guessed=given.guessed,
            continues_encoder=given.continues_encoder,
        )

    def _note_padding(self, rows: list[bytes], *, is_outermost: bool) -> None:
        """Of the first pass of a prompt, and of the passes of inner models within it."""
        with self._lock:
            if is_outermost:
                self._thread.is_first = self._padding is None
            if getattr(self._thread, "is_first", self._padding is None) and not self._padding:
                self._padding = [padded_ranges(row) for row in rows]

    def begin_encoder(self, given: Given) -> None:
        """The encoder is about to read this."""
        graph = self._graphs.here()
        if graph is not None:
            graph.begin_encoder(given)
            return
        real = padding(given.mask, given.batch, given.length, 0)
        self._count(sum(real) if real else given.batch * given.length, decode=False)
        with self._lock:
            if self._encoder_padding is None:
                size = given.length
                self._encoder_padding = [padded_ranges(real[at : at + size]) for at in range(0, len(real), size or 1)]
        self._session.begin_encoder(batch=given.batch, length=given.length, mask=real)

    def end(self, module: nn.Module, output: Any = None) -> None:
        """The pass of `module` has ended; an output that holds a cache tells whose length is known from now on, if it
        does not say so itself.
        """
        graph = self._graphs.here()
        if graph is not None and graph.end(module):
            return
        passes: list[_Pass] = getattr(self._thread, "passes", [])
        if all(each.module is not module for each in reversed(passes)):
            return
        while passes[-1].module is not module:  # left by an exception
            self._end_last(passes)
        ended = self._end_last(passes)
        if ended.cache_counts or ended.read == UNKNOWN_OFFSET or not isinstance(output, Mapping):
            return
        cache = next((output[name] for name in CACHES if name in output), None)
        if cache is None:
            return
        with contextlib.suppress(TypeError):  # not a thing that can be remembered: its length stays unknown
            self._read[cache] = ended.read

    def abandon_compiled(self) -> None:
        """Compiled code on this thread is left by an exception: it ends none of its passes."""
        passes: list[_Pass] = getattr(self._thread, "passes", [])
        while passes and passes[-1].entry is not None:
            self._end_last(passes)

    def _end_last(self, passes: list[_Pass]) -> _Pass:
        ended = passes.pop()
        if ended.is_told:
            self._session.end_step()
        return ended

    def _open_passes(self, beginning: nn.Module, stack: FrameType | None) -> list[_Pass]:
        """The passes around the one that `beginning` is about to begin, whose call `stack` has called.

        A KeyboardInterrupt, and any exception in compiled code, ends a pass without torch calling any hook: such passes
        are ended here.
        """
        passes: list[_Pass] | None = getattr(self._thread, "passes", None)
        if passes is None:
            passes = self._thread.passes = []
        while passes:
            last = passes[-1]
            if last.entry is None:
                if _is_running(last, stack):
                    break
            # The compiler has unrolled what calls itself: a second pass of the module is not inside the first.
            elif last.module is not beginning and _is_on_stack(last.entry):
                break
            self._end_last(passes)
        return passes

    def _count(self, tokens: int, decode: bool) -> None:
        with self._lock:
            if decode:
                self._decode_tokens += tokens
            else:
                self._prefill_tokens += tokens

    def _tokens_in(self, cache: Any) -> tuple[int, bool]:
        """The tokens in a cache before the pass: its own count, or what this observer has seen go through it; and
        whether it is its own.
        """
        if cache is None:
            return 0, False
        counted = tokens_counted_by(cache)
        try:
            if counted is not None:
                return read_count(counted), True
            if cache in self._read:
                return self._read[cache], False
        except (TypeError, ValueError):
            pass  # what it answers is no number, or it cannot be remembered
        return tokens_seen_in(cache), False


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The encoder of an encoder-decoder model: it reads another sequence than the root. None for other models."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    get_encoder = getattr(model, "get_encoder", None)
    encoder: nn.Module | None = get_encoder() if get_encoder is not None else None
    return None if encoder is model else encoder


def _is_on_stack(frame: FrameType) -> bool:
    """Whether the frame is running on this thread."""
    each: FrameType | None = sys._getframe(1)
    while each is not None and each is not frame:
        each = each.f_back
    return each is not None


def _is_running(begun: _Pass, stack: FrameType | None) -> bool:
    """Whether the call that began this pass is among these frames. Any call of its module that is has begun a pass,
    which would have ended this one: another frame with the same id is that of another module.
    """
    frame = stack
    while frame is not None and id(frame) != begun.call:
        frame = frame.f_back
    return frame is not None and frame.f_locals.get("self") is begun.module


def _module_call(hook: FrameType) -> FrameType:
    """The module's call that the frame of one of its hooks belongs to."""
    frame: FrameType | None = hook
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back
    return hook if frame is None else frame


def _models_on_the_way(model: nn.Module, hooked: list[str], encoder: nn.Module | None) -> list[nn.Module]:
    """The root, and below it every module that takes token ids and holds all the hooked modules."""
    paths = [path.split(".") for path in hooked if path]
    found = [model]
    shared = paths[0] if paths else []
    for path in paths[1:]:
        same = [a == b for a, b in zip(shared, path, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    module = model
    for name in shared:
        module = getattr(module, name)
        if module is encoder:
            break
        if module not in found and set(TOKENS) & set(parameter_names(module)):
            found.append(module)
    return found
