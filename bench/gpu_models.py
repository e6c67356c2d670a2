"""The models of the GPU benchmarks, and the ways of taking activations that they compare.

Weights are random: what a kernel or a copy costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import neuroscope_fast as nsf
import torch
from gpu_common import MIB, Device
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

PLACES = ("residual", "attention", "mlp")
"""The components that are taken of every layer: 96 of them in 32 layers."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, and those of its two workloads."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    prefill: int = 4096
    prompt: int = 128
    steps: int = 64

    def layer_bytes(self) -> int:
        """Of the weights of a layer, in bfloat16."""
        attention = self.hidden * self.hidden * 2 * (1 + self.key_value_heads / self.heads)
        return int(2 * (attention + 3 * self.hidden * self.intermediate))

    def pass_bytes(self) -> int:
        """What the hooks take of a prefill, in bfloat16."""
        return 2 * self.hidden * self.prefill * len(PLACES) * self.layers


SHAPES = {
    "llama 1b": Shape(2048, 16, 32, 8, 8192, 32000),
    "llama 8b": Shape(4096, 32, 32, 8, 14336, 128256),
}
TINY = Shape(64, 2, 4, 2, 128, 101, prefill=12, prompt=5, steps=4)


def fitting(shape: Shape, free_bytes: int | None) -> Shape:
    """The shape with as many of its layers as leave a third of the free memory to everything else."""
    if free_bytes is None:
        return shape
    embeddings = 2 * 2 * shape.vocabulary * shape.hidden
    layers = int((free_bytes * 2 / 3 - embeddings) // shape.layer_bytes())
    return replace(shape, layers=max(1, min(shape.layers, layers)))


def build(shape: Shape, device: torch.device) -> nn.Module:
    """A Llama of this shape in bfloat16 with random weights, made on the device."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2 * shape.prefill,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(11)
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def tokens(shape: Shape, length: int, device: torch.device) -> torch.Tensor:
    """Random token ids [1, length]."""
    generator = torch.Generator().manual_seed(13)
    return torch.randint(3, shape.vocabulary, (1, length), generator=generator).to(device)


class GreedyDecoding:
    """A prompt read, and the steps behind it: a loop of its own, so that every variant runs the same code."""

    def __init__(self, model: nn.Module, ids: torch.Tensor, end_step: Callable[[], None]):
        self._model, self._end_step = model, end_step
        self._cache = DynamicCache()
        self.chosen: list[torch.Tensor] = []
        self._step(ids)

    def _step(self, ids: torch.Tensor) -> None:
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.chosen.append(output.logits[:, -1].argmax(-1, keepdim=True))
        self._end_step()

    def run(self, steps: int) -> torch.Tensor:
        """Decodes `steps` tokens; gives all that were chosen."""
        for _ in range(steps):
            self._step(self.chosen[-1])
        return torch.cat(self.chosen, dim=1)


class PlainHooks(AbstractContextManager[Any]):
    """A Python forward hook on the places that a capture takes, each keeping what `keep` makes of the tensor."""

    def __init__(self, model: nn.Module, keep: Callable[[torch.Tensor], torch.Tensor]):
        self._model = model
        self._keep = keep
        self.kept: list[torch.Tensor] = []

    def __enter__(self) -> PlainHooks:
        self._handles = [module.register_forward_hook(self._hook) for module in hooked_modules(self._model)]
        return self

    def _hook(self, _module: nn.Module, _args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        self.kept.append(self._keep(tensor.detach()))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.kept.clear()


def hooked_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of `PLACES`, in the order in which they run."""
    layers = model.model.layers
    return [module for layer in layers for module in (layer.self_attn, layer.mlp, layer)]


def hook_names() -> list[str]:
    """The same places as hooks of a capture."""
    return [f"model.layers.*:{component}" for component in PLACES]


class Nothing(AbstractContextManager[Any]):
    """The model as it is."""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@dataclass(frozen=True)
class Variant:
    """One way of taking activations; `end_step` is what its user must do after each step."""

    make: Callable[[], AbstractContextManager[Any]]
    end_step: Callable[[], None] = lambda: None


def variants(model: nn.Module, device: Device, folder: str, ring_bytes: int) -> dict[str, Variant]:
    """Every variant by name; `folder` is where the disk capture writes, over what was there."""

    def capture(out: str | None) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: nsf.capture(
            model, hook_names(), out=out, dtype="bfloat16", overwrite=True, ring_bytes=ring_bytes
        )

    def hooks(keep: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: PlainHooks(model, keep)

    return {
        "bare": Variant(Nothing),
        "nsf memory": Variant(capture(None)),
        "nsf disk": Variant(capture(folder)),
        "hooks .cpu()": Variant(hooks(lambda tensor: tensor.cpu())),
        "hooks .to(non_blocking)": Variant(
            hooks(lambda tensor: tensor.to("cpu", non_blocking=True)), device.finish_compute
        ),
        "hooks .clone()": Variant(hooks(lambda tensor: tensor.clone())),
    }


def ring_bytes_for(shape: Shape) -> int:
    """A ring that takes a whole prefill, 2 GiB at least: the disk's speed must not be what is measured."""
    if shape is TINY:
        return 64 * MIB
    return max(2048 * MIB, (shape.pass_bytes() // MIB + 64) * MIB)
