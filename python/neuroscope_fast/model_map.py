"""From what a user asks for to the modules of a model.

A layer name is the path of any module. Together with a component it means, the first that applies:

1. the module itself, if that is what it is: `model.layers.3.mlp` + `mlp`;
2. the one that stands for it inside: `model.layers.3` + `mlp`, `model.layers.3.mlp` + `neuron`;
3. the module's own output, on the user's word, where nothing in it or around it says what it is, as in models
   of one's own: `encoder.proj` + `mlp`; so too any part of a component under that component's name:
   `model.layers.3.self_attn.q_proj` + `attention`.

A module that is known to be something else is refused: `model.layers.3.self_attn` + `mlp`, or
`model.layers.3.self_attn.q_proj` + `mlp`. What each component means, and where architectures differ, is said
in `model_components`. Naming a layer is enough where it has one of the component; where it has several,
as most have several norms, the one must be named. Of two attentions a layer's own is its self-attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from torch import nn

from .attention_modules import head_count
from .errors import HookError
from .head_options import HEAD_COMPONENTS, chosen_heads
from .layer_pattern import LayerPattern
from .model_components import Component, HeadPart, ModelComponents, Place, down_projection
from .module_tree import Kind, Node
from .nearest import last_index, nearest_paths
from .spec import AVAILABLE_COMPONENTS, Hooks, HookSpec, check_hook_id, parse_hooks

__all__ = ["Place", "ResolvedHook", "components", "resolve_hooks"]

_SHOWN = 6
"""How many paths a message lists."""


@dataclass(frozen=True)
class ResolvedHook:
    """One hook on one place of one model."""

    hook_id: str
    layer_name: str
    """The concrete layer, as the user named it: after patterns, before the component was looked for in it."""
    component: str
    spec: HookSpec
    """Its spec with `layer_name` and `hook_id` made concrete: resolving that again gives the same hook."""
    output: Place | None
    """Where the component's value is tapped; None: not captured. For `neuron` that is the input of a
    module."""
    input: Place | None
    """Where the component's input is tapped; None: not captured."""


def resolve_hooks(model: nn.Module, hooks: Hooks) -> list[ResolvedHook]:
    """Find the place of every hook in `model`, without running it.

    Takes hooks in every form that `parse_hooks` does. A pattern gives a hook for each layer that it matches:
    of a pattern's layers those that have the component are taken, and a module that the model holds under
    several paths is taken once. Equal places of two hooks are equal `Place`s. Raises HookError where a layer
    or a component is not there or ambiguous, for a pattern (or an alternative between its braces) that
    matches nothing, and for a hook id that comes twice.
    """
    if not isinstance(model, nn.Module):
        raise HookError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    specs = parse_hooks(hooks)
    with ModelComponents(model) as structure:
        resolved = [hook for spec in specs for hook in _resolve(structure, spec)]
    seen: dict[str, ResolvedHook] = {}
    for hook in resolved:
        first = seen.setdefault(hook.hook_id, hook)
        if first is not hook:
            raise HookError(
                f"hook id {hook.hook_id!r} comes twice: for {first.layer_name}:{first.component} and for "
                f"{hook.layer_name}:{hook.component}; give one of them a hook_id of its own"
            )
    return resolved


def components(model: nn.Module) -> list[tuple[str, str, str]]:
    """All that can be hooked, as (layer_name, component, path of the tapped module; "" is the model itself).

    `f"{layer_name}:{component}"` is a ready-made hook. The token embedding comes first, then layer by layer
    and after each layer's own components what lies inside it, then what stands outside the layers, and the
    logits last.
    """
    with ModelComponents(model) as structure:
        return [(each.asked_at, each.name, each.output.module) for each in structure.listing()]


