"""Memory of a capture on a GPU: little is enough, and all of it is given back.

`make gpu-check` runs this file alone, as it looks at the memory of the whole device.
"""

from __future__ import annotations

import gc

import neuroscope_fast as nsf
import pytest
import torch
from gpu_models import Shape, tokens
from torch import nn

from gpu.captures import Chain, Clones, activations, assert_equal_clones

pytestmark = pytest.mark.gpu

KIB, MIB = 1 << 10, 1 << 20
HOOKS = ["model.layers.*:residual", "model.layers.*:attention"]


@pytest.mark.parametrize(
    "sizes",
    [(64 * KIB, 1, 3), (MIB, 1, 3), (MIB, 2, 64), (MIB, 64, 4), (3 * MIB, 2, 4), (8 * MIB, 4, 4)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [None, "float8_e4m3fn", "int8"])
def test_tiny_rings(
    model: nn.Module, shape: Shape, device: torch.device, sizes: tuple[int, int, int], dtype: str | None
) -> None:
    """Tensors larger than a block, than all of the staging ring, and than all of the host's."""
    block, staging_blocks, ring_blocks = sizes
    hooks = ["model.layers.0:residual", "model.layers.1:mlp"]
    options = {"block_bytes": block, "staging_bytes": staging_blocks * block, "ring_bytes": ring_blocks * block}
    with Clones(model, hooks) as clones, nsf.capture(model, hooks, dtype=dtype, **options) as cap:
        model(tokens(shape, shape.prefill, device), logits_to_keep=1)
    if dtype == "int8":
        with nsf.capture(model, hooks, dtype=dtype) as whole:
            model(tokens(shape, shape.prefill, device), logits_to_keep=1)
        for hook_id in cap.hook_ids:
            for one, other in zip(cap.result[hook_id].raw(0), whole.result[hook_id].raw(0), strict=True):
                assert one is not None
                assert torch.equal(one, other)
    else:
        like = None if dtype is None else lambda tensor: tensor.to(getattr(torch, dtype))
        assert_equal_clones(cap.result, clones, like=like)
    for found in cap.result.manifest.devices:
        assert found.staging_bytes == options["staging_bytes"]
        assert found.peak_staging_bytes <= options["staging_bytes"]


def test_records_that_are_dropped_are_listed_and_the_others_whole(device: torch.device) -> None:
    model = Chain(device, layers=24)
    x = activations(device)
    size = x.numel() * 2
    with (
        Clones(model, "layers.*:mlp") as clones,
        nsf.capture(model, "layers.*:mlp", overflow="drop", block_bytes=size, ring_bytes=3 * size) as cap,
    ):
        for _ in range(4):
            model(x)
    run = cap.result
    assert run.stats.drops == len(run.manifest.dropped)
    assert len(run.records) + run.stats.drops == 4 * 24
    assert len(run.records) > 0
    for hook_id in run.hooks:
        for record, stored in zip(run[hook_id].records, run[hook_id], strict=True):
            assert torch.equal(stored, clones.tensors[hook_id, False][record.step].cpu())


def test_nothing_is_kept_on_the_device(model: nn.Module, shape: Shape, cuda: torch.device) -> None:
    ids = tokens(shape, shape.prompt, cuda)

    def capture() -> None:
        with nsf.capture(model, HOOKS, dtype="float8_e4m3fn"):
            model(ids)

    def held() -> tuple[int, int]:
        gc.collect()
        torch.cuda.synchronize(cuda)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(cuda)
        return torch.cuda.memory_allocated(cuda), free

    for _ in range(2):  # what the driver and torch set up once
        capture()
    allocated, free = held()
    for _ in range(20):
        capture()
    allocated_after, free_after = held()
    assert allocated_after - allocated <= MIB
    assert free - free_after <= 8 * MIB


def test_the_staging_ring_takes_no_more_than_its_share(model: nn.Module, shape: Shape, cuda: torch.device) -> None:
    torch.cuda.synchronize(cuda)
    free, _ = torch.cuda.mem_get_info(cuda)
    share = 64 * MIB / free
    hooks = ["model.layers.*:residual"]
    with (
        pytest.warns(nsf.CaptureWarning, match="staging ring"),
        Clones(model, hooks) as clones,
        nsf.capture(model, hooks, staging_bytes=4096 * MIB, staging_share=share) as cap,
    ):
        model(tokens(shape, shape.prompt, cuda))
    assert_equal_clones(cap.result, clones)
    (found,) = cap.result.manifest.devices
    assert 0 < found.staging_bytes <= 64 * MIB
    assert any("staging ring" in line for line in cap.result.manifest.warnings)
