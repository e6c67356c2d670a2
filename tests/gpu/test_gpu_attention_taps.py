"""Attention inside a model on a GPU: patterns against eager attention's own, in prefill and in decode steps."""

from __future__ import annotations

from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from attention_architectures import build, padded
from neuroscope_fast.head_options import HEAD_COMPONENTS, PATTERN_REDUCTIONS

from gpu.captures import told

pytestmark = pytest.mark.gpu

LAYER = "model.layers.0"


def inputs(device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in padded((7, 3), "left").items()}


def hook(hook_id: str, component: str = "attention_pattern", **fields: Any) -> dict[str, Any]:
    return {"layer_name": LAYER, "component": component, "hook_id": hook_id, **fields}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_patterns_are_those_of_eager_attention(device: torch.device, dtype: torch.dtype) -> None:
    model = build("llama").to(device, dtype)
    given = inputs(device)
    hooks = [hook("all"), hook("some", heads=[3, 0]), *(hook(each, reduction=each) for each in PATTERN_REDUCTIONS)]
    bare = model(**given).logits
    with nsf.capture(model, hooks) as cap:
        hooked = model(**given).logits
    assert torch.equal(bare, hooked)
    model.set_attn_implementation("eager")
    eager = model(**given, output_attentions=True).attentions[0].float().cpu()
    real = given["attention_mask"].cpu() != 0
    eager = torch.where(real[:, None, :, None], eager, 0.0)
    run, close = cap.result, {"rtol": 0.0, "atol": 1e-5 if dtype == torch.float32 else 1e-2}
    torch.testing.assert_close(run["all"][0], eager, **close)
    torch.testing.assert_close(run["some"][0], eager[:, [3, 0]], **close)
    torch.testing.assert_close(run["mean"][0], eager.mean(1), **close)
    torch.testing.assert_close(run["max"][0], eager.amax(1), **close)
    first = real.int().argmax(1)
    torch.testing.assert_close(
        run["sink"][0], torch.stack([each[..., column] for each, column in zip(eager, first, strict=True)]), **close
    )
    chosen = eager.gather(-1, run["top_k"].indices[0].long())
    torch.testing.assert_close(run["top_k"][0], chosen, **close)


def test_every_component_in_every_decode_step(device: torch.device) -> None:
    """The same records as on the CPU, to rounding."""
    hooks = [hook(component, component, heads=[1, 0]) for component in HEAD_COMPONENTS]
    hooks += [hook("norms", "head_output", reduction="head_norm")]
    runs = []
    for place in (torch.device("cpu"), device):
        model = build("llama").to(place)
        with nsf.capture(model, hooks) as cap:
            ids = model.generate(**inputs(place), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
        runs.append((cap.result, ids.cpu()))
    (ours, our_ids), (theirs, their_ids) = runs
    assert torch.equal(our_ids, their_ids)
    assert told(ours) == told(theirs)
    for name in ours.hooks:
        for one, other in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_query_and_key_in_a_cuda_graph(cuda: torch.device) -> None:
    model = build("llama").to(cuda)
    ids = torch.randint(3, 100, (1, 6), device=cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        model(ids, use_cache=False)
    torch.cuda.synchronize()
    hooks = [hook(component, component, heads=[1]) for component in ("query", "key", "head_output")]
    with torch.no_grad():
        with nsf.capture(model, hooks) as eager:
            model(ids, use_cache=False)
        with nsf.capture(model, hooks) as cap:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model(ids, use_cache=False)
            graph.replay()
        graph = torch.cuda.CUDAGraph()
        refused = pytest.raises(nsf.CaptureError, match="CUDA graph")
        with nsf.capture(model, [hook("all")]), torch.cuda.graph(graph), refused:
            model(ids, use_cache=False)
        torch.cuda.synchronize()
    for name in cap.result.hooks:
        assert torch.equal(cap.result[name][0], eager.result[name][0]), name
