"""CUDA graphs: what the taps in a graph do while torch captures it, and the records of each replay.

A graph computes nothing while it is captured, and its replays call no hook. So while `torch.cuda.CUDAGraph` captures,
taps put the copying of their tensors into the graph, and the passes that begin and end are noted here; each replay then
is the steps that these passes are. What is known of a pass is looked up anew for every replay, in copies that the graph
itself makes where the pass begins: how many tokens a cache holds that counts them on the device, and the attention
mask.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
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
    def begin_encoder(self, given: Given) -> None: ...
    def end(self, module: nn.Module) -> None: ...


@dataclass
class _Begun:
    """A pass began in the graph, behind `calls` calls of taps."""

    calls: int
    module: weakref.ref[nn.Module]
    given: Given
    offset: torch.Tensor | int
    """A copy of the cache's count, or what is the same in every replay."""


@dataclass
class _BegunEncoder:
    calls: int
    given: Given


@dataclass
class _Ended:
    calls: int
    module: weakref.ref[nn.Module]


class RecordedGraph:
    """What a capture knows of one CUDA graph. Lives as long as the graph, whose replays write its tensors."""

    def __init__(self, session: _core.Session, device: int):
        self.native = _core.GraphRecording(session)
        self._device = device
        self._events: list[_Begun | _BegunEncoder | _Ended] = []
        self._open: list[nn.Module] = []  # passes that have begun in the graph and not ended
        self._lock = threading.Lock()

    def begin(self, module: nn.Module, given: Given, counted: torch.Tensor | int | None) -> None:
        """A pass of `module` begins; its cache, if it has one, counts the tokens in it with `counted`.

        A number is none that replays would change: it says nothing.
        """
        on_device = isinstance(counted, torch.Tensor) and counted.is_cuda
        offset: torch.Tensor | int = 0 if given.cache is None else UNKNOWN_OFFSET
        if on_device:
            offset = counted.detach().clone()  # type: ignore[union-attr]
        elif given.cache is not None and given.mask is not None and given.mask.shape[-1] != given.length:
            given = given._replace(mask=None)  # nobody knows which of its columns are this pass's
        self._open.append(module)
        self._events.append(_Begun(self.native.calls, weakref.ref(module), _copied(given), offset))

    def begin_encoder(self, given: Given) -> None:
        """The encoder begins."""
        self._events.append(_BegunEncoder(self.native.calls, _copied(given)))

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
        """The graph is complete, or given up. Can be called again."""
        self.native.end_capture()
        while self._open:
            self.end(self._open[-1])

    def replay(self, passes: Passes) -> Iterator[None]:
        """Two steps: what comes before the graph is launched on the current stream, and what comes after it.

        Waits for the graph where a cache counts on the device, or there may be padding, as a pass without graphs waits
        for what comes before it.
        """
        if not self._events and not self.native.calls:
            yield
            return
        stream = torch.cuda.current_stream(self._device).cuda_stream if self.native.calls else 0
        with self._lock:  # the launch of another thread would write the slots before they are stored
            self.native.before_replay(stream)
            yield
            self._store(passes, stream)

    def _store(self, passes: Passes, stream: int) -> None:
        stored = 0
        frame = sys._getframe(1)
        for event in self._events:
            self.native.store(stored, event.calls, stream)
            stored = event.calls
            if isinstance(event, _BegunEncoder):
                passes.begin_encoder(event.given)
                continue
            module = event.module()
            if module is None:
                continue
            if isinstance(event, _Begun):
                passes.begin_compiled(module, event.given, int(event.offset), frame)
            else:
                passes.end(module)
        self.native.store(stored, self.native.calls, stream)


def _copied(given: Given) -> Given:
    """With a copy of the mask that the graph makes: what stands there later may be another."""
    mask = given.mask
    if mask is not None:
        mask = None if given.batch * given.length == 1 else mask.detach().clone()
    return given._replace(cache=None, mask=mask)


