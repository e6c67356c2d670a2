"""Hooks put on modules and taken off again, whatever comes in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .module_calls import TappedCall, can_tap_call

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session
    from .attention_interface import Listening


class InertTap:
    """What a tap is in a copy of the model that was stored and loaded while it was captured: it does nothing."""

    def tap(self, *_arguments: object) -> None:
        """Called by torch as a hook."""


class Attachment:
    """The hooks of one capture, and what it listens to.

    A hook is noted down before it is registered and taken off by its identity, so that an interrupt at any point
    leaves none behind that `detach` does not find.
    """

    def __init__(self) -> None:
        self._attached: list[tuple[nn.Module, Callable[..., Any]]] = []
        self._calls: dict[int, TappedCall] = {}  # by the id of the module
        self._listening: list[Listening] = []

    def add_hook(self, module: nn.Module, hook: Callable[..., Any], *, always_call: bool = False) -> None:
        """Register a forward hook."""
        self._attached.append((module, hook))
        module.register_forward_hook(hook, always_call=always_call)

    def add_pre_hook(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Register a forward pre-hook that is given the keyword arguments too."""
        self._attached.append((module, hook))
        module.register_forward_pre_hook(hook, with_kwargs=True)

    def add_taps(
        self,
        module: nn.Module,
        session: Session,
        before: list[Callable[..., Any]],
        after: list[Callable[..., Any]],
    ) -> None:
        """Register native taps as hooks for the inputs and the output of a module; where it has no others, torch is
        spared looking after them.
        """
        for tap in before:
            self.add_pre_hook(module, tap)
        for tap in after:
            self.add_hook(module, tap)
        if can_tap_call(module, session, [*before, *after]):
            call = self._calls[id(module)] = TappedCall(module, session, before, after)
            call.start()

    def exchange(self, module: nn.Module, old: Callable[..., Any], new: Callable[..., Any]) -> None:
        """Put one hook in the place of another, in its order and with its options."""
        call = self._calls.get(id(module))
        if call is not None:
            call.stop()
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, each in hooks.items() if each is old]:
                self._attached.append((module, new))
                hooks[key] = new

    def listen(self, listening: Listening) -> None:
        """Listen to the calls of attention functions."""
        self._listening.append(listening)
        listening.start()

    def detach(self) -> None:
        """Take every hook off. Can be called again where an interrupt ended it."""
        while self._listening:
            self._listening[-1].stop()
            self._listening.pop()
        for call in self._calls.values():
            call.stop()
        while self._attached:
            _remove(*self._attached[-1])
            self._attached.pop()


def _remove(module: nn.Module, hook: Callable[..., Any]) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, each in hooks.items() if each is hook]:
            # The hook itself last: until then it is found again, should this be interrupted.
            for flags in (
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
            ):
                flags.pop(key, None)
            hooks.pop(key, None)
