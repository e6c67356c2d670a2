"""Other activations in the place of those that a model computes, while a `with` block runs.

    with patched(model, [Patch("model.layers.9", "head_output", 0.0, head=2)]):
        model(**inputs)                       # without head 2 of layer 9

A component is patched where a capture takes it: `model_map` finds the module, and per-head outputs are exchanged
between the attention function and the output projection, where `head_output` is captured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import torch
from torch import nn

from ..attachment import Attachment
from ..attention_interface import AttentionGiven, Listener, Listening
from ..attention_modules import head_count
from ..attention_taps import head_output
from ..errors import OptionError
from ..model_components import Place
from ..model_map import components, resolve_hooks
from ..spec import HookSpec
from .circuit_comparison import Comparison
from .sequences import layer_number

PATCHABLE = ("embedding", "residual", "attention", "head_output", "mlp", "moe", "neuron", "layernorm")
"""Components that can be patched: those that something is computed from, [batch, positions, …]."""


class Site(msgspec.Struct, frozen=True, omit_defaults=True):
    """One component of a model; `head` None: all of it."""

    layer_name: str
    component: str
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """`9.2 head_output`: layer, head and component."""
        layer = self.layer_name if self.layer is None else str(self.layer)
        head = "" if self.head is None else f".{self.head}"
        return f"{layer}{head} {self.component}"


class Patch(NamedTuple):
    """What is put in the place of a component."""

    layer_name: str
    component: str
    values: torch.Tensor | float
    """In the dtype of the component; broadcast to [batch, positions, size], for all heads at once to
    [batch, positions, heads, size]."""
    head: int | None = None
    """Of `head_output`; None: all heads."""
    positions: Sequence[int] | None = None
    """Of each forward pass, negative ones counted from its end; None: all."""


def sites(model: nn.Module, wanted: Sequence[str] = ("residual", "attention", "head_output", "mlp")) -> list[Site]:
    """Every place of these components in the model's layers, heads one by one.

    Raises OptionError for components that cannot be patched, and where the model has none of them.
    """
    for component in wanted:
        _check_component(component)
    model = _uncompiled(model)
    found = []
    for layer_name, component, path in components(model):
        layer = layer_number(layer_name)
        if component not in wanted or (layer is None and component != "embedding"):
            continue
        heads: Sequence[int | None] = [None]
        if component == "head_output":
            count = head_count(model.get_submodule(path), component)
            if count is None:
                raise OptionError(f"how many heads {path!r} has cannot be told: name the sites one by one")
            heads = range(count)
        found += [Site(layer_name, component, layer, head) for head in heads]
    if not found:
        raise OptionError(f"{type(model).__name__} has none of {', '.join(wanted)} in its layers")
    return found


def sites_of(comparison: Comparison, most: int = 20) -> list[Site]:
    """The components that a comparison found, the surest first, as sites; where it found none, the likeliest.

    Of an attention pattern it is the output of its head. Components that cannot be patched are left out.
    """
    order = np.lexsort((comparison.p, comparison.p_family))
    found = [comparison.components[c] for c in order if comparison.p_family[c] <= comparison.alpha]
    chosen: dict[Site, None] = {}
    for component in found or [comparison.components[c] for c in order]:
        name = "head_output" if component.component == "attention_pattern" else component.component
        if name in PATCHABLE:
            chosen.setdefault(Site(component.layer_name, name, component.layer, component.head))
    return list(chosen)[:most]


@contextmanager
def patched(model: nn.Module, patches: Sequence[Patch]) -> Iterator[None]:
    """Exchange activations in every forward pass of the block. Nothing stays on the model, whatever happens in it.

    Patches of one place apply in their order. Raises HookError where a component is not there, OptionError for one
    that cannot be patched and, out of the forward pass, for values or positions that do not fit the activation.
    """
    model = _uncompiled(model)
    by_place: dict[Place, list[Patch]] = defaultdict(list)
    for patch in patches:
        by_place[_place(model, patch)].append(patch)
    attachment = Attachment()
    try:
        _attach(model, by_place, attachment)
        yield
    finally:
        attachment.detach()


def _attach(model: nn.Module, by_place: dict[Place, list[Patch]], attachment: Attachment) -> None:
    listeners: dict[int, Listener] = {}
    for place, group in by_place.items():
        module = model.get_submodule(place.module)
        if place.side == "attention":
            listeners[id(module)] = partial(_patch_heads, group)
        elif place.side == "output":
            attachment.add_hook(module, partial(_patch_output, group))
        else:
            attachment.add_pre_hook(module, partial(_patch_input, group))
    if listeners:
        attachment.listen(Listening(listeners))


def _place(model: nn.Module, patch: Patch) -> Place:
    _check_component(patch.component)
    if patch.head is not None and patch.component != "head_output":
        raise OptionError(f"{patch.component!r} is not split by head; patch 'head_output'")
    [hook] = resolve_hooks(model, HookSpec(layer_name=patch.layer_name, component=patch.component))
    place = hook.output
    if place is None or place.field not in (None, "head_output"):
        raise OptionError(f"{patch.layer_name}:{patch.component} is a field of its module's output: not patched here")
    module = model.get_submodule(place.module)
    paths = [path for path, each in model.named_modules(remove_duplicate=False) if each is module]
    if len(paths) > 1:
        raise OptionError(f"{place.module!r} is also {paths[1]!r}: it cannot be patched in one place only")
    return place


def _patch_output(group: list[Patch], _module: nn.Module, _args: Any, output: Any) -> Any:
    return _with_first_tensor(output, group)


def _patch_input(group: list[Patch], _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    if any(isinstance(each, torch.Tensor) for each in args):
        return _with_first_tensor(args, group), kwargs
    return args, _with_first_tensor(kwargs, group)


def _patch_heads(group: list[Patch], given: AttentionGiven) -> None:
    """In place: what the attention function has given goes on into the output projection."""
    output = head_output(given, f"{group[0].layer_name}:head_output")
    if output.shape[1] and output.data_ptr() in (given.query.data_ptr(), given.value.data_ptr()):
        raise OptionError(f"{group[0].layer_name}: its attention gives an argument back, which cannot be patched")
    with torch.no_grad():
        for patch in group:
            _write(patch, output)


def _with_first_tensor(value: Any, group: list[Patch]) -> Any:
    """`value`, or the first tensor in it, with the patches applied to a copy."""
    if isinstance(value, torch.Tensor):
        value = value.clone()
        for patch in group:
            _write(patch, value)
        return value
    if isinstance(value, dict):  # a ModelOutput is one
        for name, each in value.items():
            if isinstance(each, torch.Tensor):
                changed = value.copy() if type(value) is dict else type(value)(**value)
                changed[name] = _with_first_tensor(each, group)
                return changed
    if isinstance(value, (tuple, list)):
        items = list(value)
        for index, each in enumerate(items):
            if isinstance(each, torch.Tensor):
                items[index] = _with_first_tensor(each, group)
                return type(value)(items) if type(value) in (tuple, list) else type(value)(*items)
    raise OptionError(f"{group[0].layer_name}:{group[0].component} holds no tensor to patch")


def _write(patch: Patch, tensor: torch.Tensor) -> None:
    """The values into `tensor`, [batch, positions, size] or [batch, positions, heads, size]."""
    where = f"{patch.layer_name}:{patch.component}"
    dimensions = 4 if patch.component == "head_output" else 3
    if tensor.dim() != dimensions:
        raise OptionError(f"{where} is {list(tensor.shape)} and has no axes [batch, positions, …]; it is not patched")
    target = tensor
    if patch.head is not None:
        if not 0 <= patch.head < tensor.shape[2]:
            raise OptionError(f"{where} has no head {patch.head}; it has {tensor.shape[2]}, counted from 0")
        target = tensor[:, :, patch.head]
    values = torch.as_tensor(patch.values).to(device=tensor.device, dtype=tensor.dtype)
    count = tensor.shape[1]
    chosen = list(range(count)) if patch.positions is None else list(patch.positions)
    if any(not -count <= position < count for position in chosen):
        raise OptionError(f"{where}: positions {chosen} are not all in a pass of {count}")
    shape = [target.shape[0], len(chosen), *target.shape[2:]]
    try:
        values = values.expand(shape)
    except RuntimeError:
        raise OptionError(f"{where}: values {list(values.shape)} do not fit {shape}") from None
    target[:, chosen] = values


def _check_component(component: str) -> None:
    if component not in PATCHABLE:
        raise OptionError(f"{component!r} cannot be patched; these can: {', '.join(PATCHABLE)}")


def _uncompiled(model: nn.Module) -> nn.Module:
    if type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
        return cast("nn.Module", model._orig_mod)
    return model
