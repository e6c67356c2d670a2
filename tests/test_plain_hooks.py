"""Python hooks on a capture's places, and the comparison of what both saw."""

from __future__ import annotations

from pathlib import Path

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.hooks import make_plan
from neuroscope_fast.model_components import Place
from neuroscope_fast.model_map import resolve_hooks
from neuroscope_fast.plain_hooks import PlainHooks, difference
from torch import nn

HOOKS = [{"layer_name": "0", "component": "mlp", "hook_id": "first", "capture_input": True, "capture_output": False}, "1:mlp:last"]  # noqa: E501  # fmt: skip


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def seen_and_stored(x: torch.Tensor, dtype: str | None = None) -> tuple[list[list[torch.Tensor]], nsf.Run]:
    """What cloning hooks saw at each place, and what a capture stored, in two passes of the same model."""
    made = model()
    plan = make_plan(resolve_hooks(made, HOOKS), dtype)
    places = [tap.place for tap in plan.taps]
    seen: dict[Place, list[torch.Tensor]] = {place: [] for place in places}
    with (
        torch.no_grad(),
        PlainHooks(made, places, lambda place, tensor: seen[place].append(tensor.clone())),
        nsf.capture(made, HOOKS, dtype=dtype) as capture,
    ):
        made(x)
        made(x + 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())
    return [seen[place] for place in places], capture.result


def test_hooks_see_what_taps_store() -> None:
    (first, last), run = seen_and_stored(torch.randn(2, 4))
    assert [len(first), len(last)] == [2, 2]
    assert difference(run["first"].inputs, first, None) is None
    assert difference(run["last"], last, None) is None


def test_one_bit_is_a_difference() -> None:
    (_, last), run = seen_and_stored(torch.randn(2, 4))
    last[1].view(torch.int32)[0, 0] ^= 1
    assert difference(run["last"], last, None) == "tensor 1 of last is not what a cloning hook saw there"
    assert difference(run["last"], last[:1], None) == "last has 2 tensors, not 1"
    zero = torch.zeros(2, 4)
    last[0].copy_(zero)
    assert difference(run["last"], last, None) == "tensor 0 of last is not what a cloning hook saw there"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2", "int8"])
def test_casts_are_torchs(dtype: str) -> None:
    x = torch.randn(2, 4)
    x[0, 1] = float("nan")
    (first, last), run = seen_and_stored(x, dtype)
    assert difference(run["first"].inputs, first, dtype) is None
    assert difference(run["last"], last, dtype) is None
    assert difference(run["last"], [last[0], last[1] * 2 + 1], dtype) is not None
    assert difference(run["last"], last, None) is not None


def test_hooks_that_do_nothing_leave_nothing_behind(tmp_path: Path) -> None:
    made = model()
    plan = make_plan(resolve_hooks(made, HOOKS), None)
    x = torch.randn(2, 4)
    bare = made(x)
    with PlainHooks(made, [tap.place for tap in plan.taps], None):
        assert torch.equal(made(x), bare)
        assert made[0]._forward_pre_hooks
        assert made[1]._forward_hooks
    assert not made[0]._forward_pre_hooks
    assert not made[1]._forward_hooks
    assert list(tmp_path.iterdir()) == []
