"""Which modules call an attention function, and how: read from their own code, never from a list of architectures.

Attention of today's transformers looks its function up in the `AttentionInterface` and hands it query, key, value and
mask. Attention of the older style computes by itself; some of it returns the pattern beside its output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from torch import nn

from .module_tree import Node

_QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_heads")


def calls_attention_function(module: nn.Module) -> bool:
    """Whether the module's forward looks its attention function up in transformers' `AttentionInterface`."""
    return _names_interface(_plain(type(module).forward))


def returns_pattern(module: nn.Module) -> bool:
    """Whether the module computes attention of transformers' older style, and so may return the pattern beside its
    output.
    """
    owner = type(module)
    if owner.__module__.partition(".")[0] not in ("transformers", "transformers_modules"):
        return False
    functions = (_plain(value) for value in vars(owner).values() if inspect.isfunction(value))
    return not calls_attention_function(module) and any(
        "softmax" in function.__code__.co_names for function in functions
    )


def function_node(node: Node) -> Node | None:
    """The module at or inside an attention module that calls the attention function; None where none does, or several
    do.
    """
    return _only(node, calls_attention_function)


def pattern_node(node: Node) -> Node | None:
    """The module at or inside an attention module that may return the pattern by itself; None where there is none, or
    several are.
    """
    return _only(node, returns_pattern)


def _only(node: Node, test: Callable[[nn.Module], bool]) -> Node | None:
    if test(node.module):
        return node
    found = {id(below.module): below for below in _inside(node) if test(below.module)}
    return next(iter(found.values())) if len(found) == 1 else None


def head_count(module: nn.Module, component: str) -> int | None:
    """The heads of a component of an attention module, as the module itself or its configuration say; None where they
    do not.
    """
    size = _size(getattr(module, "head_dim", None)) or _size(getattr(module, "attention_head_size", None))
    keys = component in ("key", "value")
    declared = _declared_heads(module, keys)
    projection = getattr(module, "k_proj" if keys else "q_proj", None)
    width = _size(getattr(projection, "out_features", None))
    if not size or not width or width % size != 0:
        return declared
    # A projection to a multiple gives something else beside the heads, such as a gate.
    return declared if declared and width // size % declared == 0 else width // size


def _declared_heads(module: nn.Module, keys: bool) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in _KEY_HEADS if keys else ():
            if found := _size(getattr(owner, name, None)):
                return found
        for name in _QUERY_HEADS:
            if found := _size(getattr(owner, name, None)):
                groups = _size(getattr(module, "num_key_value_groups", None)) or 1
                return found // groups if keys else found
    return None


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _inside(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield child
        yield from _inside(child)


def _plain(function: Callable[..., Any]) -> Any:
    """The function itself under its decorators."""
    return inspect.unwrap(function)


def _names_interface(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and "ALL_ATTENTION_FUNCTIONS" in code.co_names
