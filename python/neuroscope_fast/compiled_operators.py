"""The operators by which code of torch.compile calls a capture: opaque to the compiler, so that no graph breaks.

Every operator takes the capture's `order` tensor and says that it writes to it, although none does: that keeps the
calls in their order, and keeps them at all, since they return nothing. The tensor's value is the capture's number, so
that code which outlives its capture finds nobody and does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch._dynamo import eval_frame
from torch._library.custom_ops import CustomOpDef

from .pass_inputs import Given

if TYPE_CHECKING:
    from .pass_hooks import PassHooks


class Receiver(Protocol):
    """A running capture. `slot` numbers its taps, or the modules whose passes it watches."""

    def pass_hooks(self, slot: int) -> PassHooks:
        """What tells of the passes of the module in this slot."""

    def native(self, slot: int) -> Callable[..., Any]:
        """The native tap in this slot."""

    def take(self, slot: int, value: torch.Tensor) -> None:
        """A tap's module has computed `value`, or was given it."""

    def take_nothing(self, slot: int, type_name: str) -> None:
        """A tap's module ran, and what it computed, a `type_name`, holds no tensor to take."""

    def begin(self, slot: int, given: Given, counted: torch.Tensor | int, entry: FrameType) -> None:
        """A pass begins behind so many tokens; `entry` is the frame that has called the compiled code."""

    def begin_encoder(self, slot: int, given: Given) -> None:
        """The encoder begins."""

    def end(self, slot: int) -> None:
        """A pass ends."""


receivers: dict[int, Receiver] = {}
"""The captures that are running, by number."""


def order_tensor(number: int) -> torch.Tensor:
    """The `order` of the capture with this number."""
    with torch.inference_mode(False):  # an inference tensor could not be written to outside inference mode
        return torch.tensor(number, dtype=torch.int64, device="cpu")


def _operator(name: str) -> Callable[[Callable[..., None]], CustomOpDef]:
    # A CUDA graph would replay kernels and never call: the tag keeps the operator out of one.
    return torch.library.custom_op(
        f"neuroscope_fast::{name}", mutates_args=("order",), tags=(torch.Tag.cudagraph_unsafe,)
    )


@_operator("tap")
def tap(order: torch.Tensor, slot: int, value: torch.Tensor) -> None:
    """`Receiver.take`."""
    receiver = receivers.get(int(order))
    if receiver is not None:
        receiver.take(slot, value)


@_operator("tap_nothing")
def tap_nothing(order: torch.Tensor, slot: int, type_name: str) -> None:
    """`Receiver.take_nothing`."""
    receiver = receivers.get(int(order))
    if receiver is not None:
        receiver.take_nothing(slot, type_name)


@_operator("begin_pass")
def begin_pass(
    order: torch.Tensor,
    slot: int,
    counted: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    batch: int,
    length: int,
    cached: bool,
    offset: int,
    logits_kept: int,
    guessed: bool,
    continues_encoder: bool,
) -> None:
    """`Receiver.begin`; `counted` is the offset where the cache counts with a tensor."""
    receiver = receivers.get(int(order))
    if receiver is None:
        return
    given = Given(batch, length, cached or None, mask, logits_kept, guessed, continues_encoder)
    receiver.begin(slot, given, offset if counted is None else counted, _entry())


@_operator("begin_encoder")
def begin_encoder(order: torch.Tensor, slot: int, mask: torch.Tensor | None, batch: int, length: int) -> None:
    """`Receiver.begin_encoder`."""
    receiver = receivers.get(int(order))
    if receiver is not None:
        receiver.begin_encoder(slot, Given(batch, length, None, mask, 0, False, False))


@_operator("end_pass")
def end_pass(order: torch.Tensor, slot: int) -> None:
    """`Receiver.end`."""
    receiver = receivers.get(int(order))
    if receiver is not None:
        receiver.end(slot)


def _nothing(*_arguments: Any, **_named: Any) -> None:
    """What an operator gives when the compiler traces it."""


for _each in (tap, tap_nothing, begin_pass, begin_encoder, end_pass):
    _each.register_fake(_nothing)


def _entry() -> FrameType:
    """The outermost frame by which this thread has entered compiled code; what is compiled runs inside it."""
    caller = sys._getframe(1)
    found = caller
    frame: FrameType | None = caller
    while frame is not None:
        if frame.f_code.co_filename == eval_frame.__file__:
            found = frame
        frame = frame.f_back
    return found
