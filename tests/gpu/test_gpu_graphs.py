"""CUDA graphs: what each replay computed is stored as a plain pass would have been."""

from __future__ import annotations

from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from test_conformance import same_bits
from torch import nn
from transformers import StaticCache

from gpu.captures import Chain, Clones, activations, assert_equal_clones, told

pytestmark = pytest.mark.gpu

LAYERS = "layers.*:mlp"
REPLAYS = 6


def warm_up(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Run once on a stream beside the current one: libraries take their memory before a graph is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        model(*args, **kwargs)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def capture_graph(model: nn.Module, *args: Any, **kwargs: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(*args, **kwargs)
    return graph


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float8_e4m3fn"}, {"dtype": "int8"}, {"staging_bytes": 64 << 20, "block_bytes": 1 << 20}],
    ids=["as it is", "float8", "int8", "small blocks"],
)
def test_every_replay_is_a_pass(cuda: torch.device, options: dict[str, Any]) -> None:
    model = Chain(cuda, between=lambda _, x: x.mul_(2))  # the residual stream changes after each tap
    given = torch.zeros_like(activations(cuda))
    warm_up(model, given)
    inputs = [activations(cuda, seed=seed) for seed in range(REPLAYS)]
    with nsf.capture(model, LAYERS, **options) as eager:
        for x in inputs:
            model(x)
    with nsf.capture(model, LAYERS, **options) as cap:
        graph = capture_graph(model, given)
        for x in inputs:
            given.copy_(x)
            graph.replay()
        given.fill_(float("nan"))
    assert told(cap.result) == told(eager.result)
    for hook in cap.hook_ids:
        assert len(cap.result[hook]) == REPLAYS
        for ours, theirs in zip(cap.result[hook], eager.result[hook], strict=True):
            assert same_bits(ours, theirs), hook
    device = cap.result.manifest.devices[0]
    assert device.peak_slot_bytes > 0


def test_one_copy_to_the_host_a_replay(cuda: torch.device) -> None:
    model = Chain(cuda, layers=24)
    given = activations(cuda)[:, :4].contiguous()
    warm_up(model, given)
    with nsf.capture(model, LAYERS) as cap:
        graph = capture_graph(model, given)
        for _ in range(10):
            graph.replay()
    assert cap.result.manifest.devices[0].dtoh_copies == 10
    assert len(cap.result.records) == 240


def test_replays_on_several_streams(cuda: torch.device) -> None:
    model = Chain(cuda, between=lambda _, x: x.mul_(2))
    given = activations(cuda)
    warm_up(model, given)
    streams = [torch.cuda.Stream(cuda) for _ in range(2)]
    with nsf.capture(model, LAYERS) as eager:
        for step in range(REPLAYS):
            model(given + step)
    with nsf.capture(model, LAYERS) as cap:
        static = given.clone()
        graph = capture_graph(model, static)
        for step in range(REPLAYS):
            stream = streams[step % 2]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                static.copy_(given + step)
                graph.replay()
            torch.cuda.current_stream().wait_stream(stream)
    for hook in cap.hook_ids:
        for ours, theirs in zip(cap.result[hook], eager.result[hook], strict=True):
            assert same_bits(ours, theirs), hook


def test_decoding_with_a_static_cache(cuda: torch.device, model: nn.Module) -> None:
    """A prefill as a plain pass, then a graph of one decode step: records and positions are those of plain passes."""
    hooks = ["model.layers.*:residual", {"layer_name": "lm_head", "component": "logits", "positions": "last"}]
    prompt = torch.randint(3, 1000, (1, 17), device=cuda, generator=torch.Generator(cuda).manual_seed(1))
    steps = [torch.full((1, 1), 5 + step, device=cuda) for step in range(REPLAYS)]

    def new_cache() -> StaticCache:
        return StaticCache(config=model.config, max_cache_len=64)

    def positions(first: int, count: int) -> torch.Tensor:
        return torch.arange(first, first + count, device=cuda)[None]

    with torch.no_grad():
        with nsf.capture(model, hooks) as eager:
            cache = new_cache()
            model(prompt, past_key_values=cache, position_ids=positions(0, 17), use_cache=True)
            for number, token in enumerate(steps):
                model(token, past_key_values=cache, position_ids=positions(17 + number, 1), use_cache=True)

        token, place = steps[0].clone(), positions(17, 1)
        cache = new_cache()
        model(prompt, past_key_values=cache, position_ids=positions(0, 17), use_cache=True)
        warm_up(model, token, past_key_values=cache, position_ids=place, use_cache=True)
        with nsf.capture(model, hooks) as cap:
            graph = capture_graph(model, token, past_key_values=cache, position_ids=place, use_cache=True)
            cache.reset()
            model(prompt, past_key_values=cache, position_ids=positions(0, 17), use_cache=True)
            for number, each in enumerate(steps):
                token.copy_(each)
                place.fill_(17 + number)
                graph.replay()
    assert told(cap.result) == told(eager.result)
    for hook in cap.hook_ids:
        for mine, other in zip(cap.result[hook], eager.result[hook], strict=True):
            assert same_bits(mine, other), hook
    assert cap.result.metadata.usage == eager.result.metadata.usage


def test_a_graph_from_before_the_block_is_told_of(cuda: torch.device) -> None:
    model = Chain(cuda)
    given = activations(cuda)
    warm_up(model, given)
    graph = capture_graph(model, given)
    with pytest.warns(nsf.CaptureWarning, match="captured before"), nsf.capture(model, LAYERS) as cap:
        graph.replay()
    assert any("captured before" in line for line in cap.result.manifest.warnings)


def test_a_graph_that_outlives_the_block(cuda: torch.device) -> None:
    model = Chain(cuda)
    given = activations(cuda)
    warm_up(model, given)
    with nsf.capture(model, LAYERS) as cap:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(given)
        graph.replay()
    with nsf.capture(model, LAYERS) as other:
        bare = model(given)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, bare)
    assert len(cap.result.records) == len(other.result.records) == 4


def test_a_graph_and_an_exception_in_it(cuda: torch.device) -> None:
    failing = [True]

    def between(number: int, _: torch.Tensor) -> None:
        if number == 2 and failing:
            raise ValueError("in the graph")

    model = Chain(cuda, between=between)
    given = activations(cuda)
    failing.clear()
    warm_up(model, given)
    failing.append(True)
    with Clones(model, LAYERS) as clones, nsf.capture(model, LAYERS) as cap:
        with pytest.raises(ValueError, match="in the graph"):
            capture_graph(model, given)
        torch.cuda.synchronize()
        failing.clear()
        for tensors in clones.tensors.values():
            tensors.clear()  # of the graph that never was
        model(given)
    assert_equal_clones(cap.result, clones)


def test_compiled_with_reduced_overhead(cuda: torch.device) -> None:
    """Torch captures graphs of its own, and replays them from the third call on."""
    model = Chain(cuda, between=None)
    inputs = [activations(cuda, seed=seed) for seed in range(REPLAYS)]
    with nsf.capture(model, LAYERS) as eager:
        for x in inputs:
            model(x)
    compiled = torch.compile(model, mode="reduce-overhead")
    with nsf.capture(model, LAYERS) as cap, torch.no_grad():
        for x in inputs:
            compiled(x)
    assert told(cap.result) == told(eager.result)
    for hook in cap.hook_ids:
        for ours, theirs in zip(cap.result[hook], eager.result[hook], strict=True):
            torch.testing.assert_close(ours.float(), theirs.float(), atol=0.05, rtol=0.05)
