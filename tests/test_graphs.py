"""CUDA graphs as Python sees them: which methods of torch stand in for which, and the passes of a replay. What taps
put into a graph is shown by tests/cpp/cuda/test_cuda_graphs.cpp, and on a GPU by tests/gpu/test_gpu_graphs.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from neuroscope_fast import _core, graphs
from neuroscope_fast.graphs import GraphWatch
from neuroscope_fast.pass_inputs import UNKNOWN_OFFSET, Given

METHODS = ("capture_begin", "capture_end", "replay", "reset")


class Counter(torch.Tensor):
    """A count that says it is on a CUDA device."""

    is_cuda = True  # type: ignore[assignment]


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

    def begin_compiled_encoder(self, given: Given) -> None:
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
    """Counted caches are read once for each replay, and a second pass on the same cache goes on behind the first."""
    watch, passes = GraphWatch(make_session()), Passes()
    watch.start(passes)
    model, inner = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    cache, graph = object(), Graph()
    counted = torch.tensor(7).as_subclass(Counter)
    graph.capture_begin()
    here = watch.here()
    assert here is not None
    here.begin(model, given(3, cache), counted)
    here.begin(inner, given(3, cache), counted)
    assert here.end(inner)
    assert here.end(model)
    here.begin_encoder(given(9))
    here.begin(model, given(1, cache), counted)
    here.begin(inner, given(1), 0)
    assert here.end(model)  # the inner one was left by an exception
    assert not here.end(model)
    here.begin(model, given(2, cache), 40)  # counts on the host, where no replay changes it
    graph.capture_end()
    assert watch.here() is None
    assert passes.told == []

    for first in (7, 20):
        counted.fill_(first)
        passes.told.clear()
        graph.replay()
        assert passes.told == [
            ("begin", model, first, 3),
            ("begin", inner, first + 3, 3),
            ("end", inner),
            ("end", model),
            ("encoder", 9),
            ("begin", model, first + 6, 1),
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
    watch = GraphWatch(make_session())
    watch.start(Passes())
    graph, other = Graph(), Graph()
    for each in (graph, other):
        each.capture_begin()
        each.capture_end()
    assert len(graphs._slots) == 2
    graph.reset()
    assert len(graphs._slots) == 1
    assert len(watch._recorded) == 1
    watch.stop()
    assert len(graphs._slots) == 1  # its replays still write the slots
    del each, other
    gc.collect()
    assert len(graphs._slots) == 0
