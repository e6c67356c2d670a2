"""Finding places and looking at them with torch's own hooks; a helper of the tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import inputs
from neuroscope_fast.errors import HookError
from neuroscope_fast.model_map import Place, resolve_hooks
from neuroscope_fast.spec import HookSpec
from torch import nn


def first_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value
    return next(first for first in values if isinstance(first, torch.Tensor))


def tap(model: nn.Module, places: set[Place], forward: dict[str, Any]) -> dict[Place, list[torch.Tensor]]:
    """The tensor at each place in one forward pass, once for each call, taken with torch's own hooks."""
    seen: dict[Place, list[torch.Tensor]] = {place: [] for place in places}
    modules = dict(model.named_modules())
    handles = []

    def taken(place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        seen[place].append((tensors[0] if tensors else kwargs["hidden_states"]).clone())

    def given(place: Place, output: Any) -> None:
        seen[place].append((first_tensor(output) if place.field is None else output[place.field]).clone())

    for place in places:
        module = modules[place.module]
        if place.side == "input":
            hook = module.register_forward_pre_hook(
                lambda _, args, kwargs, place=place: taken(place, args, kwargs), with_kwargs=True
            )
        else:
            hook = module.register_forward_hook(lambda _, __, output, place=place: given(place, output))
        handles.append(hook)
    try:
        with torch.no_grad():
            model(**forward)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def place_of(model: nn.Module, hook: str, side: str = "output") -> Place:
    (resolved,) = resolve_hooks(model, hook)
    place = getattr(resolved, side)
    assert isinstance(place, Place)
    return place


def input_of(model: nn.Module, layer: str, component: str) -> Place:
    (resolved,) = resolve_hooks(
        model, HookSpec(layer_name=layer, component=component, capture_input=True, capture_output=False)
    )
    assert resolved.output is None
    assert resolved.input is not None
    return resolved.input


def refused(model: nn.Module, hooks: Any) -> str:
    with pytest.raises(HookError) as caught:
        resolve_hooks(model, hooks)
    message = str(caught.value)
    assert message.isprintable()
    return message


def values(model: nn.Module, name: str, *places: Place) -> list[torch.Tensor]:
    tapped = tap(model, set(places), inputs(name))
    return [tapped[place][0] for place in places]


def ids(model: nn.Module, *hooks: str) -> list[str]:
    return [hook.hook_id for hook in resolve_hooks(model, hooks)]
