"""Native taps called without what torch does for hooks, where they are the only hooks of their module.

`torch.nn.Module.__call__` asks the module first for a callable in its place, `_compiled_call_impl`: Module.compile()
puts its own there, and copies of the module leave it out. A `TappedCall` of `_core` there does what `Module._call_impl`
would for such a module, and leaves every other case to it. The taps are hooks all the same: whoever looks for hooks
finds them, and where the call is not asked, torch calls them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ._core import Session

CALL = "_compiled_call_impl"

_LOOKED_AT = frozenset({
    "_C", "_get_tracing_state", "_slow_forward", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks",
    "_forward_pre_hooks", "_global_backward_pre_hooks", "_global_backward_hooks", "_global_forward_hooks",
    "_global_forward_pre_hooks", "_global_forward_hooks_always_called", "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
})  # fmt: skip
"""What torch's `Module._call_impl` looks at where a TappedCall does what it does: that of torch 2.13."""


class TappedCall:
    """One in its module's place, until `stop`."""

    def __init__(
        self,
        module: nn.Module,
        session: Session,
        before: list[Callable[..., Any]],
        after: list[Callable[..., Any]],
    ):
        self._module: nn.Module | None = module
        self._call: Any = session.tapped_call(module, tuple(before), tuple(after))

    def start(self) -> None:
        """Put it there."""
        if self._module is not None:
            vars(self._module)[CALL] = self._call

    def stop(self) -> None:
        """Take it out, unless another stands there, and forget the module. Can be called again."""
        if self._call is not None:
            self._call.retire()
        if self._module is not None and vars(self._module).get(CALL) is self._call:
            vars(self._module).pop(CALL, None)
        self._module = self._call = None


def can_tap_call(module: nn.Module, session: Session, taps: list[Callable[..., Any]]) -> bool:
    """Whether the module has these hooks and no others, and this torch does what a TappedCall counts on."""
    import torch

    state = vars(module)
    hooks = [*state.get("_forward_pre_hooks", {}).values(), *state.get("_forward_hooks", {}).values()]
    if CALL in state or len(hooks) != len(taps) or isinstance(module, torch.jit.ScriptModule):
        return False
    kind = torch.nn.Module
    return _is_as_known(kind.__call__, kind._call_impl, session)


@functools.lru_cache(maxsize=1)
def _probed(_call: Any, call_impl: Any) -> list[bool]:
    looked_at = {name for name in call_impl.__code__.co_names if name.startswith("_")}
    return [] if looked_at == _LOOKED_AT else [False]


def _is_as_known(call: Any, call_impl: Any, session: Session) -> bool:
    """Found out once, and again where somebody has changed torch's functions."""
    found = _probed(call, call_impl)
    if not found:
        found.append(_works(session))
    return found[0]


def _works(session: Session) -> bool:
    """Tried: torch asks for the call, and a module that has got all attributes of another is not taken for it."""
    from torch import nn

    class Probe(nn.Module):
        def forward(self) -> Probe:
            return self

    probe = Probe()
    asked: list[bool] = []
    vars(probe)[CALL] = lambda: asked.append(True)
    probe()
    call = vars(probe)[CALL] = session.tapped_call(probe, (), ())
    copy = Probe.__new__(Probe)
    vars(copy).update(vars(probe))
    return bool(asked) and probe() is probe and copy() is copy and CALL not in vars(copy) and call is not None
