"""What a forward pass is about to read: batch, length, cache, padding. Looked up once for each pass."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .attachment import Attachment
from .records import Usage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._core import Session

_CACHES = ("past_key_values", "cache_params", "state")
_TOKENS = ("input_ids", "inputs_embeds")
_DECODER_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds")
UNKNOWN_OFFSET = -1
"""A cache of unknown length stands before this pass: its positions cannot be told."""


class _Pass(NamedTuple):
    """A pass of a module that has begun on this thread."""

    module: nn.Module
    read: int  # tokens in the cache once it has ended, or UNKNOWN_OFFSET
    guessed: bool  # what it reads was taken from the first tensor among its inputs


class PassObserver:
    """Tells a session of every forward pass of a model, through hooks of its own.

    They stand on the root and, since wrappers and users call inner models directly, on every module on the way down to
    the hooked ones that takes token ids; an inner pass belongs to the one around it. The encoder of an encoder-decoder
    model reads a sequence of its own and tells the session of that.
    """

    def __init__(self, model: nn.Module, session: Session, hooked: list[str]):
        self._session = session
        encoder = encoder_of(model)
        self._has_encoder = encoder is not None
        # A copy that a user makes of the model in the block has these hooks too; it is not the model that is captured.
        self._watched = weakref.WeakSet(_models_on_the_way(model, hooked, encoder))
        self._encoder = weakref.ref(encoder) if encoder is not None else None
        self._parameters = weakref.WeakKeyDictionary({module: _parameter_names(module) for module in self._watched})
        if encoder is not None:
            self._parameters[encoder] = _parameter_names(encoder)
        self._root = weakref.ref(model)
        # Tokens that went through each cache, for caches that do not count them (state-space models).
        self._read: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._prefill_tokens = 0
        self._decode_tokens = 0

    def __deepcopy__(self, _memo: dict[int, Any]) -> PassObserver:
        return self

    def usage(self) -> Usage:
        """The tokens that the model has read: padding not counted, and the last sampled token of a generation, which
        the model never reads, neither.
        """
        with self._lock:
            total = self._prefill_tokens + self._decode_tokens
            return Usage(self._prefill_tokens, self._decode_tokens, total)

    def attach_first(self, attachment: Attachment) -> None:
        """The hooks that open a pass; to be put on before any tap."""
        for module in self._watched:
            attachment.add_pre_hook(module, self._begin)
        encoder = self._encoder() if self._encoder is not None else None
        if encoder is not None:
            attachment.add_pre_hook(encoder, self._begin_encoder)

    def attach_last(self, attachment: Attachment) -> None:
        """The hooks that end a pass; to be put on after all taps."""
        for module in self._watched:
            attachment.add_hook(module, self._end, always_call=True)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in self._watched:
            return
        passes = self._open_passes(module)
        is_root = module is self._root()
        given = _named(self._parameters[module], args, kwargs)
        tokens = _first(given, _DECODER_TOKENS if is_root and self._has_encoder else _TOKENS)
        guessed = tokens is None and is_root and not self._has_encoder
        if guessed:
            tokens = _first_tensor(args, kwargs)
        batch, length = _batch_and_length(tokens)
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        offset = self._tokens_in(cache)
        name = "decoder_attention_mask" if is_root and self._has_encoder else "attention_mask"
        mask = _padding(given.get(name), batch, length, max(offset, 0))
        decode = offset != 0 and length == 1
        if not guessed and all(outer.guessed for outer in passes):
            self._count(sum(mask) if mask else batch * length, decode)
        kept = given.get("logits_to_keep")
        self._session.begin_step(
            decode=decode,
            offset=offset,
            batch=batch,
            length=length,
            mask=mask,
            logits_kept=kept if isinstance(kept, int) and not isinstance(kept, bool) else 0,
            guessed=guessed,
            continues_encoder=given.get("encoder_outputs") is not None,
        )
        passes.append(_Pass(module, UNKNOWN_OFFSET if offset == UNKNOWN_OFFSET else offset + length, guessed))

    def _begin_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._encoder is None or module is not self._encoder():
            return
        given = _named(self._parameters[module], args, kwargs)
        batch, length = _batch_and_length(_first(given, _TOKENS))
        mask = _padding(given.get("attention_mask"), batch, length, 0)
        self._count(sum(mask) if mask else batch * length, decode=False)
        self._session.begin_encoder(batch=batch, length=length, mask=mask)

    def _end(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        passes: list[_Pass] = getattr(self._thread, "passes", [])
        if module not in self._watched or not passes or passes[-1].module is not module:
            return
        ended = passes.pop()
        self._session.end_step()
        cache = (
            next((output[name] for name in _CACHES if name in output), None) if isinstance(output, Mapping) else None
        )
        if cache is not None and ended.read != UNKNOWN_OFFSET:
            with contextlib.suppress(TypeError):  # not a thing that can be remembered: its length stays unknown
                self._read[cache] = ended.read

    def _open_passes(self, beginning: nn.Module) -> list[_Pass]:
        """The passes around the one that `beginning` is about to begin.

        A KeyboardInterrupt ends a pass without torch calling any hook: such passes are ended here.
        """
        passes: list[_Pass] | None = getattr(self._thread, "passes", None)
        if passes is None:
            passes = self._thread.passes = []
        while passes:
            module = passes[-1].module
            calls = sum(each.module is module for each in passes) + (module is beginning)
            if _is_running(module, calls):
                break
            passes.pop()
            self._session.end_step()
        return passes

    def _count(self, tokens: int, decode: bool) -> None:
        with self._lock:
            if decode:
                self._decode_tokens += tokens
            else:
                self._prefill_tokens += tokens

    def _tokens_in(self, cache: Any) -> int:
        """The tokens in a cache before the pass: its own count, or what this observer has seen go through it."""
        if cache is None:
            return 0
        try:
            return int(cache.get_seq_length())
        except (AttributeError, TypeError, ValueError, NotImplementedError):
            pass  # a tuple, a state-space cache, a user's own: it does not say
        try:
            if cache in self._read:
                return self._read[cache]
            if isinstance(cache, tuple):  # (keys, values) of each layer, [batch, heads, tokens, width]
                return int(cache[0][0].shape[-2])
            if getattr(cache, "has_previous_state", None) is not None and not _has_state(cache):
                return 0
        except (AttributeError, IndexError, TypeError, ValueError):
            pass
        return UNKNOWN_OFFSET


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The encoder of an encoder-decoder model: it reads another sequence than the root. None for other models."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    get_encoder = getattr(model, "get_encoder", None)
    encoder: nn.Module | None = get_encoder() if get_encoder is not None else None
    return None if encoder is model else encoder


def _has_state(cache: Any) -> bool:
    """Whether a state-space cache has been written to."""
    answer = cache.has_previous_state
    return bool(answer() if callable(answer) else answer)


def _is_running(module: nn.Module, calls: int) -> bool:
    """Whether so many calls of `module` are on this thread's stack; the search ends at the last one needed."""
    frame = sys._getframe(1)
    while frame is not None and calls > 0:
        if frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module:
            calls -= 1
        frame = frame.f_back  # type: ignore[assignment]
    return calls == 0


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
        if module not in found and set(_TOKENS) & set(_parameter_names(module)):
            found.append(module)
    return found


