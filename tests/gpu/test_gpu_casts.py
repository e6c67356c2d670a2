"""Casts of single tensors on a GPU: those of torch there, and int8 as its twin makes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from neuroscope_fast import _core
from neuroscope_fast.environment import float8_rules
from neuroscope_fast.kernels import reference
from test_casts import assert_same, patterns

from gpu.captures import captured

pytestmark = pytest.mark.gpu

TARGETS = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
SOURCES = ["float64", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_casts_are_those_of_torch(device: torch.device, source: str, target: str) -> None:
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(3, 50, 1000, generator=generator, device=device) * 20  # within the range of every target
    x = x.to(getattr(torch, source))
    strided = (x[..., 1:], x.transpose(0, 1), x.transpose(1, 2)) if source in ("float32", "bfloat16") else ()
    for tensor in (x, *strided):
        assert_same(captured(tensor, dtype=target)[0], tensor.contiguous().to(getattr(torch, target)).cpu())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", [*SOURCES, "float8_e4m3fn", "float8_e5m2"])
def test_casts_of_every_pattern(device: torch.device, source: str, target: str) -> None:
    """NaNs, infinities, subnormals and ties; beyond the largest float8 the rule is that of torch on the CPU."""
    x = patterns(source).view(1, 1, -1).to(device)
    e4m3, e5m2 = float8_rules()
    want = reference.downcast(x, getattr(torch, target), e4m3_saturates=e4m3, e5m2_saturates=e5m2)
    assert_same(captured(x, dtype=target)[0], want.cpu())


@pytest.mark.parametrize(
    ("source", "length"),
    [
        *(("bfloat16", length) for length in (1, 63, 64, 1000, 5000)),
        ("float32", 1000),
        ("float16", 64),
        ("float64", 63),
    ],
)
def test_int8_is_that_of_its_twin(device: torch.device, source: str, length: int) -> None:
    generator = torch.Generator(device).manual_seed(2)
    x = torch.randn(2, 40, length, generator=generator, device=device).to(getattr(torch, source))
    x[0, 0, 0], x[0, 1, :], x[1, 2, -1] = float("nan"), 0, float("inf")
    for tensor in (x, x.transpose(1, 2), x[:, ::2]):
        codes, scales = captured(tensor, dtype="int8").raw(0)
        want_codes, want_scales = reference.quantize(tensor)
        assert torch.equal(codes, want_codes.cpu())
        assert scales is not None
        assert_same(scales, want_scales.cpu())


@pytest.mark.parametrize(
    "reads_on_the_host", [lambda x: _core.cast(x, "bfloat16"), lambda x: _core.head_reduce(x, 1, "sum")]
)
def test_what_reads_on_the_host_refuses_a_tensor_on_the_device(
    cuda: torch.device, reads_on_the_host: Callable[[torch.Tensor], object]
) -> None:
    with pytest.raises(ValueError, match=r"it is on the device cuda:0; move it to the CPU"):
        reads_on_the_host(torch.ones(1, 2, 3, 4, device=cuda))
