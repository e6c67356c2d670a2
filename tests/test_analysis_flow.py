"""The residual stream, what is added to it, and the norms and cosines of both, against plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import architectures
import flow_runs
import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from flow_runs import LENGTH, PADDED, STEPS, hooks_of
from neuroscope_fast.analysis.flow import Flow, cosines, information_flow, norms
from neuroscope_fast.analysis.residual_stream import ResidualStream, Way
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import RunError
from neuroscope_fast.readout import read_readout
from torch import nn

BLOCKS = ("residual", "attention", "mlp")


def plain_norm(vector: Any) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in vector))


def plain_cosine(one: Any, two: Any) -> float:
    return sum(float(a) * float(b) for a, b in zip(one, two, strict=True)) / (plain_norm(one) * plain_norm(two))


def sequence(run: nsf.Run, hook_id: str, row: int) -> list[list[float]]:
    """A hook's vectors of one row, padding left out, by plain indexing."""
    padding = PADDED if row == 1 else 0
    first, *steps = list(run[hook_id])
    found = [first[row, position] for position in range(padding, LENGTH)]
    return [vector.float().tolist() for vector in [*found, *(step[row, 0] for step in steps)]]


@pytest.mark.parametrize("row", [0, 1])
def test_norms_and_cosines_are_those_of_plain_loops(tmp_path: Path, row: int) -> None:
    model = flow_runs.build("llama")
    hooks = [*hooks_of("llama", *BLOCKS), "model.embed_tokens:embedding"]
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks)
    flow = information_flow(run, row=row)
    count = LENGTH + STEPS - (PADDED if row else 0)
    assert flow.positions.tolist() == list(range(count))
    assert flow.layers.tolist() == [0, 1]
    stream = [
        sequence(run, hook, row)
        for hook in ("model.embed_tokens_embedding", "model.layers.0_residual", "model.layers.1_residual")
    ]
    for position in range(count):
        assert flow.entry_norm[position] == pytest.approx(plain_norm(stream[0][position]), rel=1e-6)
        for layer in (0, 1):
            before, after = stream[layer][position], stream[layer + 1][position]
            assert flow.stream_norm[layer, position] == pytest.approx(plain_norm(after), rel=1e-6)
            for part in ("attention", "mlp"):
                added = sequence(run, f"model.layers.{layer}_{part}", row)[position]
                found = [getattr(flow, f"{part}_{what}")[layer, position] for what in ("norm", "before", "after")]
                expected = [plain_norm(added), plain_cosine(added, before), plain_cosine(added, after)]
                assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (flow.deviation < 1e-6).all()
    assert flow.tokens == [f"t{token}" for token in run.prompts[0].texts[row].token_ids][:count]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3", "olmo2", "qwen3_moe"])
def test_contributions_are_what_is_really_added(tmp_path: Path, name: str) -> None:
    """Between the streams of two following layers, whatever stands between a sublayer and the stream."""
    run, _ = flow_runs.capture(flow_runs.build(name), tmp_path / "run", hooks_of(name, *BLOCKS))
    stream = ResidualStream(run, row=1, readout=read_readout(run))
    assert stream.checked
    for layer in stream.layers[1:]:
        before, after = stream.after(layer - 1), stream.after(layer)
        attention, mlp = stream.added(layer, "attention"), stream.added(layer, "mlp")
        assert before is not None
        assert after is not None
        assert attention is not None
        assert mlp is not None
        np.testing.assert_allclose(before + attention + mlp, after, rtol=0, atol=1e-4 * np.abs(after).max())


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_norms_behind_the_sublayers_are_found_among_the_captured_ones(tmp_path: Path, name: str) -> None:
    hooks = [
        *hooks_of(name, *BLOCKS),
        "model.layers.*.post_attention_layernorm:layernorm",
        "model.layers.*.post_feedforward_layernorm:layernorm",
    ]
    run, _ = flow_runs.capture(flow_runs.build(name), tmp_path / "run", hooks, store_readout=False)
    stream = ResidualStream(run)
    assert stream.way == Way("post_attention_layernorm", "post_feedforward_layernorm")
    flow = information_flow(run)
    added = sequence(run, "model.layers.1.post_attention_layernorm_layernorm", 0)
    assert flow.attention_norm[1].tolist() == pytest.approx([plain_norm(vector) for vector in added], rel=1e-6)


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "granite", "bloom"])
def test_what_is_not_known_to_be_added_is_no_contribution(tmp_path: Path, name: str) -> None:
    run, _ = flow_runs.capture(flow_runs.build(name), tmp_path / "run", hooks_of(name, *BLOCKS), store_readout=False)
    flow = information_flow(run)
    assert np.isnan(flow.attention_norm).all()
    assert np.isnan(flow.mlp_before).all()
    assert np.isfinite(flow.stream_norm).all()
    assert "not known" in flow.contributions
    assert flow.tables()[0].note == flow.contributions


