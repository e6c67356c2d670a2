"""The hooks on a module that tell of its passes, as Python calls them; the compiler traces `compiled_hooks`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .pass_inputs import Given, Reading, look_up

if TYPE_CHECKING:
    from torch import nn


class Observer(Protocol):
    """Who is told."""

    def begin(self, module: nn.Module, given: Given) -> None: ...
    def begin_encoder(self, given: Given) -> None: ...
    def end(self, module: nn.Module, output: Any) -> None: ...


class InertPassHooks:
    """What pass hooks are in a copy of the model that was stored and loaded while it was captured: they do nothing."""

    def begin(self, *_arguments: object) -> None:
        """Called by torch as a hook."""

    begin_encoder = end = begin


class PassHooks:
    """Hooks of one module. A copy that a user makes of the model in the block has them too, and is not observed."""

    def __init__(self, observer: Observer, module: nn.Module, reading: Reading):
        self._observer: Observer | None = observer
        self._module = weakref.ref(module)
        self.reading = reading

    @property
    def module(self) -> nn.Module | None:
        """The module itself; None when it is gone."""
        return self._module()

    def stop(self) -> None:
        """From now on the hooks do nothing, where another thread or a copy of the model calls them still."""
        self._observer = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pre-hook that is given the keyword arguments: a pass of the module begins."""
        observer = self._observer
        if observer is not None and module is self._module():
            observer.begin(module, look_up(self.reading, args, kwargs))

    def begin_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The same for the encoder, which is about to read its sequence."""
        observer = self._observer
        if observer is not None and module is self._module():
            observer.begin_encoder(look_up(self.reading, args, kwargs))

    def end(self, module: nn.Module, _args: object, output: Any = None) -> None:
        """A forward hook: the pass has ended."""
        observer = self._observer
        if observer is not None and module is self._module():
            observer.end(module, output)

    def __deepcopy__(self, _memo: dict[int, Any]) -> PassHooks:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return InertPassHooks, ()
