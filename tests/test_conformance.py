"""Every component of every architecture: what is captured is what a plain hook clones in the same forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.head_options import HEAD_COMPONENTS
from neuroscope_fast.model_map import Place, components, resolve_hooks
from torch import nn


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor, depth first; written apart from the engine's own search."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for found in map(first_tensor, value) if found is not None), None)
    return None


def clone_hook(model: nn.Module, place: Place, into: list[torch.Tensor]) -> Callable[[], None]:
    module = model.get_submodule(place.module)

    def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
        found = output[place.field] if place.field else first_tensor(output)
        assert found is not None
        into.append(found.detach().clone())

    def on_input(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found = first_tensor(args)
        if place.argument is not None:
            found = args[place.argument]
        if found is None:
            found = kwargs["hidden_states"] if "hidden_states" in kwargs else first_tensor(kwargs)
        assert found is not None
        into.append(found.detach().clone())

    if place.side == "input":
        return module.register_forward_pre_hook(on_input, with_kwargs=True).remove
    return module.register_forward_hook(on_output).remove


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        if a.dim() > 0
        else torch.equal(a, b)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
def test_captured_equals_cloned(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = architectures.build(architecture).to(dtype)
    inputs = architectures.inputs(architecture, batch=2, length=7)
    hooks = [
        {
            "layer_name": layer,
            "component": component,
            "capture_input": component not in ("neuron", "logits"),
        }
        for layer, component, _module in components(model)
        if component not in HEAD_COMPONENTS  # no hook sees them: test_attention_conformance.py
    ]
    before = model(**inputs)
    resolved = resolve_hooks(model, hooks)
    clones: dict[tuple[str, bool], list[torch.Tensor]] = {}
    removers = []
    for hook in resolved:
        for place, is_input in ((hook.output, False), (hook.input, True)):
            if place is not None:
                into = clones.setdefault((hook.hook_id, is_input), [])
                removers.append(clone_hook(model, place, into))
    with nsf.capture(model, hooks, out=tmp_path / "run") as cap:
        during = model(**inputs)
        again = model(**inputs)
    for remove in removers:
        remove()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert same_bits(value, during[name])
            assert same_bits(value, again[name])
    run = nsf.open(tmp_path / "run")
    assert run.hooks == [hook.hook_id for hook in resolved]
    captured = 0
    for (hook_id, is_input), tensors in clones.items():
        activations = run[hook_id].inputs if is_input else run[hook_id].outputs
        assert len(activations) == len(tensors) > 0, hook_id
        for stored, cloned in zip(activations, tensors, strict=True):
            assert same_bits(stored, cloned), hook_id
            captured += 1
    assert captured == len(cap.result.records)
    assert run.verify() == []
    assert all("unknown" not in (record.component, record.layer_name, record.dtype) for record in run.records)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral", "gpt_oss", "mamba", "t5", "bloom"])
def test_generate_is_not_perturbed(architecture: str) -> None:
    model = architectures.build(architecture)
    ids = architectures.inputs(architecture, batch=1, length=5)["input_ids"]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    bare = model.generate(ids, **options)
    hooks = [f"{layer}:{component}" for layer, component, _ in components(model)]
    with nsf.capture(model, hooks) as cap:
        hooked = model.generate(ids, **options)
    assert torch.equal(bare.sequences, hooked.sequences)
    for one, other in zip(bare.logits, hooked.logits, strict=True):
        assert same_bits(one, other)
    logits = [hook_id for hook_id in cap.hook_ids if hook_id.endswith("_logits")]
    records = cap.result[logits[0]].records
    assert [record.step for record in records] == list(range(6))
    residuals = [hook_id for hook_id in cap.hook_ids if hook_id.endswith("_residual")]
    last = cap.result[residuals[-1]]
    assert [record.shape[1] for record in last.records] == ([1] * 6 if architecture == "t5" else [5] + [1] * 5)
