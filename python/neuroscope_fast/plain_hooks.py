"""Python forward hooks on the places of a capture, as one would write them by hand, and whether a capture stored what
they saw, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .activations import Activations
from .attachment import Attachment
from .model_components import Place
from .tapped_tensor import input_tensor, output_tensor

if TYPE_CHECKING:
    from torch import nn

See = Callable[[Place, torch.Tensor], None]


def nothing(*_: object) -> None:
    """The least that a Python hook can do."""


def hookable(place: Place) -> bool:
    """Whether a forward hook sees its tensor: attention that is split by head is no module's input or output."""
    return place.side != "attention"


class PlainHooks:
    """A Python hook on each of these places, for the length of a `with` block.

    `see` is given the tensor that a tap would take there, whenever its module runs; None: the hooks do nothing at all.
    """

    def __init__(self, model: nn.Module, places: Iterable[Place], see: See | None):
        self._model, self._places, self._see = model, list(places), see
        self._attachment = Attachment()

    def __enter__(self) -> PlainHooks:
        for place in self._places:
            module = self._model.get_submodule(place.module)
            if place.side == "input":
                hook = nothing if self._see is None else partial(_see_input, self._see, place)
                self._attachment.add_pre_hook(module, hook)
            else:
                hook = nothing if self._see is None else partial(_see_output, self._see, place)
                self._attachment.add_hook(module, hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.detach()


def _see_input(see: See, place: Place, _module: object, args: Any, kwargs: Any) -> None:
    argument = len(args) if place.argument is None else place.argument
    tensor = input_tensor(place.field or "", argument, args, kwargs)
    if tensor is not None:
        see(place, tensor)


def _see_output(see: See, place: Place, _module: object, _args: object, output: Any) -> None:
    tensor = output_tensor(place.field or "", output)
    if tensor is not None:
        see(place, tensor)


def difference(stored: Activations, seen: Sequence[torch.Tensor], dtype: str | None) -> str | None:
    """What distinguishes the tensors of one hook from those that a hook saw there; None where nothing does.

    `dtype`: as what floating-point tensors were stored, if they were cast: then as torch's own cast gives them.
    """
    if len(stored) != len(seen):
        return f"{stored.hook_id} has {len(stored)} tensors, not {len(seen)}"
    for number, tensor in enumerate(seen):
        found, scale = stored.raw(number)
        wanted, wanted_scale = _cast(tensor.detach().cpu(), dtype)
        same = _same(found, wanted)
        if same and scale is not None and wanted_scale is not None:
            same = _same(scale, wanted_scale)
        if not same:
            return f"tensor {number} of {stored.hook_id} is not what a cloning hook saw there"
    return None


def _cast(tensor: torch.Tensor, dtype: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    if dtype is None or not tensor.is_floating_point():
        return tensor, None
    if dtype == "int8":
        from .kernels.reference import quantize

        return quantize(tensor)
    return tensor.to(getattr(torch, dtype)), None


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Of a NaN only that it is one: which one a cast may choose."""
    if found.dtype != wanted.dtype or found.numel() != wanted.numel():
        return False
    bits, wanted_bits = (each.contiguous().view(-1).view(torch.uint8) for each in (found, wanted))
    if torch.equal(bits, wanted_bits):
        return True
    if not wanted.is_floating_point():
        return False
    one, other = found.float().view(-1), wanted.float().view(-1)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(0.0, torch.inf, -torch.inf).view(torch.int32),
        other.nan_to_num(0.0, torch.inf, -torch.inf).view(torch.int32),
    )
