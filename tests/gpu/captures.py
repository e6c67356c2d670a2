"""What plain hooks clone, to hold captures against, and small models of the GPU tests."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import neuroscope_fast as nsf
import torch
from neuroscope_fast.activations import Activations
from neuroscope_fast.model_map import resolve_hooks
from test_conformance import clone_hook, same_bits
from torch import nn

SMALL = {"block_bytes": 1 << 20, "staging_bytes": 8 << 20, "ring_bytes": 16 << 20}
"""Rings that are there at once, for tests that make many captures of small tensors."""
BIG = 1 << 21  # elements: 4 MiB of bfloat16, long enough for a copy to be under way when the model goes on


class Passing(nn.Module):
    """One module, which gives what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def captured(x: torch.Tensor, **options: Any) -> Activations:
    """What a capture of `x` holds."""
    module = Passing()
    with nsf.capture(module, "body:mlp:x", **SMALL, **options) as cap:
        module(x)
    return cap.result["x"]


def told(run: nsf.Run) -> list[tuple[Any, ...]]:
    """What the run says of its records, in their order."""
    return [(each.hook_id, each.step, each.call, each.positions, each.shape) for each in run.records]


class Clones:
    """What plain `.clone()` hooks see at the places of a capture's hooks, while the block runs."""

    def __init__(self, model: nn.Module, hooks: Any):
        self._model, self._hooks = model, hooks
        self._removers: list[Callable[[], None]] = []
        self.tensors: dict[tuple[str, bool], list[torch.Tensor]] = {}

    def __enter__(self) -> Clones:
        for hook in resolve_hooks(self._model, self._hooks):
            for place, is_input in ((hook.output, False), (hook.input, True)):
                if place is not None:
                    into = self.tensors.setdefault((hook.hook_id, is_input), [])
                    self._removers.append(clone_hook(self._model, place, into))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for remove in self._removers:
            remove()


def assert_equal_clones(run: nsf.Run, clones: Clones, *, like: Callable[[torch.Tensor], torch.Tensor] | None = None):
    """Every record of the run is, bit for bit, what the clone hook saw, made into what is stored by `like`."""
    count = 0
    for (hook_id, is_input), tensors in clones.tensors.items():
        side = run[hook_id].inputs if is_input else run[hook_id].outputs
        assert len(side) == len(tensors) > 0, hook_id
        for number, (stored, clone) in enumerate(zip(side, tensors, strict=True)):
            want = (clone if like is None else like(clone)).cpu()
            assert same_bits(stored, want), f"{hook_id}, record {number}"
            count += 1
    assert count == len(run.records)


class Chain(nn.Module):
    """Linear layers in bfloat16, one behind the other; `between` is done to what each gives, after its hooks."""

    def __init__(
        self,
        device: torch.device,
        *,
        layers: int = 4,
        width: int = 1024,
        between: Callable[[int, torch.Tensor], Any] | None = None,
    ):
        super().__init__()
        kind = {"device": device, "dtype": torch.bfloat16}
        self.layers = nn.ModuleList(nn.Linear(width, width, **kind) for _ in range(layers))
        self._between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if self._between is not None:
                self._between(number, x)
        return x


def activations(device: torch.device, *, width: int = 1024, seed: int = 0) -> torch.Tensor:
    """Random [1, length, width] in bfloat16, of BIG elements on a GPU."""
    length = BIG // width if device.type == "cuda" else 8
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(1, length, width, generator=generator, device=device, dtype=torch.bfloat16)


class Views(nn.Module):
    """An embedding whose width is told apart in several ways: each module is given, and gives, another view of it."""

    def __init__(self, device: torch.device, *, width: int = 64, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.embed = nn.Embedding(101, 2 * width, device=device, dtype=dtype)
        self.views = nn.ModuleDict({name: nn.Identity() for name in VIEWS})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[:, :, None]
        for name, view in VIEWS.items():
            self.views[name](view(x))
        return x


# Views of [batch, length, width] with the length where it was, last but one.
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "first_half": lambda x: x[..., : x.shape[-1] // 2],
    "every_second": lambda x: x[..., ::2],
    "unaligned": lambda x: x[..., 3:],
    "length_innermost": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch_inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[..., :1].expand(x.shape),
}
