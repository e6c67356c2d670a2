"""The hooks that a capture puts on modules, in two forms each: what Python calls, and what torch.compile traces.

The first is a function that the compiler must not enter (`torch.compiler.disable`), so that it may look at everything;
the second stands in for it in compiled code (`torch.compiler.substitute_in_graph`) and calls an opaque operator. A hook
is a `functools.partial` of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .compiled_operators import Receiver, receivers
from .pass_inputs import Reading, look_up, tokens_counted_by, tokens_seen_in
from .tapped_tensor import input_tensor, output_tensor


class Slot(NamedTuple):
    """What a hook is for; the compiler takes the tensor as an input and the numbers as constants."""

    order: torch.Tensor
    number: int
    module: int
    """The id of the module: a copy of the model has copies of the hooks, and is not what is captured."""
    argument: int = -1
    """Of a tap on one parameter of a module: its place among the positional ones."""


def _hook(stand_in: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A hook that the compiler does not enter, and what it traces in its place; both take the same arguments."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        disable: Any = torch.compiler.disable
        hook: Callable[..., None] = disable(function, reason="a hook of neuroscope-fast")
        torch.compiler.substitute_in_graph(hook, skip_signature_check=True)(stand_in)
        return hook

    return decorate


def _running(slot: Slot) -> Receiver | None:
    return receivers.get(int(slot.order))


def _trace_begin(slot: Slot, reading: Reading, module: Any, args: Any, kwargs: Any) -> None:
    if id(module) != slot.module:
        return
    given = look_up(reading, args, kwargs)
    offset, counted = 0, None
    if given.cache is not None:
        offset = tokens_counted_by(given.cache)
        if isinstance(offset, torch.Tensor):
            offset, counted = 0, offset
        elif offset is None:
            offset = tokens_seen_in(given.cache)
    torch.ops.neuroscope_fast.begin_pass(
        slot.order,
        slot.number,
        counted,
        given.mask,
        batch=given.batch,
        length=given.length,
        cached=given.cache is not None,
        offset=offset,
        logits_kept=given.logits_kept,
        guessed=given.guessed,
        continues_encoder=given.continues_encoder,
    )


@_hook(_trace_begin)
def begin(slot: Slot, _reading: Reading, module: Any, args: Any, kwargs: Any) -> None:
    running = _running(slot)
    if running is not None:
        running.pass_hooks(slot.number).begin(module, args, kwargs)


def _trace_begin_encoder(slot: Slot, reading: Reading, module: Any, args: Any, kwargs: Any) -> None:
    if id(module) == slot.module:
        given = look_up(reading, args, kwargs)
        torch.ops.neuroscope_fast.begin_encoder(slot.order, slot.number, given.mask, given.batch, given.length)


@_hook(_trace_begin_encoder)
def begin_encoder(slot: Slot, _reading: Reading, module: Any, args: Any, kwargs: Any) -> None:
    running = _running(slot)
    if running is not None:
        running.pass_hooks(slot.number).begin_encoder(module, args, kwargs)


def _trace_end(slot: Slot, module: Any, _args: Any, _output: Any) -> None:
    if id(module) == slot.module:
        torch.ops.neuroscope_fast.end_pass(slot.order, slot.number)


@_hook(_trace_end)
def end(slot: Slot, module: Any, args: Any, output: Any) -> None:
    running = _running(slot)
    if running is not None:
        running.pass_hooks(slot.number).end(module, args, output)


def _trace_tap_input(slot: Slot, field: str, module: Any, args: Any, kwargs: Any) -> None:
    if id(module) != slot.module:
        return
    _trace_tap(slot, input_tensor(field, slot.argument, args, kwargs), "")


@_hook(_trace_tap_input)
def tap_input(slot: Slot, _field: str, module: Any, args: Any, kwargs: Any) -> None:
    running = _running(slot)
    if running is not None:
        running.native(slot.number)(module, args, kwargs)


def _trace_tap_output(slot: Slot, field: str, module: Any, _args: Any, output: Any) -> None:
    if id(module) != slot.module:
        return
    _trace_tap(slot, output_tensor(field, output), _type_name(output))


@_hook(_trace_tap_output)
def tap_output(slot: Slot, _field: str, module: Any, args: Any, output: Any) -> None:
    running = _running(slot)
    if running is not None:
        running.native(slot.number)(module, args, output)


def _trace_tap(slot: Slot, value: torch.Tensor | None, type_name: str) -> None:
    if value is None:
        torch.ops.neuroscope_fast.tap_nothing(slot.order, slot.number, type_name)
    else:
        torch.ops.neuroscope_fast.tap(slot.order, slot.number, value)


def _type_name(value: Any) -> str:
    if value is None:
        return "NoneType"
    for kind, name in ((dict, "dict"), (list, "list"), (tuple, "tuple")):  # the compiler does not know their names
        if type(value) is kind:
            return name
    return type(value).__name__
