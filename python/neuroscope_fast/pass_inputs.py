"""What the inputs of a model say of its forward pass: batch, length, cache, padding.

`look_up` and `tokens_counted_by` are run by Python and traced by torch.compile: they touch no tensor's values.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import nn

CACHES = ("past_key_values", "cache_params", "state")
TOKENS = ("input_ids", "inputs_embeds")
DECODER_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds")
UNKNOWN_OFFSET = -1
"""A cache of unknown length stands before this pass: its positions cannot be told."""


class Reading(NamedTuple):
    """By which of its inputs a module is told what it reads."""

    parameters: tuple[str, ...]
    """The names of its positional parameters."""
    tokens: tuple[str, ...]
    mask: str
    may_guess: bool
    """Where none of `tokens` is given, the first tensor may stand for them."""


class Given(NamedTuple):
    """What a module was given to read."""

    batch: int
    """0, as is `length`, where it cannot be told."""
    length: int
    cache: Any
    mask: torch.Tensor | None
    logits_kept: int
    guessed: bool
    """Batch and length are those of the first tensor among the inputs."""
    continues_encoder: bool


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """The positional parameters of a module's forward."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward without a signature, such as a scripted one
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def look_up(reading: Reading, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Given:
    """What the arguments of a call say of the pass that it begins."""
    given = {**dict(zip(reading.parameters, args, strict=False)), **kwargs} if args else kwargs
    tokens = _first(given, reading.tokens)
    guessed = tokens is None and reading.may_guess
    if guessed:
        tokens = _first_tensor(args, kwargs)
    batch, length = _batch_and_length(tokens)
    mask = given.get(reading.mask)
    if mask is not None and isinstance(mask, Mapping):  # one for each kind of attention: padding is the same in all
        mask = next(iter(mask.values()), None)
    kept = given.get("logits_to_keep")
    return Given(
        batch,
        length,
        _first(given, CACHES),
        mask if isinstance(mask, torch.Tensor) else None,
        kept if isinstance(kept, int) and not isinstance(kept, bool) else 0,
        guessed,
        given.get("encoder_outputs") is not None,
    )


def tokens_counted_by(cache: Any) -> Any:
    """The tokens in a cache by its own count, an int or a tensor of one; None where it does not say."""
    if isinstance(cache, (tuple, list, dict)):
        return None
    try:
        return cache.get_seq_length()
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return None  # a state-space cache, a user's own


def tokens_seen_in(cache: Any) -> int:
    """The tokens in a cache that does not count them, where its tensors or its state say so, or UNKNOWN_OFFSET."""
    try:
        if isinstance(cache, tuple):  # (keys, values) of each layer, [batch, heads, tokens, width]
            return cache[0][0].shape[-2]  # type: ignore[no-any-return]
        if isinstance(cache, (list, dict)):
            return UNKNOWN_OFFSET
        if getattr(cache, "has_previous_state", None) is not None and not _has_state(cache):
            return 0
    except (AttributeError, IndexError, TypeError, ValueError):
        pass
    return UNKNOWN_OFFSET


def read_count(counted: Any) -> int:
    """The number that a cache counts with, an int or a tensor of one. One on a CUDA device is copied from there, which
    waits for the device; while a CUDA graph is being captured it cannot be, and is not to be told.
    """
    if getattr(counted, "is_cuda", False) and captures_graph():
        return UNKNOWN_OFFSET
    return int(counted)


def captures_graph() -> bool:
    """Whether torch's current stream is being captured into a CUDA graph, in which no value can be read."""
    return torch.cuda.is_current_stream_capturing()


def padding(mask: torch.Tensor | None, batch: int, length: int, offset: int) -> bytes:
    """One byte for each of the pass's own tokens, 1 = real; no bytes where none is padding or the mask says nothing.

    A mask [batch, offset + length] covers the cache too, one of a static cache [batch, its capacity]; of a mask
    [batch, 1, length, keys] a token is real if it may look at itself. Behind a cache of unknown length the last columns
    of a mask are taken for the pass's own, as generation makes them. The pass's own columns of a mask on a CUDA device
    are copied to the CPU, [batch, length] bytes at once, which waits for the device; a single new token of a single row
    is taken for a real one without looking, and nothing is read while a CUDA graph is being captured.
    """
    if mask is None or mask.device.type not in ("cpu", "cuda") or length == 0:
        return b""
    if mask.dim() == 0 or mask.shape[0] != batch:
        return b""
    if mask.device.type == "cuda" and (batch * length == 1 or captures_graph()):
        return b""
    if offset == UNKNOWN_OFFSET:
        offset = mask.shape[-1] - length
    if offset < 0:
        return b""
    if mask.dim() == 4 and mask.shape[2] == length and mask.shape[3] >= offset + length:
        own = mask[:, 0, :, offset : offset + length].diagonal(dim1=1, dim2=2)
        real = own if own.dtype == torch.bool else own == 0
    elif mask.dim() == 2 and mask.shape[1] >= length:
        begin = offset if mask.shape[1] >= offset + length else mask.shape[1] - length
        real = mask[:, begin : begin + length] != 0
    else:
        return b""
    if real.device.type != "cpu":
        real = real.detach().to("cpu")
    return b"" if bool(real.all()) else real.detach().to(torch.uint8).contiguous().numpy().tobytes()


def padded_ranges(real: bytes) -> list[int]:
    """Start and stop of each range of a row's tokens that is padding, where `real` has a byte for each, 0 = padding."""
    bounds = [at for at in range(1, len(real)) if real[at] != real[at - 1]]
    if real and not real[0]:
        bounds.insert(0, 0)
    return bounds if len(bounds) % 2 == 0 else [*bounds, len(real)]


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = given.get(name)
        if value is not None:
            return value
    return None


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value
    return None


def _batch_and_length(tokens: Any) -> tuple[int, int]:
    """Of token ids [batch, length] or embeddings [batch, length, width]; (0, 0) where they cannot be told."""
    if not isinstance(tokens, torch.Tensor):
        return 0, 0
    shape = tokens.shape
    return (shape[0], shape[1]) if len(shape) in (2, 3) else (0, 0)


def _has_state(cache: Any) -> bool:
    """Whether a state-space cache has been written to."""
    answer = cache.has_previous_state
    return bool(answer() if callable(answer) else answer)
