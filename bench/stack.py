"""A model that computes nothing, so that what is measured on it is what hooks cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import CheckError
from torch import nn

LAYERS = 24
PLACES = ("layers.*:residual", "layers.*.attention:attention", "layers.*.mlp:mlp")
"""Three a layer."""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Identity()
        self.mlp = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attention(x))  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Layers that hand their input on; `x` [batch, sequence, hidden] comes back as it is."""

    def __init__(self, layers: int = LAYERS):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def hooked(self) -> list[nn.Module]:
        """The modules that PLACES names, in the order in which they finish."""
        return [module for layer in self.layers for module in (layer.attention, layer.mlp, layer)]


class PlainHooks:
    """A Python forward hook on each of some modules, for the length of a `with` block."""

    def __init__(self, modules: list[nn.Module], hook: Callable[..., None]):
        self._modules, self._hook = modules, hook

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(self._hook) for module in self._modules]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def check_tensors(found: list[Any], expected: list[torch.Tensor]) -> None:
    """Raises CheckError unless `found` are these tensors, bit for bit."""
    if len(found) != len(expected):
        raise CheckError(f"{len(found)} tensors, not {len(expected)}")
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not torch.equal(one, other):
            raise CheckError(f"tensor {number} is not what the model computed")
