"""Sparse blocks: what the router computed, and which experts it chose with which weights, as the model used them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from torch import nn

SPARSE = ("mixtral", "qwen3_moe", "gpt_oss")
CHOICE = "model.layers.*.mlp.experts:expert"


@pytest.fixture(params=SPARSE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def given_to_experts(model: nn.Module, passes: list[dict[str, Any]]) -> dict[str, list[tuple[torch.Tensor, ...]]]:
    """(hidden states, indices, weights) of every call of each experts module."""
    seen: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    removers = []
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            calls = seen.setdefault(path, [])
            removers.append(
                module.register_forward_pre_hook(
                    lambda _module, args, calls=calls: calls.append(tuple(each.clone() for each in args))
                )
            )
    with torch.inference_mode():
        for each in passes:
            model(**each)
    for remover in removers:
        remover.remove()
    return seen


@pytest.mark.parametrize("out", [None, "run"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_choice_of_every_token(name: str, dtype: torch.dtype, out: str | None, tmp_path: Path) -> None:
    model = architectures.build(name).to(dtype)
    passes = [architectures.inputs(name, batch=2, length=5), architectures.inputs(name, batch=2, length=1, seed=3)]
    seen = given_to_experts(model, passes)
    assert seen
    with torch.inference_mode(), nsf.capture(model, CHOICE, out and tmp_path / out) as cap:
        for each in passes:
            model(**each)
    run = cap.result if out is None else nsf.open(tmp_path / out)
    assert sorted(run.hooks if hasattr(run, "hooks") else cap.hook_ids) == sorted(f"{path}_expert" for path in seen)
    for path, calls in seen.items():
        weights = run[f"{path}_expert"]
        assert len(weights) == len(weights.indices) == len(passes)
        for stored, chosen, (_, indices, expected) in zip(weights, weights.indices, calls, strict=True):
            assert torch.equal(stored, expected)
            assert stored.dtype == dtype if name != "mixtral" else stored.is_floating_point()
            assert torch.equal(chosen, indices)
            assert not chosen.is_floating_point()
            assert chosen.max() < architectures.EXPERTS


def test_the_router_gives_its_logits(name: str) -> None:
    model = architectures.build(name)
    gates: list[torch.Tensor] = []
    module = next(each for path, each in model.named_modules() if path.endswith((".gate", ".router")))
    with torch.inference_mode():
        handle = module.register_forward_hook(lambda _m, _a, out: gates.append(out[0].clone()))
        model(**architectures.inputs(name))
        handle.remove()
        with nsf.capture(model, "model.layers.*:router") as cap:
            model(**architectures.inputs(name))
    first = cap.result[cap.hook_ids[0]][0]
    assert first.shape[-1] == architectures.EXPERTS
    assert torch.equal(first, gates[0])


def test_weights_are_cast_and_indices_are_not(tmp_path: Path) -> None:
    model = architectures.build("qwen3_moe")
    given = architectures.inputs("qwen3_moe", batch=2, length=5)
    seen = given_to_experts(model, [given])
    with torch.inference_mode():
        with nsf.capture(model, CHOICE, tmp_path / "run", dtype="bfloat16"):
            model(**given)
        with nsf.capture(model, CHOICE, tmp_path / "codes", dtype="int8"):
            model(**given)
    for folder, atol in (("run", 0.005), ("codes", 0.01)):
        run = nsf.open(tmp_path / folder)
        for path, [(_, indices, weights)] in seen.items():
            stored = run[f"{path}_expert"]
            assert torch.equal(stored.indices[0], indices)
            torch.testing.assert_close(stored[0].float(), weights, atol=atol, rtol=0)


def test_two_hooks_on_one_place_have_indices_each() -> None:
    model = architectures.build("mixtral")
    layer = "model.layers.0.mlp.experts"
    hooks = [
        {"layer_name": layer, "component": "expert", "hook_id": "a"},
        {"layer_name": layer, "component": "expert", "hook_id": "b"},
        {"layer_name": layer, "component": "expert", "hook_id": "c", "dtype": "float16"},
    ]
    with torch.inference_mode(), nsf.capture(model, hooks) as cap:
        model(**architectures.inputs("mixtral"))
    run = cap.result
    for hook_id in "abc":
        assert torch.equal(run[hook_id].indices[0], run["a"].indices[0])
    assert run["c"][0].dtype == torch.float16


def test_the_input_of_the_experts_is_what_it_was() -> None:
    model = architectures.build("mixtral")
    given = architectures.inputs("mixtral")
    seen = given_to_experts(model, [given])
    hook = {"layer_name": "model.layers.0.mlp.experts", "component": "expert", "capture_input": True, "hook_id": "x"}
    with torch.inference_mode(), nsf.capture(model, [hook]) as cap:
        model(**given)
    [(hidden, _, weights)] = seen["model.layers.0.mlp.experts"]
    assert torch.equal(cap.result["x"].inputs[0], hidden)
    assert torch.equal(cap.result["x"].outputs[0], weights)
    with pytest.raises(nsf.RunError, match="holds no indices"):
        _ = nsf_residual(model, given)["r"].indices


def nsf_residual(model: nn.Module, given: dict[str, Any]) -> nsf.Run:
    with torch.inference_mode(), nsf.capture(model, "model.layers.0:residual:r") as cap:
        model(**given)
    return cap.result


class Experts(nn.Module):
    """Fused experts that are called by keyword, or without being told of any choice."""

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, hidden_states: torch.Tensor, top_k_index: Any = None, top_k_weights: Any = None) -> torch.Tensor:
        del top_k_index, top_k_weights
        return hidden_states @ self.down_proj[0]


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = Experts()

    def forward(self, x: torch.Tensor, told: bool = True) -> torch.Tensor:
        weights, indices = self.gate(x).topk(2)
        if not told:
            return self.experts(x)
        return self.experts(hidden_states=x, top_k_weights=weights, top_k_index=indices)


def test_experts_called_by_keyword_and_without_a_choice() -> None:
    block = Sparse()
    x = torch.randn(3, 8)
    with torch.inference_mode(), nsf.capture(block, "experts:expert:e") as cap:
        block(x)
        with pytest.raises(nsf.CaptureError, match="without a tensor for 'top_k_"):
            block(x, told=False)
    weights, indices = block.gate(x).topk(2)
    assert torch.equal(cap.result["e"].indices[0], indices)
    assert torch.equal(cap.result["e"][0], weights)


def test_compiled_models_give_the_choice_too() -> None:
    block = Sparse()
    x = torch.randn(3, 8)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    with torch.inference_mode(), nsf.capture(block, "experts:expert:e") as cap:
        compiled(x)
    weights, indices = block.gate(x).topk(2)
    assert torch.equal(cap.result["e"].indices[0], indices)
    assert torch.equal(cap.result["e"][0], weights)
