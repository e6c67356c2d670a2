"""Patterns, hook ids and sides on real architectures."""

from __future__ import annotations

from typing import Any

from architectures import shared
from neuroscope_fast.model_map import Place, ResolvedHook, resolve_hooks
from places import ids


def test_hook_ids() -> None:
    model = shared("gemma3")
    assert ids(model, "model.layers.0:mlp") == ["model.layers.0_mlp"]
    assert ids(model, "model.layers.*:residual") == [f"model.layers.{index}_residual" for index in range(3)]
    assert ids(model, "model.layers.{0,2}:residual:r") == ["r.0", "r.2"]
    assert ids(model, "model.layers.{1}:residual:r") == ["r"]
    assert ids(shared("t5"), "*.block.*:residual:r") == [
        "r.encoder.0",
        "r.encoder.1",
        "r.decoder.0",
        "r.decoder.1",
    ]


def test_what_a_pattern_takes() -> None:
    model = shared("qwen3_moe")

    def layers(hook: str) -> list[str]:
        return [resolved.layer_name for resolved in resolve_hooks(model, hook)]

    assert layers("model.layers.*:moe") == ["model.layers.1", "model.layers.2"]  # those that have it
    assert layers("model.layers.{0,1}:moe") == ["model.layers.1"]
    assert layers("model.layers.*:neuron") == ["model.layers.0"]
    assert layers("model.layers.*:mlp") == [f"model.layers.{index}" for index in range(3)]  # dense and sparse
    assert layers("model.layers.*.mlp:mlp") == [f"model.layers.{index}.mlp" for index in range(3)]
    assert layers("model.layers.*.*:mlp") == [f"model.layers.{index}.mlp" for index in range(3)]  # no dropout, no norm
    assert layers("*:embedding") == ["model"]
    assert layers("*.*:layernorm") == ["model.norm"]
    assert layers("model.layers.{0..2}.input_layernorm:layernorm")[2] == "model.layers.2.input_layernorm"
    assert layers("*:logits") == ["lm_head"]


def test_a_pattern_over_parts_takes_the_users_word() -> None:
    hooks = resolve_hooks(shared("llama"), "model.layers.0.self_attn.*_proj:attention")
    assert [hook.layer_name[-6:] for hook in hooks] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_resolved_specs_give_the_same_hooks_again() -> None:
    model = shared("qwen3_moe")
    hooks: list[Any] = [
        "model.layers.*:residual:r",
        {
            "layer_name": "model.layers.*",
            "component": "moe",
            "capture_input": True,
            "positions": slice(-1, None),
        },
        "lm_head:logits",
    ]
    resolved = resolve_hooks(model, hooks)
    assert [hook.spec.hook_id for hook in resolved] == [hook.hook_id for hook in resolved]
    assert [hook.spec.layer_name for hook in resolved] == [hook.layer_name for hook in resolved]
    assert resolved[3].spec.positions == "-1:"
    assert resolve_hooks(model, [hook.spec for hook in resolved]) == resolved


def test_sides() -> None:
    model = shared("llama")
    only = {"layer_name": "model.layers.0", "component": "attention"}
    place = "model.layers.0.self_attn"
    for entry, leaving in ((True, True), (True, False), (False, True)):
        (hook,) = resolve_hooks(model, {**only, "capture_input": entry, "capture_output": leaving})
        assert hook.input == (Place(place, "input") if entry else None)
        assert hook.output == (Place(place, "output") if leaving else None)


def test_places_of_equal_hooks_are_equal() -> None:
    hooks = resolve_hooks(shared("llama"), ["model.layers.0:mlp:a", "model.layers.0.mlp:mlp:b"])
    assert len({hook.output for hook in hooks}) == 1
    assert isinstance(hooks[0], ResolvedHook)
