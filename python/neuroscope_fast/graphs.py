"""CUDA graphs: what the taps in a graph do while torch captures it, and the records of each replay.

A graph computes nothing while it is captured, and its replays call no hook. So while `torch.cuda.CUDAGraph` captures,
taps put the copying of their tensors into the graph, and the passes that begin and end are noted here; each replay then
is the steps that these passes are. What is known of a pass is looked up anew for every replay, as it is for a pass
without graphs: how many tokens a cache holds that counts them on the device, and which tokens are padding.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch

from . import _core
from .errors import CaptureError
from .pass_inputs import UNKNOWN_OFFSET, Given

if TYPE_CHECKING:
    from torch import nn


class Passes(Protocol):
    """Who is told of the passes of a replay, which have begun inside the call of the frame `entry`."""

    def begin_compiled(self, module: nn.Module, given: Given, counted: int, entry: FrameType) -> None: ...
    def begin_compiled_encoder(self, given: Given) -> None: ...
    def end(self, module: nn.Module) -> None: ...


@dataclass
class _Begun:
    """A pass began in the graph, behind `calls` calls of taps."""

    calls: int
    module: weakref.ref[nn.Module]
    given: Given
    counted: torch.Tensor | None
    """Where the cache counts its tokens; None: `offset` is the same in every replay."""
    offset: int


@dataclass
class _BegunEncoder:
    calls: int
    given: Given


@dataclass
class _Ended:
    calls: int
    module: weakref.ref[nn.Module]


class RecordedGraph:
    """What a capture knows of one CUDA graph."""

    def __init__(self, session: _core.Session, device: int):
        self.native = _core.GraphRecording(session)
        self._device = device
        self._events: list[_Begun | _BegunEncoder | _Ended] = []
        self._open: list[nn.Module] = []  # passes that have begun in the graph and not ended

    def begin(self, module: nn.Module, given: Given, counted: torch.Tensor | int | None) -> None:
        """A pass of `module` begins; its cache, if it has one, counts the tokens in it with `counted`.

        A number is none that replays would change: it says nothing.
        """
        on_device = isinstance(counted, torch.Tensor) and counted.is_cuda
        offset = 0 if given.cache is None else UNKNOWN_OFFSET
        self._open.append(module)
        self._events.append(
            _Begun(
                self.native.calls,
                weakref.ref(module),
                given._replace(cache=None),
                counted if on_device else None,  # type: ignore[arg-type]
                offset,
            )
        )

    def begin_encoder(self, given: Given) -> None:
        """The encoder begins."""
        self._events.append(_BegunEncoder(self.native.calls, given._replace(cache=None)))

    def end(self, module: nn.Module) -> bool:
        """The pass of `module` ends; False where it had begun before the graph."""
        if all(each is not module for each in self._open):
            return False
        ended = None
        while ended is not module:
            ended = self._open.pop()
            self._events.append(_Ended(self.native.calls, weakref.ref(ended)))
        return True

    def end_capture(self) -> None:
        """The graph is complete, or given up."""
        self.native.end_capture()
        while self._open:
            self.end(self._open[-1])

    def prepare_replay(self, passes: Passes) -> Callable[[], None]:
        """To be called before the graph is launched on the current stream; what it returns, after it."""
        stream = torch.cuda.current_stream(self._device).cuda_stream if self.native.calls else 0
        offsets = self._read_offsets()
        self.native.before_replay(stream)
        return lambda: self._store(passes, offsets, stream)

    def _read_offsets(self) -> list[int]:
        """The offset of each pass. Waits for the device where a cache counts there, as a pass without graphs does."""
        offsets: list[int] = []
        counts: dict[int, int] = {}  # by the address of the count: as it will be at the next pass
        for event in self._events:
            if not isinstance(event, _Begun):
                continue
            if event.counted is None:
                offsets.append(event.offset)
                continue
            place = event.counted.data_ptr()
            count = counts[place] if place in counts else int(event.counted)
            offsets.append(count)
            counts[place] = count + event.given.length
        return offsets

    def _store(self, passes: Passes, offsets: list[int], stream: int) -> None:
        stored = 0
        remaining = iter(offsets)
        frame = sys._getframe(1)
        for event in self._events:
            self.native.store(stored, event.calls, stream)
            stored = event.calls
            if isinstance(event, _BegunEncoder):
                passes.begin_compiled_encoder(event.given)
                continue
            module = event.module()
            offset = next(remaining) if isinstance(event, _Begun) else 0
            if module is None:
                continue
            if isinstance(event, _Begun):
                passes.begin_compiled(module, event.given, offset, frame)
            else:
                passes.end(module)
        self.native.store(stored, self.native.calls, stream)
        self.native.after_replay(stream)


class GraphWatch:
    """Tells one capture of the CUDA graphs that torch captures and replays."""

    def __init__(self, session: _core.Session):
        self._session = session
        self._passes: Passes | None = None
        self._recorded: weakref.WeakKeyDictionary[Any, RecordedGraph] = weakref.WeakKeyDictionary()
        self._by_thread: dict[int, RecordedGraph] = {}
        self.replayed_unknown = False
        """Whether a graph was replayed that had been captured before this watch began: it has no taps."""

    def start(self, passes: Passes) -> None:
        """Watch from now on."""
        self._passes = passes
        _watches.append(self)
        _install()

    def stop(self) -> None:
        """Watch no longer. Can be called again, and without a start."""
        if self in _watches:
            _watches.remove(self)
        _uninstall()
        for recorded in self._recorded.values():
            recorded.native.close()
        self._passes = None

    def here(self) -> RecordedGraph | None:
        """The graph that the calling thread is capturing now."""
        return self._by_thread.get(threading.get_ident()) if self._by_thread else None

    def begin_capture(self, graph: Any) -> None:
        recorded = RecordedGraph(self._session, torch.cuda.current_device())
        self._recorded[graph] = recorded
        # Its replays write the slots, whether or not anybody watches them.
        _slots.setdefault(graph, []).append(recorded.native)
        self._by_thread[threading.get_ident()] = recorded
        recorded.native.begin_capture()

    def end_capture(self, graph: Any) -> None:
        recorded = self._recorded.get(graph)
        if recorded is None:
            return
        recorded.end_capture()
        for thread in [thread for thread, each in self._by_thread.items() if each is recorded]:
            del self._by_thread[thread]

    def prepare_replay(self, graph: Any) -> Callable[[], None] | None:
        recorded = self._recorded.get(graph)
        if recorded is None or self._passes is None:
            self.replayed_unknown = True
            return None
        store = recorded.prepare_replay(self._passes)
        return functools.partial(self._store, store)

    def _store(self, store: Callable[[], None]) -> None:
        try:
            store()
        except CaptureError:
            if self._passes is not None:  # else the block has ended in another thread: no fault of the model's
                raise

    def forget(self, graph: Any) -> None:
        self._recorded.pop(graph, None)


_watches: list[GraphWatch] = []
_slots: weakref.WeakKeyDictionary[Any, list[_core.GraphRecording]] = weakref.WeakKeyDictionary()
"""The slots of every graph, which must live as long as it may be replayed: longer than the capture, if need be."""
_originals: dict[str, Callable[..., Any]] = {}
_lock = threading.Lock()


def _capture_begin(graph: Any, *args: Any, **kwargs: Any) -> None:
    _originals["capture_begin"](graph, *args, **kwargs)
    for watch in list(_watches):
        watch.begin_capture(graph)


def _capture_end(graph: Any) -> None:
    for watch in list(_watches):
        watch.end_capture(graph)
    _originals["capture_end"](graph)


def _replay(graph: Any) -> None:
    prepared = [watch.prepare_replay(graph) for watch in list(_watches)]
    _originals["replay"](graph)
    for store in prepared:
        if store is not None:
            store()


def _reset(graph: Any) -> None:
    _originals["reset"](graph)
    for watch in list(_watches):
        watch.forget(graph)
    _slots.pop(graph, None)


_WRAPPERS: dict[str, Callable[..., None]] = {
    "capture_begin": _capture_begin,
    "capture_end": _capture_end,
    "replay": _replay,
    "reset": _reset,
}


def _install() -> None:
    """Stand in for the methods of torch.cuda.CUDAGraph, once for all watches."""
    with _lock:
        for name, wrapper in _WRAPPERS.items():
            if name not in _originals:
                _originals[name] = getattr(torch.cuda.CUDAGraph, name)
                setattr(torch.cuda.CUDAGraph, name, functools.wraps(_originals[name])(wrapper))


def _uninstall() -> None:
    """Give torch its methods back when nobody watches; where others have put theirs on top, ours stay below them."""
    with _lock:
        if _watches:
            return
        for name, wrapper in _WRAPPERS.items():
            current = getattr(torch.cuda.CUDAGraph, name)
            if current is wrapper:
                setattr(torch.cuda.CUDAGraph, name, _originals[name])
            if current is wrapper or current is _originals.get(name):  # the latter after an interrupt
                _originals.pop(name, None)
