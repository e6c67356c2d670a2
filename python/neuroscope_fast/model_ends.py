"""The two ends of a model: where tokens become vectors, and where vectors become logits.

transformers' models name both (`get_input_embeddings`, `get_output_embeddings`); in others they are found by
their structure.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .module_tree import Kind, Node, size

_NOT_OF_TOKENS = ("pos", "type", "segment", "relative", "wpe")


def token_embeddings(nodes: dict[str, Node]) -> tuple[list[Node], dict[str, list[str]]]:
    """The token embeddings that the model calls, and those modules that only stand in for them.

    An encoder-decoder model such as T5 holds one embedding whose weights its two stacks share, but each stack
    calls a module of its own. The stand-ins map the path of the former to the paths of the latter.
    """
    by_module = _by_module(nodes)
    named: dict[Node, None] = {}  # in their order
    for stack in dict.fromkeys(node.parent for node in nodes.values() if node.is_layer):
        for above in stack.upwards() if stack is not None else ():
            found = _ask(above, "get_input_embeddings", by_module)
            if found is not None and found.kind is Kind.EMBEDDING:
                named[found] = None
                break
    asked = (_ask(node, "get_input_embeddings", by_module) for node in nodes.values())
    own = next((found for found in asked if found is not None), None)  # that of the outermost model
    if own is not None and own.kind is not Kind.EMBEDDING:
        own = None
    if own is not None and not named:
        named[own] = None
    if not named:
        named = dict.fromkeys(node for node in nodes.values() if _embeds_tokens(node))
    stand_ins = {}
    if own is not None and own not in named:
        weight = getattr(own.module, "weight", None)
        tied = [node.path for node in named if getattr(node.module, "weight", None) is weight]
        if tied:
            stand_ins[own.path] = tied
    return list(named), stand_ins


def output_heads(nodes: dict[str, Node], embeddings: list[Node]) -> list[tuple[Node, Node | None]]:
    """Each module that makes logits, with the model whose output has them as its `logits`.

    None in place of the model: the head's own output are the logits. That is so in models which are not from
    transformers, and in those for pre-training, whose outputs name the logits of several heads otherwise.
    """
    by_module = _by_module(nodes)
    pretrained = any(_is_pretrained(node.module) for node in nodes.values())
    for owner in nodes.values():
        head = _ask(owner, "get_output_embeddings", by_module)
        if head is not None:
            whole = pretrained and not owner.class_name.endswith("ForPreTraining")
            return [(head, owner if whole else None)]
    if pretrained:  # a model without a head says so
        return []
    vocabularies = {getattr(node.module, "num_embeddings", None) for node in embeddings} - {None}
    return [
        (node, None)
        for node in nodes.values()
        if (shape := size(node)) is not None and shape[1] in vocabularies and node.layer is None
    ]


def _by_module(nodes: dict[str, Node]) -> dict[int, Node]:
    return {id(node.module): node for node in reversed(nodes.values())}  # the first path of each stays


def _embeds_tokens(node: Node) -> bool:
    if not isinstance(node.module, nn.Embedding) or node.layer is not None:
        return False
    return not any(part in node.name.lower() for part in _NOT_OF_TOKENS)


def _is_pretrained(module: nn.Module) -> bool:
    return any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)


def _ask(node: Node, method: str, by_module: dict[int, Node]) -> Node | None:
    """The node of the module that `node`'s method returns, if it has the method and that returns one."""
    function: Any = getattr(node.module, method, None)
    if function is None:
        return None
    try:
        return by_module.get(id(function()))
    except (NotImplementedError, AttributeError):  # transformers' answer for models that have none
        return None
