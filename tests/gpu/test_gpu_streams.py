"""What runs while a capture copies: other streams, changes in place, graphs, exceptions, threads, several devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from conftest import hook_state
from torch import nn

from gpu.captures import Chain, Clones, activations, assert_equal_clones

pytestmark = pytest.mark.gpu

LAYERS = "layers.*:mlp"


def test_a_residual_stream_that_is_changed_in_place(device: torch.device) -> None:
    model = Chain(device, between=lambda number, x: x.mul_(number + 1.5).add_(1))
    x = activations(device)
    bare = model(x)
    with Clones(model, LAYERS) as clones, nsf.capture(model, LAYERS) as cap:
        for _ in range(4):
            assert torch.equal(model(x), bare)
    assert_equal_clones(cap.result, clones)


def test_tensors_that_are_freed_and_used_again_at_once(device: torch.device) -> None:
    def scribble(_number: int, x: torch.Tensor) -> None:
        torch.full_like(x, 7)  # torch's allocator gives out what the layer before has just given back

    model = Chain(device, layers=12, between=scribble)
    x = activations(device)
    with nsf.capture(model, LAYERS) as cap:
        model(x)
    with Clones(model, LAYERS) as clones:
        model(x)
    assert_equal_clones(cap.result, clones)


def test_on_a_stream_of_its_own(cuda: torch.device) -> None:
    model = Chain(cuda, between=lambda _, x: x.mul_(2))
    x = activations(cuda)
    stream = torch.cuda.Stream(cuda)
    stream.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(stream), Clones(model, LAYERS) as clones, nsf.capture(model, LAYERS) as cap:
        for _ in range(4):
            model(x)
    stream.synchronize()
    assert_equal_clones(cap.result, clones)


class TwoStreams(nn.Module):
    """Two chains on a stream each, and a last layer that joins them."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.sides = nn.ModuleList(Chain(device, between=lambda _, x: x.mul_(1.5)) for _ in range(2))
        self.join = nn.Linear(1024, 1024, device=device, dtype=torch.bfloat16)
        self._streams = [torch.cuda.Stream(device) for _ in range(2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        current = torch.cuda.current_stream(x.device)
        results = []
        for side, stream in zip(self.sides, self._streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                results.append(side(x))
        for result, stream in zip(results, self._streams, strict=True):
            current.wait_stream(stream)
            result.record_stream(current)
        return self.join(results[0] + results[1])


@pytest.mark.parametrize("staging_mib", [2, 256])
def test_two_streams_in_one_forward(cuda: torch.device, staging_mib: int) -> None:
    model = TwoStreams(cuda)
    x = activations(cuda)
    hooks = ["sides.*.layers.*:mlp", "join:mlp"]
    options = {"block_bytes": 1 << 20, "staging_bytes": staging_mib << 20}
    torch.cuda.synchronize()
    with Clones(model, hooks) as clones, nsf.capture(model, hooks, **options) as cap:
        for _ in range(3):
            model(x)
    torch.cuda.synchronize()
    assert_equal_clones(cap.result, clones)


class Boom(Exception):
    pass


def test_an_exception_in_the_forward(device: torch.device) -> None:
    failing = []

    def between(number: int, x: torch.Tensor) -> None:
        x.add_(1)
        if number == 2 and failing:
            raise Boom

    model = Chain(device, between=between)
    x = activations(device)
    before = hook_state(model)
    with Clones(model, LAYERS) as clones:
        with nsf.capture(model, LAYERS) as cap:
            model(x)
            failing.append(True)
            with pytest.raises(Boom):
                model(x)
            failing.clear()
            model(x)
        assert_equal_clones(cap.result, clones)
        assert [len(tensors) for tensors in clones.tensors.values()] == [3, 3, 3, 2]
    failing.append(True)
    broken = nsf.capture(model, LAYERS)
    with Clones(model, LAYERS) as clones, pytest.raises(Boom), broken:
        model(x)
    assert hook_state(model) == before
    assert broken.result.status == "interrupted"
    assert len(broken.result.records) == 3
    for number, tensors in enumerate(clones.tensors.values()):
        stored = broken.result[f"layers.{number}_mlp"]
        assert len(stored) == len(tensors) == (number < 3)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(stored, tensors, strict=True))


def test_two_captures_in_two_threads(device: torch.device) -> None:
    models = [Chain(device, layers=4 + number, between=lambda _, x: x.mul_(1.25)) for number in range(2)]
    xs = [activations(device, seed=number) for number in range(2)]
    meet = threading.Barrier(2, timeout=60)
    failures: list[BaseException] = []

    def stream() -> AbstractContextManager[Any]:
        if device.type != "cuda":
            return nullcontext()
        made = torch.cuda.Stream(device)
        made.wait_stream(torch.cuda.default_stream(device))
        return torch.cuda.stream(made)

    def work(model: Chain, x: torch.Tensor) -> None:
        try:
            with torch.no_grad(), stream(), Clones(model, LAYERS) as clones:
                with nsf.capture(model, LAYERS, dtype="float16") as cap:
                    meet.wait()
                    for _ in range(6):
                        model(x)
                    meet.wait()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                assert_equal_clones(cap.result, clones, like=lambda tensor: tensor.to(torch.float16))
        except BaseException as error:
            failures.append(error)
            meet.abort()

    if device.type == "cuda":
        torch.cuda.synchronize(device)  # weights and inputs are there for every stream
    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, xs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Spread(nn.Module):
    """An embedding on the first device, layers on the second, a head on the third."""

    def __init__(self, devices: list[torch.device]):
        super().__init__()
        self._devices = devices
        self.embed = nn.Embedding(101, 64, device=devices[0], dtype=torch.bfloat16)
        self.layers = nn.ModuleList(nn.Linear(64, 64, device=devices[1], dtype=torch.bfloat16) for _ in range(3))
        self.head = nn.Linear(64, 101, device=devices[2], dtype=torch.bfloat16)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(input_ids.to(self._devices[0])).to(self._devices[1])
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x.to(self._devices[2]))}