def test_a_single_norm_of_llamas_name_is_not_taken_for_one_behind_attention(tmp_path: Path) -> None:
    hooks = [*hooks_of("llama", *BLOCKS), "model.layers.*.post_attention_layernorm:layernorm"]
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks, store_readout=False)
    assert ResidualStream(run).way == Way(None, None)


@pytest.mark.parametrize(
    ("name", "embeddings", "expected"),
    [
        ("llama", True, "embedding"),
        ("gemma3", True, "embedding"),  # its factor is in the embedding module
        ("gpt2", True, "difference"),  # position embeddings are added
        ("llama", False, "difference"),
    ],
)
def test_the_stream_before_the_first_layer(tmp_path: Path, name: str, embeddings: bool, expected: str) -> None:
    names = {"gpt2": "transformer.wte", **flow_runs.EMBEDDINGS}
    first = {"layer_name": f"{flow_runs.STACKS[name]}.0", "component": "residual", "hook_id": "first"}
    hooks = [*hooks_of(name, *BLOCKS), *([f"{names[name]}:embedding"] if embeddings else [])]
    model = flow_runs.build(name)
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks)
    stream = ResidualStream(run, readout=read_readout(run))
    assert stream.entry_is == expected
    known, _ = flow_runs.capture(
        model, tmp_path / "known", [*hooks, {**first, "capture_input": True, "capture_output": False}]
    )
    exact = ResidualStream(known, readout=read_readout(known))
    assert exact.entry_is == "input"
    before, expected_values = stream.before(0), exact.before(0)
    assert before is not None
    assert expected_values is not None
    np.testing.assert_allclose(before, expected_values, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_in_half_precision_the_sums_are_still_checked(tmp_path: Path, dtype: str) -> None:
    model = flow_runs.build("llama")
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("llama", *BLOCKS), dtype=dtype, store_readout=False)
    flow = information_flow(run)
    assert 0 < flow.deviation[1] < 2.0**-6
    assert np.isfinite(flow.mlp_norm).all()
    other, _ = flow_runs.capture(
        flow_runs.build("gemma2"), tmp_path / "gemma", hooks_of("gemma2", *BLOCKS), dtype=dtype, store_readout=False
    )
    assert np.isnan(information_flow(other).mlp_norm).all()


def test_a_bfloat16_model(tmp_path: Path) -> None:
    for name in ("llama", "gemma2"):
        model = flow_runs.build(name).to(torch.bfloat16)
        run, _ = flow_runs.capture(model, tmp_path / name, hooks_of(name, *BLOCKS))
        assert 0 < np.nanmax(information_flow(run).deviation) < 2.0**-7


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_what_is_too_coarse_to_see_a_sum_in_needs_the_readout(tmp_path: Path, dtype: str) -> None:
    model = flow_runs.build("llama")
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("llama", *BLOCKS), dtype=dtype)
    flow = information_flow(run)
    assert np.isnan(flow.deviation).all()
    assert "as the readout says" in flow.contributions
    assert np.isfinite(flow.mlp_norm).all()
    bare, _ = flow_runs.capture(model, tmp_path / "bare", hooks_of("llama", *BLOCKS), dtype=dtype, store_readout=False)
    assert np.isnan(information_flow(bare).mlp_norm).all()


