"""Records of single tensors on a GPU: strides, positions, and both ways of launching a kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.kernels import launch
from test_conformance import same_bits

from gpu.captures import SMALL, VIEWS, Clones, Views, assert_equal_clones, captured

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64],
    ids=str,
)
def test_uncast_tensors_of_every_layout(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.arange(2 * 6 * 10 * 7 * 16, device=device).view(2, 6, 10, 7, 16).to(dtype)
    layouts = [x, x.permute(4, 2, 0, 3, 1), x[:, 1::2, :, 2:, ::3], x[0, 0].t() if x[0, 0].dim() == 2 else x[0].mT]
    layouts += [x[:1].expand(5, 6, 10, 7, 16), x[0, 0, 0], x[0, 0, 0, 0], x[0, 0, 0, 0, 0], x[:0], x[..., 15:]]
    for tensor in layouts:
        assert same_bits(captured(tensor)[0], tensor.cpu())


@pytest.mark.parametrize("dtype", [None, "float8_e4m3fn", "float32"])
@pytest.mark.parametrize("positions", ["all", "last", [0, -1], [3, 1, 30], slice(2, 9, 3), "-4:"], ids=str)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_positions_of_every_view(device: torch.device, padding: str, positions: Any, dtype: str | None) -> None:
    model = Views(device)
    length = 37
    ids = torch.arange(3 * length, device=device).view(3, length) % 101
    mask = torch.ones_like(ids)
    starts, ends = [0, 0, 0], [length] * 3
    if padding == "left":
        mask[1, :5], starts[1] = 0, 5
    if padding == "right":
        mask[1, 30:], ends[1] = 0, 30
    hooks = [f"views.{name}:mlp:{name}" for name in VIEWS]
    chosen = [
        {"layer_name": f"views.{name}", "component": "mlp", "hook_id": name, "positions": positions} for name in VIEWS
    ]
    with Clones(model, hooks) as clones, nsf.capture(model, chosen, dtype=dtype, **SMALL) as cap:
        model(ids, attention_mask=mask)
    for name in VIEWS:
        whole = clones.tensors[name, False][0]
        if positions == "last":
            want = torch.stack([whole[row, ends[row] - 1] for row in range(3)])[:, None]
        elif isinstance(positions, list):
            (record,) = cap.result[name].records
            assert record.positions == [position % length for position in positions]
            want = whole[:, record.positions]
        else:
            want = whole[:, {"all": slice(None), "-4:": slice(-4, None)}.get(str(positions), positions)]
        if dtype is not None:
            want = want.contiguous().to(getattr(torch, dtype))
        assert same_bits(cap.result[name][0], want.cpu()), name


def test_the_driver_launches_every_kernel(cuda: torch.device) -> None:
    for kind, source, target in (
        ("gather_cast", "bfloat16", "float8_e4m3fn"),
        ("gather_cast", "float32", "bfloat16"),
        ("gather_cast", "int16", "int16"),
        ("quantize", "bfloat16", "int8"),
    ):
        for aligned in (True, False):
            columns = launch.row_columns(4096) if kind == "quantize" else launch.tiles(4096, 1)[1]
            kernel = launch.load(
                kind,
                source,
                target,
                table=0,
                per_row=False,
                write=3,
                rows=1,
                columns=columns,
                aligned=aligned,
                e4m3_saturates=True,
                e5m2_saturates=False,
                device=cuda.index,
            )
            assert kernel.image is not None, kernel.reason


@pytest.mark.parametrize("dtype", [None, "float8_e4m3fn", "int8"])
def test_launches_through_triton_store_the_same(
    cuda: torch.device, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Views(cuda)
    ids = torch.arange(3 * 37, device=cuda).view(3, 37) % 101
    hooks = [f"views.{name}:mlp:{name}" for name in VIEWS]
    with nsf.capture(model, hooks, dtype=dtype, **SMALL) as by_driver:
        model(ids)

    described, launched = launch.describe, launch.Kernel.launch
    launches: list[str] = []

    def without_image(compiled: Any, device: int) -> launch.Kernel:
        return dataclasses.replace(described(compiled, device), image=None, reason="left out by the test")

    def counted(kernel: launch.Kernel, *arguments: Any) -> None:
        launches.append(kernel.name)
        launched(kernel, *arguments)

    monkeypatch.setattr(launch, "describe", without_image)
    monkeypatch.setattr(launch.Kernel, "launch", counted)
    with nsf.capture(model, hooks, dtype=dtype, **SMALL) as by_triton:
        model(ids)
    # Without a cast, contiguous tensors are copied by the driver: their view needs no kernel.
    assert len(launches) >= len(VIEWS) - (dtype is None)
    for name in VIEWS:
        one, other = by_driver.result[name].raw(0), by_triton.result[name].raw(0)
        assert same_bits(one[0], other[0])
        assert (one[1] is None) == (other[1] is None) == (dtype != "int8")
        if one[1] is not None and other[1] is not None:
            assert same_bits(one[1], other[1])


def test_a_view_of_every_kind_at_once(device: torch.device) -> None:
    model = Views(device, width=128, dtype=torch.float32)
    hooks = [f"views.{name}:mlp:{name}" for name in VIEWS]
    with Clones(model, hooks) as clones, nsf.capture(model, hooks) as cap:
        for length in (1, 16, 33):
            model(torch.arange(2 * length, device=device).view(2, length) % 101)
    assert_equal_clones(cap.result, clones)
