"""Direct logit attribution: shares that sum to the model's own logits, and are those of plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import flow_runs
import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from flow_runs import LENGTH, PADDED, STEPS, hooks_of
from neuroscope_fast.analysis.attribution import Attribution, logit_attribution
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.readout import MissingReadout, read_readout

ALL = ("residual", "attention", "mlp", "head_output")
EVERY = list(range(LENGTH + STEPS))
SOFTCAP = 30.0


def uncapped(name: str, logits: Any) -> Any:
    return SOFTCAP * np.arctanh(logits / SOFTCAP) if name == "gemma2" else logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3", "olmo2", "qwen3_moe"])
@pytest.mark.parametrize("row", [0, 1])
def test_shares_sum_to_the_models_logits(tmp_path: Path, name: str, row: int) -> None:
    """Prefill and decode steps, with padding and without: nothing is left over, and heads sum to their attention."""
    run, logits = flow_runs.capture(flow_runs.build(name), tmp_path / "run", hooks_of(name, *ALL))
    count = LENGTH + STEPS - (PADDED if row else 0)
    found = logit_attribution(run, row=row, positions=range(count), token=17, against=40)
    expected = uncapped(name, logits[row])
    np.testing.assert_allclose(found.values.sum(0), expected[:, 17] - expected[:, 40], rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(found.logits, expected[:, 17] - expected[:, 40], rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(found.capped_logits, logits[row][:, 17] - logits[row][:, 40], rtol=2e-5, atol=1e-4)
    by_name = dict(zip(found.components, found.values, strict=True))
    largest = np.abs(found.values).max()
    assert np.abs(by_name["rest"]).max() <= 2e-6 * largest
    assert found.head_layers.tolist() == list(range(len(found.head_layers)))
    assert len(found.head_layers) >= 2
    for layer, shares, bias in zip(found.head_layers, found.heads, found.head_bias, strict=True):
        np.testing.assert_allclose(shares.sum(0) + bias, by_name[f"attention {layer}"], rtol=1e-4, atol=1e-5 * largest)


def plain_share(vector: Any, stream: Any, weight: Any, reads: Any, eps: float) -> float:
    """Of a summand of `stream`: through a LayerNorm without its bias, the scale frozen, to one token: plain loops."""
    size = len(stream)
    mean = sum(stream) / size
    scale = 1 / math.sqrt(sum((value - mean) ** 2 for value in stream) / size + eps)
    own = sum(vector) / size
    return sum((vector[d] - own) * scale * weight[d] * reads[d] for d in range(size))


def test_shares_are_those_of_plain_loops(tmp_path: Path) -> None:
    """GPT-2: LayerNorm with bias, heads, a bias of the output projection, and an unembedding."""
    model: Any = flow_runs.build("gpt2")
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("gpt2", *ALL))
    found = logit_attribution(run, positions=[3, LENGTH], token=9)
    by_name = dict(zip(found.components, found.values, strict=True))
    norm, block = model.transformer.ln_f, model.transformer.h[1].attn
    reads = model.lm_head.weight[9].tolist()
    assert by_name["bias"] == pytest.approx([sum(b * r for b, r in zip(norm.bias.tolist(), reads, strict=True))] * 2)
    projection, heads = block.c_proj.weight.tolist(), 4
    for number, (step, at) in enumerate([(0, 3), (1, 0)]):

        def vector(hook: str, step: int = step, at: int = at) -> Any:
            return run[hook][step][0, at].double().tolist()

        stream = vector("transformer.h.1_residual")
        arguments = (stream, norm.weight.tolist(), reads, norm.eps)
        expected = plain_share(vector("transformer.h.1_mlp"), *arguments)
        assert by_name["mlp 1"][number] == pytest.approx(expected, rel=1e-5)
        result = vector("transformer.h.1_head_output")
        for head in range(heads):
            size = len(result[head])
            added = [
                sum(result[head][k] * projection[head * size + k][d] for k in range(size)) for d in range(len(stream))
            ]
            assert found.heads[1, head, number] == pytest.approx(plain_share(added, *arguments), rel=1e-4, abs=1e-6)
        expected = plain_share(block.c_proj.bias.tolist(), *arguments)
        assert found.head_bias[1, number] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_bfloat16_model(tmp_path: Path, name: str) -> None:
    model = flow_runs.build(name).to(torch.bfloat16)
    run, logits = flow_runs.capture(model, tmp_path / "run", hooks_of(name, *ALL))
    found = logit_attribution(run, positions=EVERY, token=17)
    np.testing.assert_allclose(found.values.sum(0), found.logits, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.capped_logits, logits[0][:, 17], atol=0.03 * np.abs(logits[0]).max())
    by_name = dict(zip(found.components, found.values, strict=True))
    assert 0 < np.abs(by_name["rest"]).max() < 0.05 * np.abs(found.values).max()


def test_logits_in_the_run_are_compared(tmp_path: Path) -> None:
    run, logits = flow_runs.capture(
        flow_runs.build("granite"), tmp_path / "run", [*hooks_of("granite", *ALL), "lm_head:logits"]
    )
    found = logit_attribution(run, positions=EVERY, token=17, against=3)
    np.testing.assert_allclose(found.captured_logits, logits[0][:, 17] - logits[0][:, 3], rtol=1e-6)
    np.testing.assert_allclose(found.logits, found.captured_logits, rtol=1e-4, atol=1e-5)
    # Granite multiplies what it adds: parts are not known, whole layers are.
    assert found.components == ["layer 1", "bias", "rest"]
    assert not len(found.head_layers)
    assert "what its attention adds is not known" in found.note


def test_layers_and_rests_of_layers(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    hooks: list[Any] = [
        {"layer_name": "model.layers.0", "component": "residual", "capture_input": True},
        "model.layers.1:residual",
    ]
    run, logits = flow_runs.capture(model, tmp_path / "run", hooks)
    found = logit_attribution(run, positions=EVERY, token=17)
    assert found.components == ["embedding", "layer 0", "layer 1", "bias", "rest"]
    np.testing.assert_allclose(found.values.sum(0), logits[0][:, 17], rtol=1e-5, atol=1e-4)
    assert np.abs(found.values[-1]).max() < 1e-5
    run, _ = flow_runs.capture(model, tmp_path / "more", [*hooks, "model.layers.*:attention"])
    more = logit_attribution(run, positions=EVERY, token=17)
    assert more.components[1:5] == ["attention 0", "rest of layer 0", "attention 1", "rest of layer 1"]
    np.testing.assert_allclose(more.values[1] + more.values[2], found.values[1], rtol=1e-5, atol=1e-5)


def test_what_is_not_captured_is_in_the_rest(tmp_path: Path) -> None:
    run, logits = flow_runs.capture(
        flow_runs.build("llama"), tmp_path / "run", ["model.layers.1:residual", "model.layers.*:mlp"]
    )
    found = logit_attribution(run, positions=EVERY, token=17)
    assert found.components == ["mlp 0", "mlp 1", "bias", "rest"]
    np.testing.assert_allclose(found.values.sum(0), logits[0][:, 17], rtol=1e-5, atol=1e-4)
    assert np.abs(found.values[-1]).max() > 1e-2
    assert "The stream before layer 0 is not known and is in the rest." in found.note


def test_some_heads_of_some_layers(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    some: Any = {"layer_name": "model.layers.1", "component": "head_output", "heads": [2, 0]}
    whole, _ = flow_runs.capture(model, tmp_path / "whole", hooks_of("llama", *ALL))
    run, _ = flow_runs.capture(model, tmp_path / "run", [*hooks_of("llama", "residual", "attention", "mlp"), some])
    found = logit_attribution(run, token=17)
    assert found.head_layers.tolist() == [1]
    assert np.isnan(found.heads[0, [1, 3]]).all()
    everything = logit_attribution(whole, token=17)
    np.testing.assert_allclose(found.heads[0, [0, 2]], everything.heads[1, [0, 2]], rtol=1e-12)
    titles = [table.title for table in found.tables()]
    assert any(title.startswith("Heads") for title in titles)
    assert "head 1.1" not in str(found.heads_at(0).rows)


def test_heads_of_a_layer_from_several_hooks(tmp_path: Path) -> None:
    hooks: list[Any] = hooks_of("llama", "residual", "attention", "mlp")
    of_heads = [
        {"layer_name": "model.layers.1.self_attn", "component": "head_output", "heads": heads, "hook_id": str(heads)}
        for heads in ([3, 1], [0, 1, 2])
    ]
    model = flow_runs.build("llama")
    apart, _ = flow_runs.capture(model, tmp_path / "apart", [*hooks, *of_heads])
    whole, _ = flow_runs.capture(model, tmp_path / "whole", [*hooks, "model.layers.1.self_attn:head_output"])
    found, wanted = (logit_attribution(run, positions=EVERY, token=5) for run in (apart, whole))
    assert found.head_layers.tolist() == [1]
    np.testing.assert_allclose(found.heads, wanted.heads, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.head_bias, wanted.head_bias)


def test_targets_are_the_tokens_that_were_generated(tmp_path: Path) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    run = nsf.generate(
        "demo",
        prompt,
        [*hooks_of("llama", *ALL), "model.embed_tokens:embedding", "lm_head:logits:logits"],
        tmp_path / "run",
        max_new_tokens=4,
        store_readout=True,
    )
    found: Attribution = logit_attribution(run)
    text = run.prompts[0].texts[0]
    first = text.usage.prompt_tokens - 1
    assert found.positions.tolist() == list(range(first, first + 4))
    assert found.targets.tolist() == text.token_ids[first + 1 :]
    assert found.target_tokens == text.tokens[first + 1 :]
    np.testing.assert_allclose(found.values.sum(0), found.captured_logits, rtol=1e-5)
    by_text = logit_attribution(run, positions=[first], token=" Mary", against=" John")
    tables = [str(table.rows) for table in by_text.tables()]
    assert "attention" in tables[0]
    assert by_text.title(0) == f"what speaks for ' Mary' over ' John', after ' to' at position {first}"
    inside = logit_attribution(run, positions=[1, 5])  # inside the prompt the likeliest token is meant
    model, _ = nsf.demo.load()
    said = model(torch.tensor([text.token_ids])).logits[0]
    assert inside.targets.tolist() == said[[1, 5]].argmax(-1).tolist()
    assert b'"targets"' in encode(found)
    for wanted, message in ((" Marius", "no single token"), ("Mary ", "there is ' Mary'"), (99999, "there is no")):
        with pytest.raises(OptionError, match=message):
            logit_attribution(run, token=wanted)
    assert logit_attribution(run, token="777").targets.tolist() == [777] * 4
    with pytest.raises(OptionError, match="position 99 is not among those captured"):
        logit_attribution(run, positions=[99])


def test_streams_that_are_not_finite_give_no_shares(tmp_path: Path) -> None:
    model: Any = flow_runs.build("llama")
    model.model.layers[1].mlp.down_proj.weight[3] = math.inf
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("llama", *ALL), store_readout=False)
    found = logit_attribution(run, token=17, model=flow_runs.build("llama"))
    assert np.isnan(found.logits).all()
    assert np.isnan(found.values.sum(0)).all()
    found.tables()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_position_that_is_not_finite(tmp_path: Path, name: str) -> None:
    """The others keep their shares."""
    model = flow_runs.build(name)
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of(name, "residual", "attention", "mlp", "head_output"))
    changed = flow_runs.with_changed(run, f"{flow_runs.STACKS[name]}.1_residual", (0, 2, 5), math.inf)
    found = logit_attribution(changed, positions=EVERY, token=17, model=model)
    expected = logit_attribution(run, positions=EVERY, token=17)
    assert np.isnan(found.values[:, 2]).any()
    assert np.isnan(found.logits[2])
    kept = [0, 1, *EVERY[3:]]
    np.testing.assert_array_equal(found.values[:, kept], expected.values[:, kept])
    np.testing.assert_allclose(found.heads[:, :, kept], expected.heads[:, :, kept], rtol=1e-12, atol=1e-12)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    run, _ = flow_runs.capture(model, tmp_path / "bare", hooks_of("llama", *ALL), store_readout=False)
    with pytest.raises(MissingReadout, match=r"--store-readout\), or give the model"):
        logit_attribution(run)
    assert len(logit_attribution(run, model=model, token=3).head_layers) == 2
    run, _ = flow_runs.capture(model, tmp_path / "first", ["model.layers.0:residual"])
    with pytest.raises(MissingActivations, match=r"--hook 'model\.layers\.1:residual'"):
        logit_attribution(run)


def test_the_readout_of_another_model_is_refused(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks_of("llama", *ALL))
    other: Any = flow_runs.build("llama")
    for layer in other.model.layers:
        layer.self_attn.o_proj.weight.mul_(1.5)
    assert read_readout(run).hidden_size == 48
    with pytest.raises(RunError, match="is that of another model"):
        logit_attribution(run, model=other)