def _resolve(structure: ModelComponents, spec: HookSpec) -> list[ResolvedHook]:
    pattern = LayerPattern(spec.layer_name)
    if pattern.literal:
        node = structure.nodes.get(spec.layer_name)
        if node is None or node is structure.root:
            raise HookError(_no_layer(structure, spec.layer_name, spec.component))
        component = _find(structure, node, spec)
        if component is None:
            component = _on_trust(structure, node, spec.component)
        if component is None:
            raise HookError(_no_component(structure, node, spec.component))
        return [_hook(spec, node, component, spec.hook_id)]
    chosen = _expand(structure, spec, pattern)
    hooks = []
    for node, component, parts in chosen:
        several = spec.hook_id is not None and len(chosen) > 1
        hook_id = ".".join([str(spec.hook_id), *parts]) if several else spec.hook_id
        hooks.append(_hook(spec, node, component, hook_id))
    return hooks


def _expand(
    structure: ModelComponents, spec: HookSpec, pattern: LayerPattern
) -> list[tuple[Node, Component, tuple[str, ...]]]:
    matches = [match for match in pattern.expand(structure.nodes) if match[0]]
    if not matches:
        raise HookError(_no_layer(structure, spec.layer_name, spec.component))
    missing = pattern.unmatched(matches)
    if missing:
        raise HookError(
            f"pattern {spec.layer_name!r} finds no layer for {_list(missing)} in {structure.model_name}"
            f"; it matches {_list([path for path, _ in matches])}"
        )
    nodes = [(structure.nodes[path], parts) for path, parts in matches]
    chosen = [(node, _find(structure, node, spec), parts) for node, parts in nodes]
    if all(component is None for _, component, _ in chosen):
        chosen = [(node, _on_trust(structure, node, spec.component), parts) for node, parts in nodes]
    found: dict[Place, tuple[Node, Component, tuple[str, ...]]] = {}
    for node, component, parts in chosen:
        if component is not None:  # a shared module is met under each of its paths
            found.setdefault(component.output, (node, component, parts))
    if not found:
        raise HookError(
            f"none of the {len(nodes)} modules that {spec.layer_name!r} matches has the component: "
            + _no_component(structure, nodes[0][0], spec.component)
        )
    return list(found.values())


def _hook(spec: HookSpec, node: Node, component: Component, hook_id: str | None) -> ResolvedHook:
    where = f"hook {f'{node.path}:{component.name}'!r}"
    if hook_id is None:
        hook_id = f"{node.path}_{component.name}"
    check_hook_id(hook_id, where)
    output = component.output
    if output.part is not None:
        output = replace(output, part=_part(spec, component, output.part, where))
    return ResolvedHook(
        hook_id=hook_id,
        layer_name=node.path,
        component=component.name,
        spec=msgspec.structs.replace(spec, layer_name=node.path, hook_id=hook_id),
        output=output if spec.capture_output else None,
        input=component.input if spec.capture_input else None,
    )


def _part(spec: HookSpec, component: Component, part: HeadPart, where: str) -> HeadPart:
    """The part of an attention that the spec asks for; HookError where the module cannot have it."""
    module = component.node.module
    heads: tuple[int, ...] | None = None
    if spec.heads is not None:
        count = head_count(module, component.name)
        if count is None:
            raise HookError(f"{where}: how many heads {component.node.path!r} has cannot be told; leave heads out")
        heads = chosen_heads(spec.heads, count, where)
    if part.is_cross and spec.reduction == "previous":
        raise HookError(f"{where}: a key of cross-attention is of another sequence, and none is the previous token")
    top_k = spec.top_k if spec.reduction == "top_k" else None
    return replace(part, heads=heads, reduction=spec.reduction, top_k=top_k)


def _find(structure: ModelComponents, node: Node, spec: HookSpec) -> Component | None:
    """The component that the module is, or that stands for it inside; HookError where several do."""
    name = spec.component
    exact = structure.of_module(node, name)
    if exact is not None:
        return exact
    inside = structure.under(node, name)
    if len({component.output for component in inside}) <= 1:
        return inside[0] if inside else None
    # with the user's own wildcards, so that a suggestion can be pasted
    choices = [f"{spec.layer_name}{component.node.path[len(node.path) :]}:{name}" for component in inside]
    raise HookError(f"{node.path!r} ({node.class_name}) has {len(inside)} of {name!r}; name one: {_list(choices)}")


