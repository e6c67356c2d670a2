"""The logit lens: against plain loops, and its last layer against the model's own logits."""

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
from neuroscope_fast.analysis.logit_lens import LogitLens, logit_lens
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.readout import MissingReadout


def plain_lens(stream: list[float], model: Any) -> list[float]:
    """The logits of one vector of a Llama's stream, in plain loops."""
    norm = model.model.norm
    scale = 1 / math.sqrt(sum(value * value for value in stream) / len(stream) + norm.variance_epsilon)
    normed = [value * scale * weight for value, weight in zip(stream, norm.weight.tolist(), strict=True)]
    return [sum(a * b for a, b in zip(normed, row, strict=True)) for row in model.lm_head.weight.tolist()]


def plain_shares(logits: list[float]) -> list[float]:
    largest = max(logits)
    total = sum(math.exp(value - largest) for value in logits)
    return [math.exp(value - largest) / total for value in logits]


def test_every_number_is_that_of_plain_loops(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("llama", "residual"))
    lens = logit_lens(run, row=1, top=3)
    assert lens.streams == ["0", "1"]
    assert lens.positions.tolist() == list(range(LENGTH - PADDED + STEPS))
    for number, position in ((0, 1), (3, 5), (4, 0)):  # the last of row 1's positions are decode steps
        step, at = (0, PADDED + number) if number < LENGTH - PADDED else (1, 0)
        assert position < LENGTH + 1
        streams = [run[f"model.layers.{layer}_residual"][step][1, at].tolist() for layer in (0, 1)]
        shares = [plain_shares(plain_lens(stream, model)) for stream in streams]
        choice = max(range(len(shares[1])), key=shares[1].__getitem__)
        assert lens.choices[number] == choice
        for layer in (0, 1):
            own = shares[layer]
            order = sorted(range(len(own)), key=lambda token, own=own: -own[token])  # type: ignore[misc]
            assert lens.top_ids[layer, number].tolist() == order[:3]
            assert lens.top_probabilities[layer, number].tolist() == pytest.approx(
                [own[t] for t in order[:3]], rel=1e-4
            )
            assert lens.choice_rank[layer, number] == order.index(choice) + 1
            assert lens.choice_probability[layer, number] == pytest.approx(own[choice], rel=1e-4)
            entropy = -sum(share * math.log(share) for share in own)
            assert lens.entropy[layer, number] == pytest.approx(entropy, rel=1e-4)
            divergence = sum(last * math.log(last / share) for last, share in zip(shares[1], own, strict=True))
            assert lens.divergence[layer, number] == pytest.approx(divergence, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3", "olmo2", "granite", "bloom", "opt", "qwen3_moe"]
)
def test_its_last_layer_gives_the_models_logits(tmp_path: Path, name: str) -> None:
    run, logits = flow_runs.capture(
        flow_runs.build(name), tmp_path / "run", [*hooks_of(name, "residual"), "lm_head:logits:logits"]
    )
    for row in (0, 1):
        lens = logit_lens(run, row=row)
        assert lens.choices.tolist() == logits[row].argmax(1).tolist()
        assert lens.logits_off_by < 1e-4 * np.abs(logits[row]).max()
        np.testing.assert_array_equal(lens.choice_rank[-1], 1)
        np.testing.assert_allclose(lens.divergence[-1], 0, atol=1e-6)


def test_the_demo(tmp_path: Path) -> None:
    hooks = [
        *hooks_of("llama", "residual", "attention", "mlp"),
        "model.embed_tokens:embedding",
        "lm_head:logits:logits",
    ]
    run = nsf.generate(
        "demo", ["Recursion is", "The capital of"], hooks, tmp_path, max_new_tokens=5, store_readout=True
    )
    for prompt in (0, 1):
        lens = logit_lens(run, prompt)
        assert lens.logits_off_by < 1e-4
        text = run.prompts[prompt].texts[0]
        first = text.usage.prompt_tokens - 1
        assert lens.choices[first:].tolist() == text.token_ids[first + 1 :]
        assert [lens.text(token) for token in lens.choices[first:]] == text.tokens[first + 1 :]
        assert lens.streams == ["embedding", *map(str, range(12))]
        decided = lens.decided()
        assert (decided >= 0).all()
        for position, number in enumerate(decided):
            assert (lens.choice_rank[number:, position] == 1).all()
            assert number == 0 or lens.choice_rank[number - 1, position] > 1
        (decisions, last) = lens.tables()
        assert len(decisions.rows) == len(lens.positions)
        assert len(last.rows) == 13
        assert "off the model's own logits by at most" in decisions.note


