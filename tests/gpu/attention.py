"""`attention_math` on the device of the tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from neuroscope_fast import attention_math
from neuroscope_fast.attention_math import AttentionCall


def on(device: torch.device, given: AttentionCall) -> AttentionCall:
    tensors = {name: getattr(given, name) for name in ("query", "key", "mask", "sinks", "padding")}
    return dataclasses.replace(
        given, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
    )


class OnTheDevice:
    """`attention_math` of the same call on the device, with results on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        def function(given: AttentionCall, *arguments: Any, **options: Any) -> Any:
            result = getattr(attention_math, name)(on(self.device, given), *arguments, **options)
            return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()

        return function
