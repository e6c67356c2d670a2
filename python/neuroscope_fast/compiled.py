"""Capturing code of torch.compile, which neither traces native taps nor looks whether hooks have come or gone since.

- Native taps and the hooks of passes stay what they are until the compiler starts for the first time in the block, and
  are then exchanged for `compiled_hooks`, which it can trace: a model that is never compiled does not pay for them.
- What was compiled before the block, or in it, is forgotten at its beginning and its end (`torch.compiler.reset`).
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch._dynamo.callback import callback_handler

from . import compiled_hooks, compiled_operators
from .pass_hooks import PassHooks

if TYPE_CHECKING:
    from torch import nn

    from .attachment import Attachment
    from .model_components import Place
    from .pass_inputs import Given
    from .passes import PassObserver

_numbers = itertools.count(1)


class CompiledCode:
    """How code that torch.compile has made, or makes while the capture runs, calls the capture."""

    def __init__(self, observer: PassObserver, attachment: Attachment):
        self.number = next(_numbers)
        self.order = compiled_operators.order_tensor(self.number)
        self._observer = observer
        self._attachment = attachment
        self._taps: list[_Tap] = []
        self._pass_hooks: list[_PassHook] = []
        self._lock = threading.Lock()
        self._compiling = False

    @property
    def observer(self) -> PassObserver:
        """Who is told of passes."""
        return self._observer

    def __deepcopy__(self, _memo: dict[int, Any]) -> CompiledCode:
        return self

    def add_begin(self, module: nn.Module, hooks: PassHooks) -> Callable[..., Any]:
        """The forward pre-hook that begins a pass of `module`, noted before it is put on."""
        return self._add_pass_hook(module, hooks, hooks.begin, compiled_hooks.begin, hooks.reading)

    def add_begin_encoder(self, module: nn.Module, hooks: PassHooks) -> Callable[..., Any]:
        """The forward pre-hook that tells of the encoder, noted before it is put on."""
        return self._add_pass_hook(module, hooks, hooks.begin_encoder, compiled_hooks.begin_encoder, hooks.reading)

    def add_end(self, module: nn.Module, hooks: PassHooks) -> Callable[..., Any]:
        """The forward hook that ends the pass of `module`, noted before it is put on."""
        return self._add_pass_hook(module, hooks, hooks.end, compiled_hooks.end)

    def _add_pass_hook(
        self, module: nn.Module, hooks: PassHooks, plain: Callable[..., Any], traceable: Callable[..., Any], *bound: Any
    ) -> Callable[..., Any]:
        slot = compiled_hooks.Slot(self.order, len(self._pass_hooks), id(module))
        self._pass_hooks.append(_PassHook(hooks, plain, functools.partial(traceable, slot, *bound)))
        return plain

    def add_tap(self, module: nn.Module, native: Callable[..., Any], place: Place) -> None:
        """Note a native tap before it is put on `module`, at this place."""
        is_input, argument = place.side == "input", place.argument
        tap = _Tap(weakref.ref(module), native, is_input, place.field or "", -1 if argument is None else argument)
        self._taps.append(tap)

    def start(self) -> None:
        """To be called before any hook is put on: answer those that are called, and watch the compiler."""
        compiled_operators.receivers[self.number] = self
        callback_handler.register_start_callback(self._on_compile)

    def forget_code(self) -> None:
        """To be called when all hooks are on: no code that was compiled without them runs from now on."""
        _forget_compiled_code()

    def stop(self) -> None:
        """To be called when all hooks are off: no code that was compiled with them runs from now on.

        Can be called again, and without a start.
        """
        if compiled_operators.receivers.pop(self.number, None) is None:
            return
        if self._on_compile in callback_handler.start_callbacks:  # a reset by the user has removed it
            callback_handler.remove_start_callback(self._on_compile)
        if self._compiling:
            _forget_compiled_code()

    def _on_compile(self, _: object) -> None:
        """The compiler starts: it must find hooks that it can trace."""
        with self._lock:
            if self._compiling:
                return
            for slot, tap in enumerate(self._taps):
                module = tap.module()
                if module is not None:
                    hook = compiled_hooks.tap_input if tap.is_input else compiled_hooks.tap_output
                    of_module = compiled_hooks.Slot(self.order, slot, id(module), tap.argument)
                    traceable = functools.partial(hook, of_module, tap.field)
                    self._attachment.exchange(module, tap.native, traceable)
            for each in self._pass_hooks:
                if each.hooks.module is not None:
                    self._attachment.exchange(each.hooks.module, each.plain, each.traceable)
            self._compiling = True

    def pass_hooks(self, slot: int) -> PassHooks:
        """What tells of the passes of the module in this slot."""
        return self._pass_hooks[slot].hooks

    def native(self, slot: int) -> Callable[..., Any]:
        """The native tap in this slot."""
        return self._taps[slot].native

    def take(self, slot: int, value: torch.Tensor) -> None:
        tap = self._taps[slot]
        if tap.is_input:
            named = {tap.field: value} if tap.field else {}
            self._call(tap.native, tap.module(), () if named else (value,), named)
        else:
            self._call(tap.native, tap.module(), (), {tap.field: value} if tap.field else value)

    def take_nothing(self, slot: int, type_name: str) -> None:
        tap = self._taps[slot]
        if tap.is_input:
            self._call(tap.native, tap.module(), (), {})
        else:  # the tap says of what type the output is that it cannot take
            self._call(tap.native, tap.module(), (), type(type_name, (), {})())

    def begin(self, slot: int, given: Given, counted: torch.Tensor | int, entry: FrameType) -> None:
        module = self.pass_hooks(slot).module
        if module is not None:
            self._call(self._observer.begin_compiled, module, given, counted, entry)

    def begin_encoder(self, slot: int, given: Given) -> None:
        if self.pass_hooks(slot).module is not None:
            self._call(self._observer.begin_encoder, given)

    def end(self, slot: int) -> None:
        module = self.pass_hooks(slot).module
        if module is not None:
            self._call(self._observer.end, module)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Torch calls no hook when an exception leaves compiled code: the passes that it leaves are ended here."""
        try:
            function(*arguments)
        except BaseException:
            self._observer.abandon_compiled()
            raise


class _PassHook(NamedTuple):
    hooks: PassHooks
    plain: Callable[..., Any]
    traceable: Callable[..., Any]


class _Tap(NamedTuple):
    module: weakref.ref[nn.Module]
    native: Callable[..., Any]
    is_input: bool
    field: str
    argument: int


def _forget_compiled_code() -> None:
    """`torch.compiler.reset`, which also forgets who watches the compiler: not so here."""
    starting, ending = list(callback_handler.start_callbacks), list(callback_handler.end_callbacks)
    torch.compiler.reset()
    # What is plain is not compiled by itself, nor what it calls, when it is called on the way into compiled code.
    # torch.compiler.disable does the same and takes 7 µs a call, compiler or not.
    for hook in (PassHooks.begin, PassHooks.begin_encoder, PassHooks.end):
        set_code_exec_strategy(hook.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    callback_handler.start_callbacks.extend(starting)
    callback_handler.end_callbacks.extend(ending)
