"""Native taps in the call of a module, where torch's hooks would cost more than the taps themselves.

`torch.nn.Module.__call__` asks the module first for a callable in its place, `_compiled_call_impl`: Module.compile()
puts its own there, and copies of the module leave it out. A `TappedCall` of `_core` there calls the module as torch
would have done, and its taps. Torch does not promise that it asks: `can_tap_call` looks whether it still does.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session

CALL = "_compiled_call_impl"

_COPIED_BY = ("__getstate__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__")


def can_tap_call(module: nn.Module) -> bool:
    """Whether the module has no hooks, and its class is called and copied as `nn.Module` is."""
    state = vars(module)
    hooks = state.get("_forward_hooks"), state.get("_forward_pre_hooks")
    if any(each or not isinstance(each, OrderedDict) for each in hooks):
        return False
    return CALL not in state and _is_plain(type(module)) and _torch_asks_for_the_call()


def _is_plain(kind: type[nn.Module]) -> bool:
    import torch
    from torch import nn

    if issubclass(kind, torch.jit.ScriptModule):
        return False
    modeling = sys.modules.get("transformers.modeling_layers")
    # Its own __call__ ends in that of nn.Module.
    calls_on = getattr(modeling, "GradientCheckpointingLayer", None)
    for each in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        if any(name in vars(each) for name in _COPIED_BY):
            return False
        if "__call__" in vars(each) and each is not calls_on:
            return False
    return True


@functools.cache
def _torch_asks_for_the_call() -> bool:
    from torch import nn

    class Probe(nn.Module):
        def forward(self) -> str:
            return "forward"

    probe = Probe()
    state = vars(probe)
    state[CALL] = lambda: "instead"
    if probe() != "instead" or CALL in vars(copy.copy(probe)):
        return False
    del state[CALL]
    return bool(probe() == "forward")


class TappedModule:
    """A module whose call is tapped, until it gets hooks: then its taps are hooks too, in front of the others.

    `to_hooks` and `stop` may be called by any thread, and more than once: they put in, and take out, the same entries.
    """

    def __init__(self, module: nn.Module, name: str, before: list[Callable[..., Any]], after: list[Callable[..., Any]]):
        from torch.utils.hooks import RemovableHandle

        self.module = module
        self.name = name
        self.before = before
        self.after = after
        self._call: Any = None
        self._hooked = False
        self._stopped = False
        self._pre_hooks: Any = module._forward_pre_hooks
        self._hooks: Any = module._forward_hooks
        # Reserved now, so that making hooks twice makes them once.
        self._before_ids = [RemovableHandle(module._forward_pre_hooks).id for _ in before]
        self._after_ids = [RemovableHandle(module._forward_hooks).id for _ in after]

    def start(self, session: Session) -> None:
        """Put the taps into the module's call."""
        self._call = session.tapped_call(self.module, tuple(self.before), tuple(self.after), self.to_hooks)
        vars(self.module)[CALL] = self._call

    def to_hooks(self) -> None:
        """Make hooks of the taps."""
        if self._hooked:
            return
        for key, tap in zip(reversed(self._before_ids), reversed(self.before), strict=True):
            self.module._forward_pre_hooks_with_kwargs[key] = True
            self._pre_hooks.setdefault(key, tap)  # by now another may stand here, for the compiler
            self._pre_hooks.move_to_end(key, last=False)
        for key, tap in zip(reversed(self._after_ids), reversed(self.after), strict=True):
            self._hooks.setdefault(key, tap)
            self._hooks.move_to_end(key, last=False)
        self._hooked = True
        self._remove_call()
        if self._stopped:  # meanwhile, by another thread
            self.stop()

    def is_displaced(self) -> bool:
        """Whether another callable stands in the module's call: that of Module.compile(), with the compiler off."""
        return not self._hooked and not self._stopped and vars(self.module).get(CALL) is not self._call

    def stop(self) -> None:
        """Take the taps off."""
        self._stopped = True
        self._remove_call()
        for key in self._before_ids:
            self._pre_hooks.pop(key, None)
            self.module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in self._after_ids:
            self._hooks.pop(key, None)

    def _remove_call(self) -> None:
        if self._call is not None and vars(self.module).get(CALL) is self._call:
            vars(self.module).pop(CALL, None)
        self._call = None  # the session looks after it no more