class GraphWatch:
    """Tells one capture of the CUDA graphs that torch captures and replays."""

    def __init__(self, session: _core.Session):
        self._session = session
        self._passes: Passes | None = None  # None: watches no longer, or not yet
        self._recorded: weakref.WeakKeyDictionary[Any, RecordedGraph] = weakref.WeakKeyDictionary()
        self._by_thread: dict[int, list[RecordedGraph]] = {}  # the innermost capture last
        self.replayed_unknown = False
        """Whether a graph was replayed that had been captured before this watch began: it has no taps."""

    def start(self, passes: Passes) -> None:
        """Watch from now on."""
        self._passes = passes
        _watches.append(self)
        _install()

    def stop(self) -> None:
        """Watch no longer. Can be called again, and without a start."""
        self._passes = None
        if self in _watches:
            _watches.remove(self)
        _uninstall()
        for recorded in list(self._recorded.values()):
            recorded.native.close()

    def here(self) -> RecordedGraph | None:
        """The graph that the calling thread is capturing now."""
        captures = self._by_thread.get(threading.get_ident()) if self._by_thread else None
        return captures[-1] if captures else None

    def begin_capture(self, graph: Any) -> None:
        """`graph` is being captured by this thread."""
        recorded = RecordedGraph(self._session, torch.cuda.current_device())
        self._recorded[graph] = recorded
        _kept.setdefault(graph, []).append(recorded)
        self._by_thread.setdefault(threading.get_ident(), []).append(recorded)
        recorded.native.begin_capture()
        if self._passes is None:  # the block has ended in another thread, which may not have seen this one
            recorded.native.close()

    def end_capture(self, graph: Any) -> None:
        """The capture of `graph` is at its end. Can be called again."""
        recorded = self._recorded.get(graph)
        if recorded is None:
            return
        recorded.end_capture()
        for thread, captures in list(self._by_thread.items()):
            left = [each for each in captures if each is not recorded]
            if left:
                self._by_thread[thread] = left
            else:
                self._by_thread.pop(thread, None)

    def replay(self, graph: Any) -> Iterator[None]:
        """As `RecordedGraph.replay`. Where the block ends meanwhile in another thread, that is no fault of the model's:
        what is left is not stored.
        """
        passes, recorded = self._passes, self._recorded.get(graph)
        if recorded is None and passes is not None:
            self.replayed_unknown = True
        if recorded is None or passes is None:
            return
        try:
            yield from recorded.replay(passes)
        except CaptureError as error:
            if self._passes is not None and not self._session.detach(str(error)):
                raise

    def forget(self, graph: Any) -> None:
        """`graph` is to be captured anew."""
        self.end_capture(graph)
        self._recorded.pop(graph, None)


_watches: list[GraphWatch] = []
_kept: weakref.WeakKeyDictionary[Any, list[RecordedGraph]] = weakref.WeakKeyDictionary()
"""What replays of a graph write: it must live as long as the graph, longer than the capture if need be."""
_originals: dict[str, Callable[..., Any]] = {}
_wrappers: dict[str, Callable[..., Any]] = {}
_lock = threading.RLock()


def _capture_begin(original: Callable[..., Any], graph: Any, *args: Any, **kwargs: Any) -> None:
    original(graph, *args, **kwargs)
    for watch in list(_watches):
        watch.begin_capture(graph)


def _capture_end(original: Callable[..., Any], graph: Any) -> None:
    for watch in list(_watches):
        watch.end_capture(graph)
    original(graph)


def _replay(original: Callable[..., Any], graph: Any) -> None:
    replays = [watch.replay(graph) for watch in list(_watches)]
    try:
        for replay in replays:
            next(replay, None)
        original(graph)
        failures = [failure for failure in map(_finished, replays) if failure is not None]
    finally:
        for replay in replays:
            replay.close()  # type: ignore[attr-defined]
    if failures:
        raise failures[0]


def _finished(replay: Iterator[None]) -> CaptureError | None:
    """What the second step raises: other captures shall have theirs all the same."""
    try:
        next(replay, None)
    except CaptureError as error:
        return error
    return None


def _reset(original: Callable[..., Any], graph: Any) -> None:
    original(graph)
    for watch in list(_watches):
        watch.forget(graph)
    _kept.pop(graph, None)


_METHODS: dict[str, Callable[..., None]] = {
    "capture_begin": _capture_begin,
    "capture_end": _capture_end,
    "replay": _replay,
    "reset": _reset,
}


def _install() -> None:
    """Stand in for the methods of torch.cuda.CUDAGraph, once for all watches."""
    with _lock:
        for name, method in _METHODS.items():
            if name not in _originals:
                original = getattr(torch.cuda.CUDAGraph, name)
                _wrappers[name] = _wrapper(method, original)
                _originals[name] = original
                setattr(torch.cuda.CUDAGraph, name, _wrappers[name])


def _wrapper(method: Callable[..., None], original: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(original)
    def wrapper(graph: Any, *args: Any, **kwargs: Any) -> None:
        method(original, graph, *args, **kwargs)

    return wrapper


def _uninstall() -> None:
    """Give torch its methods back when nobody watches; where others have put theirs on top, ours stay below them."""
    with _lock:
        if _watches:
            return
        for name in list(_originals):
            current = getattr(torch.cuda.CUDAGraph, name)
            if current is _wrappers[name]:
                setattr(torch.cuda.CUDAGraph, name, _originals[name])
            if current in (_wrappers[name], _originals[name]):  # the latter after an interrupt
                del _originals[name]
