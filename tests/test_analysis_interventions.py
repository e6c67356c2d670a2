"""Patching itself: what it writes and where, on many architectures, and that nothing of it stays behind."""

from __future__ import annotations

from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import tiny_models
import torch
from neuroscope_fast import attention_interface
from neuroscope_fast.analysis.interventions import PATCHABLE, Patch, Site, patched, sites
from neuroscope_fast.analysis.sequences import find, join
from neuroscope_fast.errors import HookError, OptionError
from neuroscope_fast.model_map import components
from torch import nn
from transformers import modeling_utils

CAUSAL = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "gemma3", "mistral", "mixtral", "gpt_oss", "opt", "phi3"]
IDS = torch.tensor([[5, 9, 3, 17, 40]])
OTHER = torch.tensor([[8, 9, 30, 2, 40]])


def logits(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def captured(model: nn.Module, site: Site, ids: torch.Tensor = IDS) -> torch.Tensor:
    """[positions, size], or [positions, heads, size]"""
    with nsf.capture(model, {"layer_name": site.layer_name, "component": site.component}) as cap:
        logits(model, ids)
    values = torch.from_numpy(join(cap.result, find(cap.result, site.component)[0].hook_id).values)
    return values if site.head is None else values[:, site.head]


def untouched(model: nn.Module) -> bool:
    hooks = (
        hooks
        for module in model.modules()
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_pre_hooks_with_kwargs,
        )
    )
    interface: Any = modeling_utils.AttentionInterface
    return (
        not any(hooks)
        and not attention_interface._listeners
        and not hasattr(vars(interface)["get_interface"], "__wrapped__")
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_own_activations_change_nothing_and_others_do(name: str) -> None:
    model = architectures.build(name)
    there = {component for _, component, _ in components(model)}
    wanted = [component for component in PATCHABLE if component in there and component != "layernorm"]
    if name == "opt":  # its MLPs have batch and positions in one axis
        wanted = [component for component in wanted if component not in ("mlp", "neuron")]
    assert {"residual", "attention", "head_output", "embedding"} <= set(wanted)
    plain = logits(model)
    for site in sites(model, wanted):
        own = Patch(site.layer_name, site.component, captured(model, site), site.head)
        with patched(model, [own]):
            assert torch.equal(logits(model), plain), site
        other = own._replace(values=captured(model, site, OTHER))
        with patched(model, [other]):
            assert not torch.equal(logits(model), plain), site
    assert untouched(model)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_last_residual_of_another_prompt_gives_its_logits(name: str) -> None:
    model = architectures.build(name)
    last = sites(model, ["residual"])[-1]
    expected = logits(model, OTHER)
    with patched(model, [Patch(last.layer_name, "residual", captured(model, last, OTHER))]):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("head", [0, 3])
def test_a_head_is_its_slice_of_what_enters_the_output_projection(implementation: str, head: int) -> None:
    model = architectures.build("llama")
    model.set_attn_implementation(implementation)
    attention = model.model.layers[1].self_attn
    size = attention.head_dim
    values = torch.randn(5, size, generator=torch.Generator().manual_seed(0))

    def by_hand(_module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        entry = args[0].clone()
        entry[..., head * size : (head + 1) * size] = values
        return (entry,)

    handle = attention.o_proj.register_forward_pre_hook(by_hand)
    expected = logits(model)
    handle.remove()
    with patched(model, [Patch("model.layers.1", "head_output", values, head=head)]):
        assert torch.equal(logits(model), expected)
    assert not torch.equal(expected, logits(model))


@pytest.mark.parametrize(
    ("component", "path", "before"),
    [
        ("residual", "model.layers.0", False),
        ("attention", "model.layers.0.self_attn", False),
        ("mlp", "model.layers.0.mlp", False),
        ("neuron", "model.layers.0.mlp.down_proj", True),
        ("embedding", "model.embed_tokens", False),
    ],
)
@pytest.mark.parametrize("positions", [None, [1], [-1, 0]])
def test_other_components_are_what_a_hook_by_hand_writes(
    component: str, path: str, before: bool, positions: list[int] | None
) -> None:
    model = tiny_models.llama()
    module = model.get_submodule(path)
    chosen = list(range(5)) if positions is None else positions

    def write(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        for number, position in enumerate(chosen):
            value[:, position] = float(number)
        return value

    def after_hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (write(output[0]), *output[1:]) if isinstance(output, tuple) else write(output)

    if before:
        handle = module.register_forward_pre_hook(lambda _module, args: (write(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(after_hook)
    expected = logits(model)
    handle.remove()
    layer = "model.embed_tokens" if component == "embedding" else "model.layers.0"
    values = torch.arange(len(chosen), dtype=torch.float32)[:, None]
    with patched(model, [Patch(layer, component, values, positions=positions)]):
        assert torch.equal(logits(model), expected)


def test_rows_of_a_batch_can_differ() -> None:
    model = tiny_models.llama()
    ids = torch.cat([IDS, OTHER])
    values = torch.zeros(2, 5, tiny_models.HIDDEN)
    values[1] = 1
    with patched(model, [Patch("model.layers.3", "mlp", values)]):
        together = logits(model, ids)
    for row, each in enumerate((IDS, OTHER)):
        with patched(model, [Patch("model.layers.3", "mlp", float(row))]):
            assert torch.allclose(together[row], logits(model, each)[0], rtol=1e-4, atol=1e-4)


def test_several_patches_apply_in_their_order_also_to_one_place() -> None:
    model = tiny_models.llama()
    one = Patch("model.layers.2", "head_output", 1.0, head=0)
    other = Patch("model.layers.2", "head_output", 2.0, head=1)
    every = Patch("model.layers.2", "head_output", 3.0)
    with patched(model, [every, one, other]):
        first = logits(model)
    with patched(model, [one, other]):
        assert torch.equal(logits(model), first)
    with patched(model, [one, other, every]):
        assert not torch.equal(logits(model), first)


def test_nested_patches_and_captures_see_the_patched_activations() -> None:
    model = tiny_models.llama()
    plain = logits(model)
    with patched(model, [Patch("model.layers.2", "head_output", 7.0, head=1)]):
        with (
            nsf.capture(model, "model.layers.2:head_output") as cap,
            patched(model, [Patch("model.layers.4", "mlp", 0.0)]),
        ):
            logits(model)
        values = cap.result["model.layers.2_head_output"][0]
        assert (values[:, :, 1] == 7).all()
        assert not (values[:, :, 0] == 7).any()
    assert torch.equal(logits(model), plain)
    assert untouched(model)


def test_a_decode_step_is_patched_like_any_other_pass() -> None:
    model = tiny_models.llama()
    with patched(model, [Patch("model.layers.11", "residual", 0.0)]), torch.no_grad():
        generated = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert generated[0, 5:].tolist() == [0] * len(generated[0, 5:])  # all logits alike: the first token
    assert untouched(model)


def test_bfloat16_models_are_patched_in_their_own_dtype() -> None:
    model = tiny_models.llama().to(torch.bfloat16)
    plain = logits(model)
    for site in sites(model):
        with patched(model, [Patch(site.layer_name, site.component, captured(model, site), site.head)]):
            assert torch.equal(logits(model), plain)


class _Broken(Exception):
    pass


def test_nothing_stays_whatever_happens() -> None:
    model = tiny_models.llama()
    patches = [
        Patch("model.layers.0", "head_output", 0.0),
        Patch("model.layers.1", "mlp", 0.0),
        Patch("model.layers.2", "neuron", 0.0),
    ]

    def interrupted(error: type[BaseException]) -> None:
        with patched(model, patches):
            assert not untouched(model)
            raise error

    for error in (_Broken, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(error)
        assert untouched(model)

    def fails_in_the_pass() -> None:
        with patched(model, [*patches, Patch("model.layers.5", "mlp", torch.zeros(4, 16))]):
            logits(model)

    with pytest.raises(OptionError, match=r"values \[4, 16\] do not fit \[1, 5, 16\]"):
        fails_in_the_pass()
    assert untouched(model)

    def fails_at_the_start() -> None:
        with patched(model, [*patches, Patch("model.layers.99", "mlp", 0.0)]):
            pytest.fail("the block was entered")

    with pytest.raises(HookError, match="no layer"):
        fails_at_the_start()
    assert untouched(model)


def refuse(model: nn.Module, patch: Patch) -> None:
    with patched(model, [patch]):
        logits(model)


def test_what_cannot_be_patched_is_said() -> None:
    model = tiny_models.llama()
    for patch, message in (
        (Patch("model.layers.0", "attention_pattern", 0.0), "'attention_pattern' cannot be patched; these can"),
        (Patch("lm_head", "logits", 0.0), "'logits' cannot be patched"),
        (Patch("model.layers.0", "mlp", 0.0, head=1), "'mlp' is not split by head"),
        (Patch("model.layers.0", "head_output", 0.0, head=2), "no head 2; it has 2, counted from 0"),
        (Patch("model.layers.0", "head_output", 0.0, head=-1), "no head -1"),
        (Patch("model.layers.0", "mlp", 0.0, positions=[5]), r"positions \[5\] are not all in a pass of 5"),
        (Patch("model.layers.0", "mlp", 0.0, positions=[-6]), r"positions \[-6\] are not all"),
    ):
        with pytest.raises(OptionError, match=message):
            refuse(model, patch)
    with pytest.raises(OptionError, match="none of moe"):
        sites(model, ["moe"])
    with pytest.raises(HookError, match="no 'head_output'"):
        refuse(architectures.build("bloom"), Patch("transformer.h.0", "head_output", 0.0))
    with pytest.raises(OptionError, match=r"is \[5, 48\] and has no axes \[batch, positions"):
        refuse(architectures.build("opt"), Patch("model.decoder.layers.0", "mlp", 0.0))
    assert untouched(model)


def test_a_layer_that_is_used_twice_is_refused() -> None:
    model = tiny_models.llama()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(OptionError, match=r"'model\.layers\.0' is also 'model\.layers\.1'"):
        refuse(model, Patch("model.layers.0", "residual", 0.0))


def test_sites_are_all_places_with_their_names() -> None:
    model = tiny_models.llama()
    found = sites(model)
    assert len(found) == tiny_models.LAYERS * (1 + 1 + 2 + 1)
    assert [site.name for site in found[:5]] == [
        "0 residual",
        "0 attention",
        "0.0 head_output",
        "0.1 head_output",
        "0 mlp",
    ]
    assert [site.name for site in sites(model, ["embedding"])] == ["model.embed_tokens embedding"]
