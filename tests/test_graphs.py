"""CUDA graphs as Python sees them: which methods of torch stand in for which, and the passes of a replay. What taps
put into a graph is shown by tests/cpp/cuda/test_cuda_graphs.cpp, and on a GPU by tests/gpu/test_gpu_graphs.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from neuroscope_fast import _core, graphs
from neuroscope_fast.errors import CaptureError
from neuroscope_fast.graphs import GraphWatch
from neuroscope_fast.pass_inputs import UNKNOWN_OFFSET, Given

METHODS = ("capture_begin", "capture_end", "replay", "reset")


class Counter(torch.Tensor):
    """A count that says it is on a CUDA device; the test does what the graph's copying of it would."""

    is_cuda = True  # type: ignore[assignment]

    def detach(self) -> Counter:
        return self

    def clone(self) -> Counter:  # type: ignore[override]
        return self


def counter(value: int) -> Counter:
    return torch.tensor(value).as_subclass(Counter)


class Native:
    """Notes which calls of taps are stored when."""

    def __init__(self, told: list[Any]) -> None:
        self.calls = 0
        self._told = told

    def begin_capture(self) -> None: ...
    def end_capture(self) -> None: ...
    def close(self) -> None: ...

    def before_replay(self, stream: int) -> None:
        self._told.append(("before", stream))

    def store(self, first: int, last: int, stream: int) -> None:
        assert stream == 17
        if first < last:
            self._told.append(("store", first, last))


class Graph(torch.cuda.CUDAGraph):
    """Torch's graph, without what only a GPU has."""

    def __new__(cls) -> Graph:
        return object.__new__(cls)

    def __init__(self) -> None:
        self.done: list[str] = []


class Passes:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin_compiled(self, module: Any, given: Given, counted: int, entry: Any) -> None:
        assert entry.f_code.co_filename == graphs.__file__
        self.told.append(("begin", module, counted, given.length))

    def begin_encoder(self, given: Given) -> None:
        self.told.append(("encoder", given.length))

    def end(self, module: Any) -> None:
        self.told.append(("end", module))


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def done(name: str) -> Callable[..., None]:
        return lambda self, *_args, **_kwargs: self.done.append(name)

    for name in METHODS:
        monkeypatch.setattr(torch.cuda.CUDAGraph, name, done(name))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    yield
    assert not graphs._watches
    assert not graphs._originals


def make_session() -> _core.Session:
    return _core.Session(
        [],
        0,
        folder=None,
        ring_bytes=1 << 16,
        block_bytes=1 << 12,
        shard_bytes=1 << 20,
        overflow="block",
        direct_io=False,
        e4m3_saturates=False,
        e5m2_saturates=False,
        tensor_access="automatic",
        staging_bytes=1 << 16,
        staging_share=0.1,
    )


def given(length: int, cache: Any = None) -> Given:
    return Given(1, length, cache, None, 0, False, False)


def methods() -> list[Any]:
    return [vars(torch.cuda.CUDAGraph)[name] for name in METHODS]


def test_torch_gets_its_methods_back() -> None:
    before = methods()
    first, second = GraphWatch(make_session()), GraphWatch(make_session())
    first.start(Passes())
    assert all(now is not then for now, then in zip(methods(), before, strict=True))
    second.start(Passes())
    first.stop()
    assert all(now is not then for now, then in zip(methods(), before, strict=True))
    second.stop()
    second.stop()
    assert methods() == before
    GraphWatch(make_session()).stop()
    assert methods() == before


def test_wrappers_that_others_put_on_top_stay_there() -> None:
    before = methods()
    watch = GraphWatch(make_session())
    watch.start(Passes())
    ours = torch.cuda.CUDAGraph.replay

    def theirs(graph: Graph) -> None:
        ours(graph)

    torch.cuda.CUDAGraph.replay = theirs  # type: ignore[method-assign]
    watch.stop()
    assert torch.cuda.CUDAGraph.replay is theirs
    graph = Graph()
    graph.replay()
    assert graph.done == ["replay"]
    torch.cuda.CUDAGraph.replay = ours  # type: ignore[method-assign]
    GraphWatch(make_session()).stop()
    assert methods() == before


def test_the_passes_of_a_replay() -> None:
    watch, passes = GraphWatch(make_session()), Passes()
    watch.start(passes)
    model, inner = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    cache, graph = object(), Graph()
    counts = [counter(0) for _ in range(3)]
    graph.capture_begin()
    here = watch.here()
    assert here is not None
    here.begin(model, given(3, cache), counts[0])
    here.begin(inner, given(3, cache), counts[1])
    assert here.end(inner)
    assert here.end(model)
    here.begin_encoder(given(9))
    here.begin(model, given(1, cache), counts[2])
    here.begin(inner, given(1), 0)
    assert here.end(model)  # the inner one was left by an exception
    assert not here.end(model)
    here.begin(model, given(2, cache), 40)  # counts on the host, where no replay changes it
    graph.capture_end()
    assert watch.here() is None
    assert passes.told == []

    for first in (7, 20):
        for count, value in zip(counts, (first, first, first + 3), strict=True):
            count.fill_(value)
        passes.told.clear()
        graph.replay()
        assert passes.told == [
            ("begin", model, first, 3),
            ("begin", inner, first, 3),
            ("end", inner),
            ("end", model),
            ("encoder", 9),
            ("begin", model, first + 3, 1),
            ("begin", inner, 0, 1),
            ("end", inner),
            ("end", model),
            ("begin", model, UNKNOWN_OFFSET, 2),
            ("end", model),
        ]
    assert graph.done == ["capture_begin", "capture_end", "replay", "replay"]
    watch.stop()
    graph.replay()
    assert not watch.replayed_unknown


