"""Hooks on sixteen architectures: each place runs and carries the tensor it is named for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from architecture_components import EXPECTED, expected, trailing_size
from architectures import ARCHITECTURES, HIDDEN, VOCAB, inputs, shared
from neuroscope_fast.head_options import HEAD_COMPONENTS
from neuroscope_fast.model_components import CHOSEN_EXPERTS, EXPERT_WEIGHTS
from neuroscope_fast.model_map import Place, components, resolve_hooks
from places import input_of, place_of, refused, tap, values
from torch import nn


def test_there_are_sixteen() -> None:
    assert sorted(EXPECTED) == sorted(ARCHITECTURES)
    assert len(ARCHITECTURES) == 16


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_components_are_exactly_these(name: str) -> None:
    listed = components(shared(name))
    assert len(set(listed)) == len(listed)
    assert set(listed) == expected(name)
    assert listed[0][1] == "embedding"
    assert listed[-1][1] == "logits"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_listed_component_resolves_by_layer_and_by_module(name: str) -> None:
    model = shared(name)
    for layer, component, module in components(model):
        place = place_of(model, f"{layer}:{component}")
        assert place.module == module
        if component in HEAD_COMPONENTS:
            assert (place.side, place.field) == ("attention", component)
        elif component == "expert" and place.side == "input":  # of fused experts what their router chose
            assert place.field in EXPERT_WEIGHTS
            assert place.indices is not None
            assert place.indices.field in CHOSEN_EXPERTS
        else:
            assert place.side == ("input" if component == "neuron" else "output")
            assert place.field == ("logits" if component == "logits" else None)
        if module:
            assert place_of(model, f"{module}:{component}") == place


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_place_runs_and_has_the_expected_size(name: str) -> None:
    model = shared(name)
    places: dict[Place, int | None] = {}
    for layer, component, _ in components(model):
        if component in HEAD_COMPONENTS:  # no hook sees them: test_attention_conformance.py
            continue
        (resolved,) = resolve_hooks(
            model, {"layer_name": layer, "component": component, "capture_input": component != "neuron"}
        )
        assert resolved.output is not None
        places[resolved.output] = trailing_size(name, layer, component)
        if resolved.input is not None:
            places[resolved.input] = None
            if component == "embedding":
                places[resolved.input] = inputs(name, batch=2, length=5)["input_ids"].shape[1]
            elif component != "layernorm":
                places[resolved.input] = HIDDEN
    if name == "t5":
        places[place_of(model, "lm_head:logits")] = VOCAB
        places[input_of(model, "decoder.embed_tokens", "embedding")] = 3
    for place, tensors in tap(model, set(places), inputs(name, batch=2, length=5)).items():
        assert len(tensors) == 1, f"{place} ran {len(tensors)} times"
        if places[place] is not None:
            assert tensors[0].shape[-1] == places[place], place


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_looking_at_a_model_leaves_it_as_it_was(name: str) -> None:
    model = shared(name)

    def state() -> list[Any]:
        return [
            (
                path,
                id(module),
                sorted(vars(module)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
            )
            for path, module in model.named_modules()
        ]

    before = state()
    components(model)
    resolve_hooks(model, [f"{layer}:{component}" for layer, component, _ in components(model)])
    assert state() == before


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "neuron" in EXPECTED[name] and name != "bloom"])
def test_the_down_projection_of_the_neurons_is_the_mlps_output(name: str) -> None:
    model = shared(name)
    for layer, component, module in components(model):
        if component == "neuron":
            places = place_of(model, f"{layer}:neuron"), place_of(model, f"{layer}:mlp")
            neurons, mlp = values(model, name, *places)
            with torch.no_grad():
                assert torch.equal(model.get_submodule(module)(neurons), mlp)


@pytest.mark.parametrize(("name", "layer"), [("mixtral", 0), ("qwen3_moe", 1), ("gpt_oss", 0)])
def test_the_router_gives_logits_of_what_enters_it(name: str, layer: int) -> None:
    model = shared(name)
    places = (
        place_of(model, f"model.layers.{layer}:router"),
        input_of(model, f"model.layers.{layer}", "router"),
    )
    logits, hidden = values(model, name, *places)
    router = model.get_submodule(places[0].module)
    assert torch.allclose(logits, nn.functional.linear(hidden, router.weight, getattr(router, "bias", None)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_models_output(name: str) -> None:
    model = shared(name)
    head = next(layer for layer, component, _ in components(model) if component == "logits")
    (logits,) = values(model, name, place_of(model, f"{head}:logits"))
    with torch.no_grad():
        assert torch.equal(logits, model(**inputs(name)).logits)


def test_residuals_chain_from_layer_to_layer() -> None:
    for name in ARCHITECTURES:
        model = shared(name)
        stacks = {re.sub(r"\d+$", "", layer) for layer, component, _ in components(model) if component == "residual"}
        for stack in stacks:
            before = place_of(model, f"{stack}0:residual")
            after = input_of(model, f"{stack}1", "residual")
            assert torch.equal(*values(model, name, before, after))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("llama", ["model.layers.1:mlp", "model.layers.1.mlp:mlp"]),
        (
            "llama",
            ["model.layers.1:neuron", "model.layers.1.mlp:neuron", "model.layers.1.mlp.down_proj:neuron"],
        ),
        ("llama", ["model:embedding", "model.embed_tokens:embedding"]),
        ("gpt2", ["transformer.h.1:attention", "transformer.h.1.attn:attention"]),
        (
            "mixtral",
            ["model.layers.0:mlp", "model.layers.0:moe", "model.layers.0.mlp:mlp", "model.layers.0.mlp:moe"],
        ),
        ("mixtral", ["model.layers.0:router", "model.layers.0.mlp:router", "model.layers.0.mlp.gate:router"]),
        (
            "gpt_oss",
            ["model.layers.0:expert", "model.layers.0.mlp:expert", "model.layers.0.mlp.experts:expert"],
        ),
        ("opt", ["model.decoder.layers.0:mlp", "model.decoder.layers.0.fc2:mlp"]),
        (
            "bert",
            [
                "bert.encoder.layer.0:mlp",
                "bert.encoder.layer.0.output:mlp",
                "bert.encoder.layer.0.output.dense:mlp",
            ],
        ),
        ("bert", ["cls:logits", "cls.predictions:logits", "cls.predictions.decoder:logits"]),
        ("t5", ["encoder:embedding", "encoder.embed_tokens:embedding"]),
        (
            "t5",
            [
                "decoder.block.1:mlp",
                "decoder.block.1.layer.2:mlp",
                "decoder.block.1.layer.2.DenseReluDense:mlp",
            ],
        ),
        ("t5", ["decoder.block.0:attention", "decoder.block.0.layer.0:attention"]),
        ("t5", ["decoder.block.0.layer.1:attention", "decoder.block.0.layer.1.EncDecAttention:attention"]),
        ("mamba", ["backbone.layers.0:layernorm", "backbone.layers.0.norm:layernorm"]),
    ],
)
def test_the_same_place_by_several_names(name: str, same: list[str]) -> None:
    assert len({place_of(shared(name), hook) for hook in same}) == 1


def test_where_the_mlp_has_no_module_its_input_is_that_of_the_up_projection() -> None:
    assert input_of(shared("opt"), "model.decoder.layers.0", "mlp") == Place("model.decoder.layers.0.fc1", "input")
    bert = Place("bert.encoder.layer.1.intermediate.dense", "input")
    assert input_of(shared("bert"), "bert.encoder.layer.1.output", "mlp") == bert


def test_input_of_the_logits_is_what_enters_the_head() -> None:
    assert input_of(shared("gemma2"), "lm_head", "logits") == Place("lm_head", "input")


def test_cross_attention_is_not_the_layers_own() -> None:
    model = shared("t5")
    own, cross = (place_of(model, f"decoder.block.0{end}:attention") for end in ("", ".layer.1"))
    assert own.module.endswith("SelfAttention")
    assert cross.module.endswith("EncDecAttention")


def test_an_embedding_that_is_never_called_is_refused() -> None:
    message = refused(shared("t5"), "shared:embedding")
    assert "only holds weights: the model calls encoder.embed_tokens, decoder.embed_tokens in" in message


def test_modules_named_exactly_are_taken_for_what_they_are() -> None:
    bert, gpt2 = shared("bert"), shared("gpt2")
    assert place_of(bert, "bert.embeddings:embedding").module == "bert.embeddings"
    assert place_of(bert, "bert.encoder.layer.0.attention.self:attention").module.endswith("attention.self")
    assert place_of(gpt2, "transformer.wpe:embedding").module == "transformer.wpe"


def test_a_state_space_mixer_is_attention_only_on_the_users_word() -> None:
    model = shared("mamba")
    message = refused(model, "backbone.layers.0:attention")
    assert message == (
        "'backbone.layers.0' (MambaBlock) has no 'attention', nor has any of MambaForCausalLM; "
        "it has: residual, embedding, layernorm, logits"
    )
    assert place_of(model, "backbone.layers.0.mixer:attention") == Place("backbone.layers.0.mixer", "output")
    assert [hook.hook_id for hook in resolve_hooks(model, "backbone.layers.*.mixer:attention:mix")] == [
        "mix.0",
        "mix.1",
    ]
    assert "has no 'mlp'" in refused(model, "backbone.layers.0.mixer:mlp")


def test_parts_of_a_component_go_by_its_name() -> None:
    model = shared("llama")
    for hook in (
        "model.layers.0.self_attn.q_proj:attention",
        "model.layers.0.self_attn.o_proj:attention",
        "model.layers.0.mlp.gate_proj:mlp",
        "model.layers.0.mlp.act_fn:mlp",
        "model.layers.0.mlp.down_proj:mlp",
    ):
        assert place_of(model, hook) == Place(hook.partition(":")[0], "output")
    assert place_of(shared("opt"), "model.decoder.layers.0.fc1:mlp").module == "model.decoder.layers.0.fc1"
    assert place_of(shared("bert"), "bert.encoder.layer.0.intermediate:mlp").module.endswith("intermediate")


def test_the_residual_stream_between_the_parts_of_a_t5_block() -> None:
    assert place_of(shared("t5"), "encoder.block.0.layer.0:residual") == Place("encoder.block.0.layer.0", "output")