def capture_spread(devices: list[torch.device], dtype: str | None) -> nsf.Run:
    model = Spread(devices)
    hooks = ["embed:embedding", "layers.*:mlp", "head:logits"]
    with Clones(model, hooks) as clones, nsf.capture(model, hooks, dtype=dtype) as cap:
        for length in (9, 1, 300):
            model(torch.arange(length)[None] % 101)
    like = None if dtype is None else lambda tensor: tensor.to(getattr(torch, dtype))
    assert_equal_clones(cap.result, clones, like=like)
    return cap.result


@pytest.mark.parametrize("dtype", [None, "float32", "float8_e5m2"])
def test_a_model_on_the_cpu_and_a_gpu(device: torch.device, dtype: str | None) -> None:
    cpu = torch.device("cpu")
    run = capture_spread([cpu, device, cpu], dtype)
    assert [each.device for each in run.manifest.devices] == (["cuda:0"] if device.type == "cuda" else [])
    capture_spread([device, cpu, device], dtype)


def test_a_model_on_two_gpus(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    run = capture_spread([cuda, other, cuda], "float32")
    assert sorted(each.device for each in run.manifest.devices) == ["cuda:0", "cuda:1"]
    assert all(each.dtoh_bytes > 0 for each in run.manifest.devices)


class Returning(nn.Module):
    """Gives every state between its layers, so that compiled code says what it computed."""

    def __init__(self, device: torch.device):
        super().__init__()
        kind = {"device": device, "dtype": torch.bfloat16}
        self.embed = nn.Embedding(101, 256, **kind)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(256, 256, **kind), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(256, 101, **kind)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(input_ids)
        states = {}
        for number, layer in enumerate(self.layers):
            part = layer(x)
            states[f"layers.{number}_mlp"] = part
            x = x + part
        logits = self.head(x)
        return {"logits": logits, "head_logits": logits, **states}


@pytest.fixture
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_nothing_compiled")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_code(device: torch.device) -> None:
    model = Returning(device)
    hooks = [LAYERS, "head:logits"]
    passes = [torch.arange(2 * 40, device=device).view(2, 40) % 101] * 2
    with nsf.capture(model, hooks) as eager:
        for ids in passes:
            model(ids)

    def call(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return model(ids)

    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    with nsf.capture(model, hooks) as cap:
        computed = [{name: value.clone() for name, value in compiled(ids).items()} for ids in passes]
    assert [(name, cap.result[name].records) for name in cap.hook_ids] == [
        (name, eager.result[name].records) for name in eager.hook_ids
    ]
    assert len(cap.hook_ids) == 3
    for name in cap.hook_ids:
        for step, stored in enumerate(cap.result[name]):
            assert torch.equal(stored, computed[step][name].cpu()), name
            torch.testing.assert_close(stored.float(), eager.result[name][step].float(), atol=0.05, rtol=0.05)