def test_each_pass_gets_the_calls_of_its_own_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, passes = GraphWatch(make_session()), Passes()
    monkeypatch.setattr(graphs._core, "GraphRecording", lambda _: Native(passes.told))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=17))
    watch.start(passes)
    model, graph = torch.nn.Linear(1, 1), Graph()
    graph.done = passes.told
    graph.capture_begin()
    here = watch.here()
    assert here is not None
    here.native.calls = 1  # type: ignore[misc]
    here.begin(model, given(3), None)
    here.native.calls = 4  # type: ignore[misc]
    here.end(model)
    here.begin(model, given(1), None)
    here.native.calls = 5  # type: ignore[misc]
    here.end(model)
    here.native.calls = 6  # type: ignore[misc]
    graph.capture_end()
    passes.told.clear()
    graph.replay()
    assert passes.told == [
        ("before", 17),
        "replay",
        ("store", 0, 1),
        ("begin", model, 0, 3),
        ("store", 1, 4),
        ("end", model),
        ("begin", model, 0, 1),
        ("store", 4, 5),
        ("end", model),
        ("store", 5, 6),
    ]
    watch.stop()


def test_masks_are_those_of_the_replay() -> None:
    watch = GraphWatch(make_session())
    watch.start(Passes())
    graph, model = Graph(), torch.nn.Linear(1, 1)
    mask = torch.ones(2, 5)
    graph.capture_begin()
    here = watch.here()
    assert here is not None
    here.begin(model, Given(2, 5, None, mask, 0, False, False), None)
    here.begin(model, Given(2, 1, object(), mask, 0, False, False), 4)  # whose columns nobody can tell
    here.begin(model, Given(1, 1, None, mask, 0, False, False), None)  # a single token is a real one
    graph.capture_end()
    masks = [event.given.mask for event in here._events if isinstance(event, graphs._Begun)]
    assert masks[0] is not None
    assert masks[0] is not mask
    assert masks[1:] == [None, None]
    watch.stop()


def test_an_error_in_one_capture_leaves_the_other_its_replay() -> None:
    class Failing(Passes):
        def end(self, module: Any) -> None:
            raise CaptureError(f"no room for {module}")

    first, second, passes = GraphWatch(make_session()), GraphWatch(make_session()), Passes()
    first.start(Failing())
    second.start(passes)
    model, graph = torch.nn.Linear(1, 1), Graph()
    graph.capture_begin()
    for watch in (first, second):
        here = watch.here()
        assert here is not None
        here.begin(model, given(1), None)
    graph.capture_end()
    for _ in range(2):  # the second replay finds no lock held
        passes.told.clear()
        with pytest.raises(CaptureError, match="no room"):
            graph.replay()
        assert passes.told == [("begin", model, 0, 1), ("end", model)]
    first.stop()
    second.stop()


def test_the_end_of_the_block_during_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = GraphWatch(make_session())
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (watch.stop(), self.done.append("replay")))
    watch.start(Passes())
    graph = Graph()
    graph.capture_begin()
    here = watch.here()
    assert here is not None
    here.begin(torch.nn.Linear(1, 1), given(1), None)
    graph.capture_end()
    graph.replay()
    assert graph.done[-1] == "replay"


def test_captures_within_each_other_and_without_an_end() -> None:
    watch = GraphWatch(make_session())
    watch.start(Passes())
    outer, inner = Graph(), Graph()
    outer.capture_begin()
    of_outer = watch.here()
    inner.capture_begin()
    assert watch.here() is not of_outer
    inner.capture_end()
    assert watch.here() is of_outer
    outer.reset()
    assert watch.here() is None
    watch.stop()


def test_a_graph_from_before_is_noticed() -> None:
    graph = Graph()
    graph.capture_begin()
    graph.capture_end()
    watch = GraphWatch(make_session())
    watch.start(Passes())
    other = Graph()
    other.capture_begin()
    other.capture_end()
    other.replay()
    assert not watch.replayed_unknown
    graph.replay()
    assert watch.replayed_unknown
    watch.stop()


def test_a_graph_is_forgotten_when_it_is_reset_or_gone() -> None:
    gc.collect()  # what tracebacks of earlier tests held
    watch = GraphWatch(make_session())
    watch.start(Passes())
    graph, other = Graph(), Graph()
    for each in (graph, other):
        each.capture_begin()
        each.capture_end()
    assert len(graphs._kept) == 2
    graph.reset()
    assert len(graphs._kept) == 1
    assert len(watch._recorded) == 1
    watch.stop()
    assert len(graphs._kept) == 1  # its replays still write the slots
    del each, other
    gc.collect()
    assert len(graphs._kept) == 0
