"""The engine's casts against torch's own, over every sixteen-bit pattern and many others, at every CPU level."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from neuroscope_fast import _core
from neuroscope_fast.environment import float8_rules

TARGETS = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]


def cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    e4m3, e5m2 = float8_rules()
    data, _ = _core.cast(tensor, dtype, e4m3_saturates=e4m3, e5m2_saturates=e5m2)
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(tensor.shape)


def patterns(source: str) -> torch.Tensor:
    """Every pattern of a small type; of the large ones every sign, exponent and a mantissa around each rounding tie."""
    if source in ("float8_e4m3fn", "float8_e5m2"):
        return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, source))
    if source in ("float16", "bfloat16"):
        return torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(getattr(torch, source))
    high = torch.arange(65536, dtype=torch.int64) << 16
    lows = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x0FFF, 0x1001])
    singles = (high[:, None] + lows[None, :]).reshape(-1).to(torch.int64)
    singles = torch.where(singles >= 2**31, singles - 2**32, singles).to(torch.int32).view(torch.float32)
    if source == "float32":
        return singles
    doubles = singles.double()
    near = torch.nextafter(doubles, torch.tensor(0.0, dtype=torch.float64))
    extremes = torch.tensor([1e300, -1e300, 5e-324, 1e-45, 3.5e38, float("nan"), float("inf")], dtype=torch.float64)
    return torch.cat([doubles, near, extremes])


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    both_nan = torch.isnan(got.float()) & torch.isnan(want.float())
    width = {1: torch.uint8, 2: torch.uint16, 4: torch.int32, 8: torch.int64}[got.dtype.itemsize]
    equal = got.view(width) == want.view(width)
    assert bool((equal | both_nan).all())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_cast_equals_torch(source: str, target: str) -> None:
    values = patterns(source)
    want = values.to(getattr(torch, target))
    assert_same(cast(values, target), want)
    shifted = values[3:]  # another alignment, another tail
    assert_same(cast(shifted, target), want[3:])
    assert_same(cast(values[::2], target), want[::2])


@pytest.mark.parametrize("source", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_what_is_no_float_is_not_cast(source: torch.dtype) -> None:
    with pytest.raises(ValueError, match="no cast from"):
        _core.cast(torch.ones(3).to(source), "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_cast_into_given_memory(dtype: str) -> None:
    x = torch.randn(7, 5, 33, generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    data, scales = _core.cast(x, dtype)
    out = bytearray(len(data))
    assert _core.cast_into(x, dtype, out) == scales
    assert out == data
    with pytest.raises(ValueError, match=f"takes {len(data)} bytes"):
        _core.cast_into(x, dtype, bytearray(len(data) + 1))
    with pytest.raises(BufferError):
        _core.cast_into(x, dtype, bytes(len(data)))


def quantised(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    data, scales = _core.cast(tensor, "int8")
    rows = tensor.shape[:-1]
    codes = torch.frombuffer(bytearray(data), dtype=torch.int8) if data else torch.empty(0, dtype=torch.int8)
    scale = torch.frombuffer(bytearray(scales), dtype=torch.float32) if scales else torch.empty(0)
    return codes.view(tensor.shape), scale.view(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 63, 64, 65, 1000])
def test_int8_rows(dtype: torch.dtype, width: int) -> None:
    x = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    for tensor in (x, x.transpose(0, 1)):
        codes, scale = quantised(tensor)
        exact = tensor.float()
        assert torch.equal(scale, exact.abs().amax(-1) / 127)
        assert torch.equal(codes, torch.round(exact / scale[..., None]).clamp(-127, 127).to(torch.int8))
        error = (codes.float() * scale[..., None] - exact).abs()
        assert bool((error <= scale[..., None] * 0.5001).all())


def test_int8_of_rows_that_are_not_finite_or_zero() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("inf"), 1.0], [1e-45, 0.0]])
    codes, scale = quantised(x)
    assert scale[0] == 0
    assert codes[0].tolist() == [0, 0]
    assert torch.isnan(scale[1:3]).all()
    assert not torch.isnan(codes[3].float() * scale[3]).any()


def test_int8_of_shapes_without_rows() -> None:
    codes, scale = quantised(torch.tensor(-2.54))
    assert (codes.shape, scale.shape, int(codes)) == ((), (), -127)
    codes, scale = quantised(torch.empty(3, 0))
    assert codes.shape == (3, 0)
    assert scale.tolist() == [0, 0, 0]


SCRIPT = """
import json, torch
from neuroscope_fast import _core
x = torch.arange(0, 2**32, 65537, dtype=torch.int64)
x = torch.where(x >= 2**31, x - 2**32, x).to(torch.int32).view(torch.float32)
sums = {d: _core.crc32c(_core.cast(x, d)[0]) for d in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")}
finite = torch.nan_to_num(x)[: len(x) // 64 * 64].view(-1, 64)
sums["int8"] = [_core.crc32c(part) for part in _core.cast(finite, "int8")]
print(json.dumps([_core.build_info()["cpu_level"], sums]))
"""


def test_every_cpu_level_gives_the_same_bytes() -> None:
    results = {}
    for level in ("scalar", "avx2", "avx512"):
        output = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "NEUROSCOPE_FAST_CPU": level},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        used, sums = json.loads(output)
        results[used] = sums
    assert "scalar" in results
    assert len({json.dumps(sums) for sums in results.values()}) == 1
