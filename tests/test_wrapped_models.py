"""Components in models that were changed or wrapped: adapters, quantised layers, torch.compile, meta
devices."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import architectures
import torch
import transformers
from architecture_components import expected
from architectures import VOCAB, build
from neuroscope_fast.errors import HookError
from neuroscope_fast.model_map import Place, components, resolve_hooks
from own_models import TinyGPT
from places import place_of, refused, values
from torch import nn


def test_a_linear_layer_may_be_any_that_says_its_sizes() -> None:
    class Quantised(nn.Module):
        def __init__(self, taken: int, given: int) -> None:
            super().__init__()
            self.in_features, self.out_features = taken, given

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(*x.shape[:-1], self.out_features)

    model = TinyGPT()
    for block in model.transformer["h"]:
        block.mlp[2] = Quantised(48, 16)
    assert place_of(model, "transformer.h.0:neuron") == Place("transformer.h.0.mlp.2", "input")


def test_an_adapter_around_a_linear_layer_is_tapped_as_a_whole() -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base
            self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
            self.in_features, self.out_features = base.in_features, base.out_features

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    model = build("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = Adapted(layer.mlp.down_proj)
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
    assert set(components(model)) == expected("llama")


def test_a_wrapped_model_keeps_its_components() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **forward: Any) -> Any:
            return self.inner(**forward)

    model = Wrapper(build("llama")).eval()
    t5 = Wrapper(build("t5"))
    assert "in its place" in refused(t5, "inner.shared:embedding")
    place = place_of(model, "inner.lm_head:logits")
    assert place == Place("inner", "output", "logits")
    assert values(model, "llama", place)[0].shape[-1] == VOCAB


def test_a_compiled_model() -> None:
    model = torch.compile(build("llama"), backend="eager")
    assert place_of(model, "_orig_mod.model.layers.0:mlp") == Place("_orig_mod.model.layers.0.mlp", "output")
    assert place_of(model, "_orig_mod.lm_head:logits").field == "logits"
    assert "nearest: _orig_mod.model.layers.0" in refused(model, "model.layers.0:mlp")


def test_pretraining_heads_have_no_field_called_logits() -> None:
    model = transformers.BertForPreTraining(build("bert").config).eval()
    place = place_of(model, "cls.predictions.decoder:logits")
    assert place == Place("cls.predictions.decoder", "output")
    assert values(model, "bert", place)[0].shape[-1] == VOCAB


def test_nothing_keeps_a_model_alive() -> None:
    model: nn.Module | None = build("gpt2")
    assert model is not None
    gc.collect()
    gc.disable()  # what goes in circles would stay
    try:
        resolved = resolve_hooks(model, "transformer.h.*:mlp")
        components(model)
        with contextlib.suppress(HookError):
            resolve_hooks(model, "nowhere:mlp")
        gone = weakref.ref(model.get_submodule("transformer.h.0"))
        model = None
        assert gone() is None
    finally:
        gc.enable()
    assert len(resolved) == 2


def test_meta_models_resolve_without_weights() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{**architectures.LLAMA_SIZES, "num_hidden_layers": 72})
        )
    hooks = resolve_hooks(model, ["model.layers.*:residual", "model.layers.{0..71}.self_attn:attention"])
    assert len(hooks) == 144
    assert len({hook.output for hook in hooks}) == 144
