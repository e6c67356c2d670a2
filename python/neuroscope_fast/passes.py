"""What a forward pass is about to read: batch, length, cache, padding. Looked up once for each pass of the root."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .hooks import encoder_of
from .records import Usage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._core import Session

_CACHES = ("past_key_values", "cache_params")
_TOKENS = ("input_ids", "inputs_embeds")
_DECODER_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds")


class PassObserver:
    """Tells a session of every forward pass of a model, through hooks of its own on the root (and the encoder)."""

    def __init__(self, model: nn.Module, session: Session):
        self._session = session
        self._encoder = encoder_of(model)
        self._parameters = _parameter_names(model)
        self._encoder_parameters = _parameter_names(self._encoder) if self._encoder is not None else ()
        # Tokens that went through each cache, for caches that do not count them (state-space models).
        self._read: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._prefill_tokens = 0
        self._decode_tokens = 0

    def __deepcopy__(self, _memo: dict[int, Any]) -> PassObserver:
        """A copy that a user makes of a hooked model shares the observer, as it shares the taps."""
        return self

    def usage(self) -> Usage:
        """The tokens that the model has read: padding not counted, and the last sampled token of a generation, which
        the model never reads, neither.
        """
        with self._lock:
            total = self._prefill_tokens + self._decode_tokens
            return Usage(self._prefill_tokens, self._decode_tokens, total)

    def attach_first(self, model: nn.Module) -> list[Callable[[], None]]:
        """The hooks that open a pass; to be put on before any tap. Gives their removers."""
        removers = [model.register_forward_pre_hook(self._begin, with_kwargs=True).remove]
        if self._encoder is not None:
            removers.append(self._encoder.register_forward_pre_hook(self._begin_encoder, with_kwargs=True).remove)
        return removers

    def attach_last(self, model: nn.Module) -> list[Callable[[], None]]:
        """The hook that ends a pass, also one that raised; to be put on after all taps."""
        return [model.register_forward_hook(self._end, always_call=True).remove]

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _named(self._parameters, args, kwargs)
        decoder = self._encoder is not None
        tokens = _first(given, _DECODER_TOKENS if decoder else _TOKENS)
        if tokens is None and not decoder:
            tokens = _first_tensor(args, kwargs)
        batch, length = _batch_and_length(tokens)
        offset = self._tokens_in_cache(given, length)
        mask = _padding(given.get("decoder_attention_mask" if decoder else "attention_mask"), batch, length)
        decode = offset > 0 and length == 1
        tokens_read = sum(mask) if mask else batch * length
        with self._lock:
            if decode:
                self._decode_tokens += tokens_read
            else:
                self._prefill_tokens += tokens_read
        self._session.begin_step(decode=decode, offset=offset, batch=batch, length=length, mask=mask)

    def _begin_encoder(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _named(self._encoder_parameters, args, kwargs)
        batch, length = _batch_and_length(_first(given, _TOKENS))
        mask = _padding(given.get("attention_mask"), batch, length)
        self._session.begin_encoder(batch=batch, length=length, mask=mask)

    def _end(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        self._session.end_step()

    def _tokens_in_cache(self, given: Mapping[str, Any], length: int) -> int:
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        if cache is None:
            return 0
        try:
            return int(cache.get_seq_length())
        except (AttributeError, TypeError, ValueError, NotImplementedError):
            pass  # a tuple, a state-space cache, a user's own: it does not know
        if isinstance(cache, (tuple, list)):
            keys = cache[0][0] if cache and cache[0] else None
            return int(keys.shape[-2]) if keys is not None else 0
        try:
            before = self._read.get(cache, 0)
            self._read[cache] = before + length
        except TypeError:  # nothing that can be remembered by identity
            return 0
        return before


def _parameter_names(model: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def _named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> torch.Tensor | None:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    import torch

    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def _batch_and_length(tokens: torch.Tensor | None) -> tuple[int, int]:
    """Of token ids [batch, length] or embeddings [batch, length, width]; (0, 0) where they cannot be told."""
    if tokens is None or tokens.dim() not in (2, 3):
        return 0, 0
    return int(tokens.shape[0]), int(tokens.shape[1])


def _padding(mask: Any, batch: int, length: int) -> bytes:
    """One byte for each of the pass's own tokens, 1 = real; no bytes where none is padding or the mask says nothing.

    The mask covers the cache too: the pass's own tokens are its last columns.
    """
    import torch

    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or length == 0:
        return b""
    if mask.shape[0] != batch or mask.shape[1] < length or mask.device.type != "cpu":
        return b""
    own = mask[:, mask.shape[1] - length :].detach() != 0
    return b"" if bool(own.all()) else own.to(torch.uint8).numpy().tobytes()