def test_streams_that_are_not_finite_give_no_numbers(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    model.get_submodule("model.layers.1.mlp.down_proj").weight[3] = math.inf  # type: ignore[index, union-attr, operator]
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("llama", *BLOCKS), store_readout=False)
    flow = information_flow(run)
    assert not np.isfinite(flow.stream_norm[1]).any()
    assert np.isnan(flow.mlp_after[1]).all()
    assert np.isfinite(flow.stream_norm[0]).all()
    assert b"null" in encode(flow)
    flow.tables()


def test_a_run_of_the_stream_alone(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks_of("llama", "residual"))
    flow = information_flow(run)
    assert np.isfinite(flow.stream_norm).all()
    assert np.isnan(flow.attention_norm).all()
    assert np.isnan(flow.entry_norm).all()
    (first, second) = flow.tables()
    assert "an unknown size" in str(first.rows[0][2])
    assert len(second.rows) == 2


def test_one_token_and_one_layer(tmp_path: Path) -> None:
    model = flow_runs.build("llama")
    with nsf.capture(model, ["model.layers.1:residual"], tmp_path / "run") as cap:
        model(torch.tensor([[5]]))
    flow = information_flow(cap.result)
    assert flow.stream_norm.shape == (1, 1)
    assert flow.layers.tolist() == [1]


def test_what_a_run_lacks_is_named_with_the_hook_for_it(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("gpt2"), tmp_path / "run", hooks_of("gpt2", "attention"))
    with pytest.raises(MissingActivations, match=r"--hook 'transformer.h.\*:residual'$"):
        information_flow(run)


def test_two_stacks_are_refused(tmp_path: Path) -> None:
    model = architectures.build("t5")
    with nsf.capture(model, ["encoder.block.*:residual", "decoder.block.*:residual"], tmp_path / "run") as cap:
        model(**architectures.inputs("t5"))
    with pytest.raises(RunError, match=r"several stacks of layers \(decoder\.block\.\*, encoder\.block\.\*\)"):
        information_flow(cap.result)


def test_positions_that_hooks_do_not_share_are_left_out(tmp_path: Path) -> None:
    hooks: list[Any] = [
        *hooks_of("llama", "residual", "attention"),
        {"layer_name": "model.layers.*", "component": "mlp", "positions": "2:"},
    ]
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks)
    assert information_flow(run).positions.tolist() == [2, 3, 4, 5, 6, 7]


def test_another_models_readout_is_refused(tmp_path: Path) -> None:
    run, _ = flow_runs.capture(flow_runs.build("llama"), tmp_path / "run", hooks_of("llama", *BLOCKS))
    other, _ = nsf.demo.load()
    with pytest.raises(RunError, match="has 48 dimensions, and the readout is of 64"):
        information_flow(run, model=other)


def test_norms_and_cosines_of_nothing_and_zero() -> None:
    assert norms(np.zeros((0, 3))).shape == (0,)
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert norms(rows).tolist() == [0.0, 5.0]
    found = cosines(rows, np.array([[1.0, 0.0], [3.0, 4.0]]))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1.0)
    large = np.full((1, 4), 3e30, np.float32)  # its square is more than float32 holds
    assert norms(large)[0] == pytest.approx(6e30, rel=1e-6)


def test_tables_of_the_demo(tmp_path: Path) -> None:
    run = nsf.generate("demo", "Recursion is", ["model.layers.*:residual"], tmp_path / "run", max_new_tokens=2)
    flow: Flow = information_flow(run)
    assert flow.tables()[0].title == "What stands out in the residual stream"
    assert len(flow.tables()[1].rows) == 12


def test_the_model_may_stand_in_for_the_readout(tmp_path: Path) -> None:
    model: nn.Module = flow_runs.build("gemma2")
    run, _ = flow_runs.capture(model, tmp_path / "run", hooks_of("gemma2", *BLOCKS), store_readout=False)
    assert np.isfinite(information_flow(run, model=model).mlp_norm).all()