def test_a_bfloat16_model_and_run(tmp_path: Path) -> None:
    model = flow_runs.build("gemma2").to(torch.bfloat16)
    run, logits = flow_runs.capture(model, tmp_path / "run", [*hooks_of("gemma2", "residual"), "lm_head:logits"])
    lens = logit_lens(run)
    assert 0 < lens.logits_off_by < 0.03 * np.abs(logits[0]).max()


def test_without_a_vocabulary_tokens_have_the_names_of_the_run(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks_of("llama", "residual"))
    lens = logit_lens(run)
    known = dict(zip(run.prompts[0].texts[0].token_ids, run.prompts[0].texts[0].tokens, strict=True))
    known |= dict(zip(run.prompts[0].texts[1].token_ids, run.prompts[0].texts[1].tokens, strict=True))
    for token in lens.top_ids.flat:
        assert lens.text(token) == known.get(int(token), f"#{token}")
    assert lens.text(-1) == "-"


def test_what_is_not_finite_has_no_rank(tmp_path: Path) -> None:
    model: Any = flow_runs.build("llama")
    broken: Any = flow_runs.build("llama")
    broken.model.layers[0].mlp.down_proj.weight[3] = math.nan
    hooks = hooks_of("llama", "residual")
    run, _ = flow_runs.capture(broken, tmp_path / "run", hooks, store_readout=False)
    lens: LogitLens = logit_lens(run, model=model)
    assert (lens.choice_rank == -1).all()
    assert (lens.top_ids == -1).all()
    assert (lens.choices == -1).all()
    for values in (lens.entropy, lens.divergence, lens.choice_probability, lens.top_probabilities):
        assert np.isnan(values).all()
    assert (lens.decided() == -1).all()
    assert lens.tables()[0].rows[0][2] == "-"
    assert b"NaN" not in encode(lens)


def test_a_layer_that_is_not_finite_alone(tmp_path: Path) -> None:
    """The others keep their numbers."""
    model: Any = flow_runs.build("llama")
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("llama", "residual"))
    changed = flow_runs.with_changed(run, "model.layers.0_residual", (0, 2), math.inf)
    lens = logit_lens(changed, model=model)
    assert lens.choice_rank[0, 2] == -1
    assert np.isnan(lens.entropy[0, 2])
    assert lens.choice_rank[1, 2] == 1
    assert (lens.choice_rank[:, [0, 1, 3]] >= 1).all()


def test_top_is_at_most_the_vocabulary(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks_of("llama", "residual"))
    lens = logit_lens(run, top=1000)
    assert lens.top_ids.shape[2] == 101
    np.testing.assert_allclose(lens.top_probabilities.sum(2), 1, rtol=1e-5)
    with pytest.raises(OptionError, match="top is 0"):
        logit_lens(run, top=0)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    run, _ = flow_runs.capture(model, tmp_path / "run", ["model.layers.0:residual"])
    with pytest.raises(MissingActivations, match=r"--hook 'model\.layers\.1:residual'"):
        logit_lens(run)
    with nsf.capture(model, ["model.layers.1:residual"]) as cap:
        model(torch.tensor([[1, 2, 3]]))
    with pytest.raises(MissingReadout, match="a run in memory holds no readout"):
        logit_lens(cap.result)
    assert logit_lens(cap.result, model=model).streams == ["1"]
    with pytest.raises(RunError, match="holds nothing of prompt 7"):
        logit_lens(run, 7, model=model)
