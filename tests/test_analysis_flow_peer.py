"""Logit lens and direct logit attribution against TransformerLens, on the same tiny Llama weights."""

from __future__ import annotations

from typing import Any

import flow_runs
import neuroscope_fast as nsf
import numpy as np
import pytest
import tiny_models
import torch
from neuroscope_fast.analysis.attribution import logit_attribution
from neuroscope_fast.analysis.logit_lens import logit_lens

pytest.importorskip("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore")  # it warns of what it does itself

HOOKS = ["residual", "attention", "mlp", "head_output"]
TARGET, OTHER = 17, 40


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[nsf.Run, Any, torch.Tensor]:
    """(our run, TransformerLens's cache, its logits [T, V]) of one pass over the same tokens."""
    from transformer_lens.model_bridge import TransformerBridge

    folder = tmp_path_factory.mktemp("peer")
    with torch.no_grad():
        model: Any = flow_runs.build("llama")
        model.save_pretrained(folder / "model")
        tiny_models.tokenizer().save_pretrained(folder / "model")
        bridge = TransformerBridge.boot_transformers(str(folder / "model"), device="cpu", dtype=torch.float32)
        # Its norms' weights go into the matrices behind them; what shifts all logits alike stays as it is.
        bridge.enable_compatibility_mode(center_writing_weights=False, center_unembed=False, disable_warnings=True)
        ids = torch.randint(3, 101, (1, 11), generator=torch.Generator().manual_seed(0))
        logits, cache = bridge.run_with_cache(ids)
        hooks = [*flow_runs.hooks_of("llama", *HOOKS), "model.embed_tokens:embedding"]
        with nsf.capture(model, hooks, folder / "run", store_readout=True) as cap:
            own = model(ids).logits
    torch.testing.assert_close(logits, own, rtol=0, atol=1e-4)
    return cap.result, cache, logits[0]


def test_logit_lens(both: tuple[nsf.Run, Any, torch.Tensor]) -> None:
    run, cache, _ = both
    lens = logit_lens(run)
    streams = torch.stack([cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{n}.hook_resid_post"] for n in (0, 1))])
    normed = cache.apply_ln_to_stack(streams, recompute_ln=True)
    said = cache.model.unembed(normed[:, 0]).log_softmax(-1)
    assert lens.streams == ["embedding", "0", "1"]
    for number in range(3):
        expected = said[number].exp()
        own, at = lens.top_probabilities[number], torch.from_numpy(lens.top_ids[number])
        np.testing.assert_allclose(own, expected.gather(1, at).numpy(), atol=1e-4)
        np.testing.assert_allclose(own, expected.topk(own.shape[1]).values.numpy(), atol=1e-4)
        entropy = -(expected * said[number]).sum(1)
        np.testing.assert_allclose(lens.entropy[number], entropy.numpy(), atol=1e-4)
        divergence = (said[-1].exp() * (said[-1] - said[number])).sum(1)
        np.testing.assert_allclose(lens.divergence[number], divergence.numpy(), atol=1e-4)


@pytest.mark.parametrize("against", [None, OTHER])
def test_direct_logit_attribution(both: tuple[nsf.Run, Any, torch.Tensor], against: int | None) -> None:
    run, cache, logits = both
    found = logit_attribution(run, positions=range(11), token=TARGET, against=against)
    components, labels = cache.decompose_resid(return_labels=True)
    told = cache.logit_attrs(components, TARGET, against)[:, 0].numpy()
    names = {"embed": "embedding"} | {
        f"{n}_{part}_out": f"{own} {n}" for n in (0, 1) for part, own in (("attn", "attention"), ("mlp", "mlp"))
    }
    own = dict(zip(found.components, found.values, strict=True))
    assert set(labels) == set(names)
    for label, values in zip(labels, told, strict=True):
        np.testing.assert_allclose(own[names[label]], values, atol=1e-4)
    expected = logits[:, TARGET] - (0 if against is None else logits[:, against])
    np.testing.assert_allclose(found.values.sum(0), expected.numpy(), atol=1e-4)
    heads, labels = cache.stack_head_results(return_labels=True)
    told = cache.logit_attrs(heads, TARGET, against)[:, 0].numpy()
    for label, values in zip(labels, told, strict=True):
        layer, head = (int(number) for number in label[1:].split("H"))
        np.testing.assert_allclose(found.heads[layer, head], values, atol=1e-4)
