"""Taps against tensors of every kind, through the DLPack table and through plain attributes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import neuroscope_fast as nsf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import BaseModelOutput


class Echo(nn.Module):
    """Gives back what it was given; `body` is the place that is hooked."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, value: Any) -> Any:
        return self.body(value)


class Body(nn.Module):
    def forward(self, value: Any) -> Any:
        return value


@pytest.fixture(params=["dlpack", "attributes"])
def access(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def captured(value: Any, access: str, **options: Any) -> torch.Tensor:
    model = Echo()
    with nsf.capture(model, "body:mlp:x", tensor_access=access, **options) as cap:
        model(value)
    (tensor,) = cap.result["x"]
    return tensor


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def every_byte(dtype: torch.dtype, count: int) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.arange(count) % 3 == 0
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65])
def test_every_dtype_passes_bit_for_bit(dtype: torch.dtype, count: int, access: str) -> None:
    tensor = every_byte(dtype, count)
    got = captured(tensor, access)
    assert got.dtype == dtype
    assert got.shape == tensor.shape
    assert bits(got) == bits(tensor)


VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "scalar": lambda: torch.tensor(3.5),
    "empty": lambda: torch.empty(2, 0, 5),
    "transposed": lambda: torch.randn(3, 5, 7).transpose(0, 2),
    "every third": lambda: torch.randn(10, 31)[:, ::3],
    "expanded": lambda: torch.randn(4, 1, 6).expand(4, 9, 6),
    "offset view": lambda: torch.randn(100)[13:77],
    "diagonal": lambda: torch.randn(9, 9).diagonal(),
    "rank 8": lambda: torch.randn(1, 2, 1, 3, 2, 1, 2, 3).permute(7, 3, 1, 0, 4, 2, 6, 5),
    "overlapping": lambda: torch.randn(24).as_strided((5, 6), (2, 3)),
    "requires_grad": lambda: torch.randn(4, 4, requires_grad=True),
    "parameter": lambda: nn.Parameter(torch.randn(4, 4)),
    "conjugated": lambda: torch.randn(5, 3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.randn(5, 3, dtype=torch.complex64).conj().imag,
    "conjugated transpose": lambda: torch.randn(5, 3, dtype=torch.complex64).mH,
}


@pytest.mark.parametrize("kind", VIEWS)
def test_every_view(kind: str, access: str) -> None:
    with torch.enable_grad():
        tensor = VIEWS[kind]()
        got = captured(tensor, access)
    assert got.shape == tensor.shape
    assert bits(got) == bits(tensor)


def test_inference_mode(access: str) -> None:
    with torch.inference_mode():
        tensor = torch.randn(3, 4)
        got = captured(tensor, access)
    assert torch.equal(got, tensor)


def test_autograd_graph_is_not_touched(access: str) -> None:
    with torch.enable_grad():
        source = torch.randn(3, 4, requires_grad=True)
        model = Echo()
        with nsf.capture(model, "body:mlp:x", tensor_access=access):
            result = model(source * 2)
        result.sum().backward()
    assert source.grad is not None
    assert torch.equal(source.grad, torch.full((3, 4), 2.0))


class Subclass(torch.Tensor):
    pass


def test_subclass(access: str) -> None:
    tensor = torch.randn(3, 4).as_subclass(Subclass)
    assert bits(captured(tensor, access)) == bits(tensor.as_subclass(torch.Tensor))


class Pair(NamedTuple):
    first: Any
    second: Any


CONTAINERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tuple": lambda x: (x, torch.zeros(1)),
    "list": lambda x: [None, x],
    "dict": lambda x: {"a": None, "b": x},
    "OrderedDict": lambda x: OrderedDict(a=3, b=x, c=torch.zeros(1)),
    "ModelOutput": lambda x: BaseModelOutput(last_hidden_state=x, hidden_states=(torch.zeros(1),)),
    "named tuple": lambda x: Pair(None, x),
    "nested": lambda x: ((), [{"deep": (None, x)}], torch.zeros(1)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_first_tensor_of_a_container(kind: str, access: str) -> None:
    tensor = torch.randn(2, 3)
    assert torch.equal(captured(CONTAINERS[kind](tensor), access), tensor)


@pytest.mark.parametrize("value", [None, 3, "text", (), {}, [None, (1, 2)]], ids=repr)
def test_output_without_a_tensor_names_hook_layer_and_type(value: Any, access: str) -> None:
    model = Echo()
    with (
        pytest.raises(nsf.CaptureError, match=rf"hook 'x' on layer 'body'.*{type(value).__name__}"),
        nsf.capture(model, "body:mlp:x", tensor_access=access),
    ):
        model(value)


def test_self_referring_container_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    model = Echo()
    with pytest.raises(nsf.CaptureError, match="no tensor"), nsf.capture(model, "body:mlp:x"):
        model(endless)


UNREADABLE: dict[str, Callable[[], torch.Tensor]] = {
    "meta": lambda: torch.empty(2, 3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "complex128": lambda: torch.zeros(2, dtype=torch.complex128),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_tensors_are_refused_by_name(kind: str, access: str) -> None:
    model = Echo()
    with (
        pytest.raises(nsf.CaptureError, match=r"hook 'x' on layer 'body'.*cannot be captured") as caught,
        nsf.capture(model, "body:mlp:x", tensor_access=access),
    ):
        model(UNREADABLE[kind]())
    assert "\n" not in str(caught.value)


def test_fake_tensor_is_refused(access: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3, 4)
    model = Echo()
    with (
        pytest.raises(nsf.CaptureError, match="cannot be captured"),
        nsf.capture(model, "body:mlp:x", tensor_access=access),
    ):
        model(fake)


def test_inputs_by_position_and_by_name(access: str) -> None:
    class Named(nn.Module):
        def forward(self, mask: Any = None, *, hidden_states: Any = None) -> Any:
            return mask if hidden_states is None else hidden_states

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Named()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.body(*args, **kwargs)

    model = Root()
    hook = {"layer_name": "body", "component": "mlp", "hook_id": "x", "capture_input": True}
    a, b = torch.randn(2, 3), torch.randn(4, 5)
    with nsf.capture(model, hook, tensor_access=access) as cap:
        model(a)
        model(mask=a, hidden_states=b)
        model(a, hidden_states=b)
    inputs = cap.result["x"].inputs
    assert [tuple(tensor.shape) for tensor in inputs] == [(2, 3), (4, 5), (2, 3)]
    assert torch.equal(inputs[1], b)


def test_later_changes_in_place_do_not_reach_a_record(access: str) -> None:
    model = Echo()
    tensor = torch.randn(1000)
    before = tensor.clone()
    with nsf.capture(model, "body:mlp:x", tensor_access=access) as cap:
        model(tensor)
        tensor.zero_()
    assert torch.equal(cap.result["x"][0], before)


@st.composite
def strided(draw: st.DrawFn) -> torch.Tensor:
    """A view of random rank, sizes, steps, order and expansion."""
    rank = draw(st.integers(0, 5))
    sizes = [draw(st.integers(0, 5)) for _ in range(rank)]
    steps = [draw(st.integers(1, 3)) for _ in range(rank)]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]))
    base = torch.arange(int(torch.tensor([n * s for n, s in zip(sizes, steps, strict=True)]).prod()) if rank else 1)
    view = base.to(dtype).reshape([n * s for n, s in zip(sizes, steps, strict=True)])
    view = view[tuple(slice(None, None, s) for s in steps)] if rank else view
    view = view.permute(draw(st.permutations(range(rank))))
    if draw(st.booleans()):
        view = view.unsqueeze(0).expand(draw(st.integers(0, 3)), *view.shape)
    return view


@pytest.fixture(scope="module")
def session_model() -> Echo:
    return Echo()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensor=strided(), access=st.sampled_from(["dlpack", "attributes"]))
def test_any_strides(session_model: Echo, tensor: torch.Tensor, access: str) -> None:
    with nsf.capture(session_model, "body:mlp:x", tensor_access=access, ring_bytes=8192, block_bytes=4096) as cap:
        session_model(tensor)
    got = cap.result["x"][0]
    assert got.shape == tensor.shape
    assert torch.equal(got, tensor)