def _on_trust(structure: ModelComponents, node: Node, name: str) -> Component | None:
    """The module's own output (for `neuron` its input) where nothing contradicts the user."""
    if not node.runs or node.is_layer or node.holds_layers or node.path in structure.stand_ins:
        return None
    if any(component.name != "neuron" for component in structure.at.get(node.path, ())):
        return None
    around = structure.part_of(node)
    if around is not None and name not in around[1]:
        within, _ = around
        untold = within.kind in (Kind.MLP, Kind.EXPERT) and not structure.under(within, "neuron")
        if name != "neuron" or not untold:
            return None
    if name in ("embedding", "logits") and node.layer is not None:
        return None
    holds = any(structure.at.get(below.path) for below in node.walk() if below is not node)
    if holds and name != "residual":  # what the module holds is known, and this is not among it
        return None
    if name != "neuron":
        return structure.whole(node, name)
    down = node if node.kind is Kind.LINEAR else down_projection(node)
    return None if down is None else structure.neuron(down, node.path, node.depth)


def _no_layer(structure: ModelComponents, wanted: str, name: str) -> str:
    message = f"no layer {wanted!r} in {structure.model_name}"
    if not LayerPattern(wanted).literal:
        message = f"pattern {wanted!r} matches no layer of {structure.model_name}"
    parent, _, last = wanted.rpartition(".")
    owner = structure.nodes.get(parent)
    if owner is not None and last in owner.module._parameters:
        return f"{message}: it is a parameter, and hooks go on modules; name {parent!r}"
    beyond = last_index(wanted, structure.nodes)
    if beyond is not None:
        message += f": {beyond[0]} ends at {beyond[1]}"
    near = nearest_paths(wanted, structure.nodes)
    if near:
        return f"{message}; nearest: {', '.join(near)}"
    there = _where(structure, name)
    return f"{message}; {name!r} is at {_list(there)}" if there else f"{message}, and no {name!r} either"


def _no_component(structure: ModelComponents, node: Node, name: str) -> str:
    module = f"{node.path!r} ({node.class_name})"
    if node.path in structure.stand_ins:
        called = _list(structure.stand_ins[node.path])
        return f"{module} only holds weights: the model calls {called} in its place; name that"
    there = _where(structure, name)
    around = structure.part_of(node)
    if name in HEAD_COMPONENTS and not there and _where(structure, "attention"):
        here = f"; 'attention_pattern' is at {_list(_where(structure, 'attention_pattern'))}"
        return (
            f"{structure.model_name} has no {name!r}: its attention does not go through transformers' "
            f"AttentionInterface, and only what its modules return can be captured"
            + (here if _where(structure, "attention_pattern") else "")
        )
    if not there:
        held = {each.name for each in structure.listing()}
        message = f"{module} has no {name!r}, nor has any of {structure.model_name}"
    else:
        held = {each for each in AVAILABLE_COMPONENTS if structure.of_module(node, each) or structure.under(node, each)}
        message = f"{module} has no {name!r}"
        if not node.runs:
            message = f"{module} is a list of modules and never runs itself"
        elif around is not None and around[0] is not node:
            message = f"{module} is part of {around[0].path!r} and no {name!r}"
    if held:
        message += f"; it has: {', '.join(each for each in AVAILABLE_COMPONENTS if each in held)}"
    return f"{message}; {name!r} is at {_list(there)}" if there else message


def _where(structure: ModelComponents, name: str) -> list[str]:
    """The layer names under which a component is listed."""
    return list(dict.fromkeys(each.asked_at for each in structure.listing() if each.name == name))


def _list(paths: list[str]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
