"""What model_map refuses, and whether its messages say what to do instead."""

from __future__ import annotations

import re

import architectures
import pytest
import transformers
from architectures import shared
from neuroscope_fast.head_options import HEAD_COMPONENTS
from neuroscope_fast.model_map import Place, components, resolve_hooks
from places import place_of, refused


@pytest.mark.parametrize(
    ("name", "hook", "words"),
    [
        (
            "gpt2",
            "model.layers.1:mlp",
            ["no layer 'model.layers.1' in GPT2LMHeadModel", "nearest: transformer.h.1"],
        ),
        ("gpt2", "model.layers.1.self_attn:attention", ["nearest: transformer.h.1.attn"]),
        ("gpt2", "model.layers.1.mlp.down_proj:neuron", ["nearest: transformer.h.1.mlp.c_proj"]),
        (
            "gpt2",
            "model.layers.*.self_attn:attention",
            ["matches no layer of GPT2", "nearest: transformer.h.*.attn"],
        ),
        ("gpt2", "transformer.h.7:mlp", ["transformer.h ends at 1", "nearest: transformer.h.1"]),
        ("gpt2", "model.embed_tokens:embedding", ["'embedding' is at transformer.wte"]),
        ("llama", "transformer.h.0:mlp", ["nearest: model.layers.0"]),
        ("llama", "model.layers.0.self_atn:attention", ["nearest: model.layers.0.self_attn"]),
        (
            "llama",
            "model.layers.0.mlp.up_proj.weight:mlp",
            ["is a parameter", "name 'model.layers.0.mlp.up_proj'"],
        ),
        ("llama", "model.layers.{1..3}:mlp", ["finds no layer for 2, 3 in LlamaForCausalLM"]),
        ("llama", "model.layers.{0,5}.mlp:mlp", ["finds no layer for 5"]),
        ("mamba", "model.layers.0:residual", ["nearest: backbone.layers.0"]),
        ("bert", "model.layers.0:mlp", ["nearest: bert.encoder.layer.0"]),
        ("t5", "decoder.layers.0:mlp", ["nearest: decoder.block.0"]),
        (
            "llama",
            "model.layers.0:moe",
            ["has no 'moe', nor has any of LlamaForCausalLM; it has: residual, attention"],
        ),
        ("mixtral", "model.layers.0:neuron", ["has no 'neuron', nor has any of MixtralForCausalLM"]),
        (
            "qwen3_moe",
            "model.layers.0:moe",
            ["has no 'moe'; it has:", "'moe' is at model.layers.1, model.layers.2"],
        ),
        ("qwen3_moe", "model.layers.1:neuron", ["'neuron' is at model.layers.0"]),
        ("llama", "model.layers.0:logits", ["'logits' is at lm_head"]),
        ("llama", "model.layers.0:embedding", ["'embedding' is at model.embed_tokens"]),
        (
            "llama",
            "model.layers:residual",
            ["list of modules and never runs", "is at model.layers.0, model.layers.1"],
        ),
        ("llama", "model:mlp", ["'model' (LlamaModel) has no 'mlp'", "is at model.layers.0, model.layers.1"]),
        ("llama", "model:residual", ["has no 'residual'"]),
        ("llama", "model.layers.0.self_attn:mlp", ["(LlamaAttention) has no 'mlp'; it has: attention, query, key"]),
        ("llama", "model.layers.0.self_attn.q_proj:mlp", ["part of 'model.layers.0.self_attn' and no 'mlp'"]),
        (
            "llama",
            "model.layers.0.self_attn.o_proj:neuron",
            ["part of 'model.layers.0.self_attn' and no 'neuron'"],
        ),
        ("llama", "model.layers.0.mlp.up_proj:neuron", ["part of 'model.layers.0.mlp' and no 'neuron'"]),
        ("llama", "model.layers.0.mlp:residual", ["has no 'residual'; it has: mlp, neuron"]),
        ("llama", "lm_head:mlp", ["has no 'mlp'; it has: logits"]),
        ("llama", "model.norm:mlp", ["(LlamaRMSNorm) has no 'mlp'; it has: layernorm"]),
        ("llama", "model.rotary_emb:embedding", ["has no 'embedding'"]),
        ("opt", "model.decoder.layers.0.fc1:neuron", ["has no 'neuron'"]),
        ("opt", "model.decoder.layers.0.fc1:attention", ["has no 'attention'"]),
        ("opt", "model.decoder.layers.0.fc2:attention", ["has no 'attention'; it has: mlp, neuron"]),
        ("bert", "bert.encoder.layer.0.intermediate.dense:neuron", ["has no 'neuron'"]),
        (
            "llama",
            "model.layers.*:moe",
            ["none of the 2 modules that 'model.layers.*' matches has the component"],
        ),
        ("llama", "*.*.*.mlp:attention", ["none of the 2 modules"]),
        (
            "gemma2",
            "model.layers.0:layernorm",
            ["has 4 of 'layernorm'", "model.layers.0.post_feedforward_layernorm:layernorm"],
        ),
        ("llama", "model.layers.*:layernorm", ["model.layers.*.input_layernorm:layernorm"]),
        ("qwen3", "model.layers.0.self_attn:layernorm", ["has 2 of 'layernorm'", "q_norm:layernorm, "]),
    ],
)
def test_refusals_say_what_to_do(name: str, hook: str, words: list[str]) -> None:
    message = refused(shared(name), hook)
    for part in words:
        assert part in message


def test_suggested_names_work() -> None:
    for name, hook in (("gpt2", "model.layers.1.self_attn:attention"), ("llama", "model.layers.*:layernorm")):
        model = shared(name)
        suggestion = re.split(r"nearest: |name one: ", refused(model, hook))[1].split(", ")[0]
        assert resolve_hooks(model, suggestion if ":" in suggestion else f"{suggestion}:attention")


def test_base_model_without_a_head() -> None:
    config = transformers.LlamaConfig(**architectures.LLAMA_SIZES)
    model = transformers.LlamaModel(config).eval()
    assert "nearest: layers.1" in refused(model, "model.layers.1:mlp")
    assert "no layer 'lm_head' in LlamaModel, and no 'logits' either" in refused(model, "lm_head:logits")
    assert "nor has any of LlamaModel" in refused(model, "norm:logits")
    assert place_of(model, "layers.1:mlp") == Place("layers.1.mlp", "output")
    assert {component for _, component, _ in components(model)} == {
        "embedding",
        "residual",
        "attention",
        "mlp",
        "neuron",
        "layernorm",
        *HEAD_COMPONENTS,
    }


def test_a_hook_id_that_comes_twice() -> None:
    model = shared("llama")
    message = refused(model, ["model.layers.0:mlp:x", "model.layers.1:mlp:x"])
    assert message.startswith("hook id 'x' comes twice: for model.layers.0:mlp and for model.layers.1:mlp; give")
    assert "comes twice" in refused(model, ["model.layers.*:residual", "model.layers.1:residual"])
    assert "comes twice" in refused(model, ["model.layers.0:mlp:r.0", "model.layers.*:residual:r"])


def test_what_is_not_a_model() -> None:
    assert "the model is a str" in refused("gpt2", "a:mlp")  # type: ignore[arg-type]
