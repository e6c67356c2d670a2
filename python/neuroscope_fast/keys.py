"""Tensor keys: what a record is called inside its shard."""

from __future__ import annotations

from typing import NamedTuple


class KeyParts(NamedTuple):
    """What a tensor key says."""

    hook_id: str
    prompt: int
    call: int
    step: int
    is_input: bool
    is_scale: bool


def tensor_key(
    hook_id: str, step: int, *, prompt: int = 0, call: int = 0, is_input: bool = False, is_scale: bool = False
) -> str:
    """`{hook_id}[/p{prompt}][/c{call}]/{step:06d}[/input][/scale]`"""
    front = hook_id + (f"/p{prompt}" if prompt else "") + (f"/c{call}" if call else "")
    return f"{front}/{step:06d}" + ("/input" if is_input else "") + ("/scale" if is_scale else "")


def parse_tensor_key(key: str) -> KeyParts | None:
    """The parts of a key, or None where it is none that `tensor_key` makes."""
    hook_id, *parts = key.split("/")
    numbers = {"p": 0, "c": 0}
    for letter in numbers:
        if len(parts) > 1 and parts[0][:1] == letter and _is_number(parts[0][1:]):
            numbers[letter] = int(parts.pop(0)[1:])
    flags = parts[1:]
    if not parts or not _is_number(parts[0]) or flags not in ([], ["input"], ["scale"], ["input", "scale"]):
        return None
    return KeyParts(hook_id, numbers["p"], numbers["c"], int(parts[0]), "input" in flags, "scale" in flags)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
