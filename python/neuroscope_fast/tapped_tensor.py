"""Which tensor of a module's call a tap takes: what csrc/bindings/tap.cpp looks for, in Python.

For code that torch.compile traces, and for the plain hooks that a capture is compared with.
"""

from __future__ import annotations

from typing import Any

import torch

_DEEPEST_NESTING = 16  # of containers in an output, as in the native taps


def input_tensor(field: str, argument: int, args: Any, kwargs: Any) -> torch.Tensor | None:
    """What goes into a module: the parameter `field`, which is number `argument` of the positional ones, or where that
    is "" the first tensor. None where there is none.
    """
    if field:
        value = kwargs.get(field, args[argument] if argument < len(args) else None)
        return value if isinstance(value, torch.Tensor) else None
    found = _first_tensor(args)
    if found is not None:
        return found
    named = kwargs.get("hidden_states")
    return named if isinstance(named, torch.Tensor) else _first_tensor(kwargs)


def output_tensor(field: str, output: Any) -> torch.Tensor | None:
    """What comes out of a module: the field of that name, or where that is "" the first tensor. None where there is
    none.
    """
    return _named_tensor(output, field) if field else _first_tensor(output)


def _first_tensor(value: Any, depth: int = 0) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    if depth < _DEEPEST_NESTING:
        items = value if isinstance(value, (tuple, list)) else value.values() if isinstance(value, dict) else ()
        for item in items:
            found = _first_tensor(item, depth + 1)
            if found is not None:
                return found
    return None


def _named_tensor(output: Any, field: str) -> torch.Tensor | None:
    """Of fields without names the first tensor that is no scalar."""
    if isinstance(output, tuple):
        for item in output:
            if isinstance(item, torch.Tensor) and item.dim() > 0:
                return item
        return None
    found = output.get(field) if isinstance(output, dict) else getattr(output, field, None)
    return found if isinstance(found, torch.Tensor) else None
