"""The CUDA devices of a model: made ready before it runs, so that nothing is allocated or compiled while it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .manifest import DeviceCounters
from .spec import CAST_DTYPES

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session
    from .hooks import Plan


_CAST_SOURCES = ("float64", *CAST_DTYPES[:-1])


def open_devices(model: nn.Module, plan: Plan, session: Session) -> None:
    """Give the session its staging ring on every CUDA device that holds a parameter of the model, and the kernels for
    the casts that the plan will most likely need there.

    Raises CaptureError where a device, or the memory for it, cannot be had. A kernel that cannot be made is left to the
    tap that needs it.
    """
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return  # so no tensor is on one
    found: dict[int, set[str]] = {}
    for parameter in model.parameters():
        if parameter.device.type == "cuda":
            dtypes = found.setdefault(parameter.device.index, set())
            name = str(parameter.dtype).removeprefix("torch.")
            if name in _CAST_SOURCES:  # others, such as the scales of microscaling formats, are no activations
                dtypes.add(name)
    if any(tap.place.side == "attention" for tap in plan.taps):
        for dtypes in found.values():
            dtypes.add("float32")  # in which scores and patterns are computed
    targets = {options.dtype for tap in plan.taps for options in tap.streams if options.dtype is not None}
    for device, sources in found.items():
        session.open_device(device, sorted((source, target) for source in sources for target in targets))


def device_counters(session: Session) -> list[DeviceCounters]:
    """What the session has counted on each device that it captured from."""
    return msgspec.convert(session.devices(), list[DeviceCounters], strict=False)
