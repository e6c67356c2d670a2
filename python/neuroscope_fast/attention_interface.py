"""The one place of the process where transformers' models look up their attention functions, and captures that listen.

A model asks `AttentionInterface.get_interface(implementation, its own eager function)` for a function in each forward.
While a capture listens, what it gets calls that very function with the same arguments, gives the same result back, and
then tells the captures of the module what went in and came out. The model's configuration and the registries of
functions and masks are not touched; of a module that no capture listens to nothing but its id is looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .errors import HookError

_PARAMETERS = ("module", "query", "key", "value", "attention_mask")


class AttentionGiven(NamedTuple):
    """One call of an attention function, as the model made it."""

    implementation: str
    """The name under which the function was looked up: `sdpa`, `eager`, `flash_attention_2`, …"""
    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    """A tensor, a BlockMask or None, as the implementation takes it."""
    options: dict[str, Any]
    """The further arguments: scaling, dropout, sliding_window, softcap, s_aux, is_causal, position_bias, …"""
    output: torch.Tensor
    """[B, Q, H, D]"""


Listener = Callable[[AttentionGiven], None]

_lock = threading.RLock()
_listeners: dict[int, tuple[Listener, ...]] = {}
"""By the id of the module; replaced, never changed, so that a call may go through them without the lock."""
_installed: list[Callable[..., Any]] = []
"""What stands in the place of `get_interface`: at most one."""


class Listening:
    """Listens to modules' attention calls, from `start` to `stop`; both can be called again where an interrupt ended
    them.
    """

    def __init__(self, listeners: dict[int, Listener]) -> None:
        self._listeners = listeners

    def start(self) -> None:
        """Raises HookError where this version of transformers has no `AttentionInterface`."""
        interface = _interface()
        with _lock:
            for module, listener in self._listeners.items():
                present = _listeners.get(module, ())
                if listener not in present:
                    _listeners[module] = (*present, listener)
            _install(interface)

    def stop(self) -> None:
        """No listener of this one is called from now on, and the last of all puts the process back as it was."""
        with _lock:
            for module, listener in self._listeners.items():
                left = tuple(each for each in _listeners.get(module, ()) if each is not listener)
                if left:
                    _listeners[module] = left
                else:
                    _listeners.pop(module, None)
            if not _listeners:
                _uninstall()


def _interface() -> Any:
    import transformers
    from transformers import modeling_utils

    interface = getattr(modeling_utils, "AttentionInterface", None)
    if not callable(getattr(interface, "get_interface", None)):
        raise HookError(
            f"transformers {transformers.__version__} has no AttentionInterface.get_interface, through which attention "
            "is captured; install transformers 5.10 or newer"
        )
    return interface


def _install(interface: Any) -> None:
    original = vars(interface)["get_interface"]
    if original in _installed:
        return

    def get_interface(self: Any, attn_implementation: Any, default: Any) -> Any:
        function = original(self, attn_implementation, default)
        # Somebody may have kept this one, and put its own before it: then a later one listens.
        if get_interface not in _installed:
            return function
        name = attn_implementation if isinstance(attn_implementation, str) else "eager"

        def attention_function(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            module = args[0] if args else kwargs.get("module")
            if id(module) in _listeners:
                _tell(name, args, kwargs, result)
            return result

        return attention_function

    get_interface.__wrapped__ = original  # type: ignore[attr-defined]
    _installed[:] = [get_interface]
    interface.get_interface = get_interface


def _uninstall() -> None:
    for ours in _installed:
        interface = _interface()
        # Not ours any more: somebody has put another over it, which must be left to them. Ours then only passes on.
        if vars(interface)["get_interface"] is ours:
            interface.get_interface = ours.__wrapped__
    _installed.clear()


def _tell(implementation: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    named: dict[str, Any] = {"attention_mask": None, **dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
    options = {name: value for name, value in kwargs.items() if name not in _PARAMETERS}
    module, query, key, value, mask = [named[name] for name in _PARAMETERS]
    output: Any = result[0] if isinstance(result, tuple) else result
    given = AttentionGiven(implementation, module, query, key, value, mask, options, output)
    for listener in _listeners.get(id(module), ()):
        listener(given)


# torch.compile cannot trace what the captures do with a call: it ends its graph before it and goes on behind. Only this
# is kept from it, not the attention function, which may be one that compiles itself (flex attention).
_disable: Any = torch.compiler.disable
_tell = _disable(_tell, reason="neuroscope-fast captures this attention, which cannot be compiled into one graph")
