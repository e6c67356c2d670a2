"""Tensor keys: what a record is called inside its shard."""

from __future__ import annotations

from typing import NamedTuple

_FLAGS = ("input", "indices", "scale")


class KeyParts(NamedTuple):
    """What a tensor key says."""

    hook_id: str
    prompt: int
    call: int
    step: int
    is_input: bool
    is_scale: bool
    is_indices: bool = False


def tensor_key(
    hook_id: str,
    step: int,
    *,
    prompt: int = 0,
    call: int = 0,
    is_input: bool = False,
    is_scale: bool = False,
    is_indices: bool = False,
) -> str:
    """`{hook_id}[/p{prompt}][/c{call}]/{step:06d}[/input][/indices][/scale]`"""
    front = hook_id + (f"/p{prompt}" if prompt else "") + (f"/c{call}" if call else "")
    flags = (("input", is_input), ("indices", is_indices), ("scale", is_scale))
    return f"{front}/{step:06d}" + "".join(f"/{name}" for name, is_set in flags if is_set)


def parse_tensor_key(key: str) -> KeyParts | None:
    """The parts of a key, or None where it is none that `tensor_key` makes."""
    hook_id, *parts = key.split("/")
    numbers = {"p": 0, "c": 0}
    for letter in numbers:
        if len(parts) > 1 and parts[0][:1] == letter and _is_number(parts[0][1:]):
            numbers[letter] = int(parts.pop(0)[1:])
    flags = parts[1:]
    if not parts or not _is_number(parts[0]) or flags != [name for name in _FLAGS if name in flags]:
        return None
    is_input, is_indices, is_scale = (name in flags for name in _FLAGS)
    return KeyParts(hook_id, numbers["p"], numbers["c"], int(parts[0]), is_input, is_scale, is_indices)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