def _parameter_names(module: nn.Module) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward without a signature, such as a scripted one
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def _named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> torch.Tensor | None:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    import torch

    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def _batch_and_length(tokens: Any) -> tuple[int, int]:
    """Of token ids [batch, length] or embeddings [batch, length, width]; (0, 0) where they cannot be told."""
    import torch

    if not isinstance(tokens, torch.Tensor) or tokens.dim() not in (2, 3):
        return 0, 0
    return int(tokens.shape[0]), int(tokens.shape[1])


def _padding(mask: Any, batch: int, length: int, offset: int) -> bytes:
    """One byte for each of the pass's own tokens, 1 = real; no bytes where none is padding or the mask says nothing.

    A mask [batch, offset + length] covers the cache too, one of a static cache [batch, its capacity]; of a mask
    [batch, 1, length, keys] a token is real if it may look at itself.
    """
    import torch

    if isinstance(mask, Mapping):  # one for each kind of attention: padding is the same in all
        mask = next(iter(mask.values()), None)
    if not isinstance(mask, torch.Tensor) or mask.device.type != "cpu" or length == 0 or mask.shape[0] != batch:
        return b""
    if mask.dim() == 4 and mask.shape[2] == length and mask.shape[3] >= offset + length:
        own = mask[:, 0, :, offset : offset + length].diagonal(dim1=1, dim2=2)
        real = own if own.dtype == torch.bool else own == 0
    elif mask.dim() == 2 and mask.shape[1] >= length:
        begin = offset if mask.shape[1] >= offset + length else mask.shape[1] - length
        real = mask[:, begin : begin + length] != 0
    else:
        return b""
    return b"" if bool(real.all()) else real.detach().to(torch.uint8).contiguous().numpy().tobytes()
