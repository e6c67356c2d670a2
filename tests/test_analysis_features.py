"""Feature detection against plain loops over the sequences that a run was cut from."""

from __future__ import annotations

import math
from typing import Any

import architectures
import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from activation_runs import cut, entry_of, record_of, run_of
from neuroscope_fast.analysis.feature_results import LayerFeatures
from neuroscope_fast.analysis.features import detect_features
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.reader import HookNotCaptured
from test_analysis_moments import moments_of

Array = np.ndarray[Any, Any]
Place = tuple[int, int, int]


def sequences(shape: list[list[int]], neurons: int, seed: int = 0) -> list[list[Array]]:
    """For each prompt its rows [T, neurons], of these lengths."""
    random = np.random.default_rng(seed)
    return [[random.normal(size=(length, neurons)).astype(np.float32) for length in rows] for rows in shape]


def check(found: LayerFeatures, prompts: list[list[Array]], *, top: int, threshold: float, skip: int) -> None:
    """Every number of a result, from every value of every sequence."""
    for neuron in range(prompts[0][0].shape[1]):
        values: list[tuple[float, Place]] = []
        for number, rows in enumerate(prompts):
            for row, sequence in enumerate(rows):
                for position in range(skip, len(sequence)):
                    values.append((float(sequence[position, neuron]), (number, row, position)))
        finite = [value for value, _ in values if math.isfinite(value)]
        mean, variance, kurtosis = moments_of([value for value, _ in values])
        active = sum(value > threshold for value in finite)
        assert found.positions == len(values)
        assert found.not_finite[neuron] == len(values) - len(finite)
        assert found.active[neuron] == active
        assert found.mean[neuron] == pytest.approx(mean, abs=1e-9, nan_ok=True)
        assert found.variance[neuron] == pytest.approx(variance, rel=1e-9, abs=1e-12, nan_ok=True)
        assert found.kurtosis[neuron] == pytest.approx(kurtosis, abs=1e-6, nan_ok=True)
        assert found.density[neuron] == pytest.approx(active / len(finite) if finite else math.nan, nan_ok=True)
        assert found.minimum[neuron] == pytest.approx(min(finite, default=math.nan), nan_ok=True)
        assert found.maximum[neuron] == pytest.approx(max(finite, default=math.nan), nan_ok=True)
        assert found.dead[neuron] == (bool(finite) and active == 0)
        assert found.always_zero[neuron] == (bool(finite) and set(finite) == {0.0})
        best = sorted((-v, place) for v, place in values if math.isfinite(v) and v > threshold)[:top]
        kept = [
            (-float(found.top_values[neuron, rank]), tuple(int(array[neuron, rank]) for array in tops(found)))
            for rank in range(top)
            if found.top_positions[neuron, rank] >= 0
        ]
        assert kept == best
        assert np.isnan(found.top_values[neuron, len(best) :]).all()


def tops(found: LayerFeatures) -> tuple[Array, Array, Array]:
    return found.top_prompts, found.top_rows, found.top_positions


@pytest.mark.parametrize("decoded", [0, 3])
@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("shape", [[[5]], [[7], [4], [9]], [[4, 6, 9], [8, 8]], [[4]] * 30], ids=str)
def test_against_loops(shape: list[list[int]], skip: int, decoded: int) -> None:
    prompts = sequences(shape, 6)
    for threshold in (0.0, 0.7):
        found = detect_features(run_of(cut(prompts, decoded)), top=4, threshold=threshold, skip_first=skip)
        check(found.layers[0], prompts, top=4, threshold=threshold, skip=skip)


@pytest.mark.parametrize("decoded", [0, 1, 5, 39])
def test_how_a_run_was_cut_into_records_changes_no_bit(decoded: int) -> None:
    prompts = sequences([[40], [40]], 5)
    whole = detect_features(run_of(cut(prompts)))
    assert encode(detect_features(run_of(cut(prompts, decoded)))) == encode(whole)


def test_more_positions_than_a_block() -> None:
    prompts = sequences([[4500], [3000, 2999]], 2)
    found = detect_features(run_of(cut(prompts, 2)), top=20, threshold=1.5)
    check(found.layers[0], prompts, top=20, threshold=1.5, skip=1)


def test_one_token() -> None:
    prompts = sequences([[1]], 3)
    found = detect_features(run_of(cut(prompts)), skip_first=0).layers[0]
    check(found, prompts, top=10, threshold=0.0, skip=0)
    assert found.profiles == []
    nothing = detect_features(run_of(cut(prompts)))
    check(nothing.layers[0], prompts, top=10, threshold=0.0, skip=1)
    assert nothing.layers[0].positions == 0
    assert not nothing.layers[0].dead.any()
    assert nothing.tables()[-1].rows[0][5:7] == [None, None]


def test_dead_neurons_and_zeros() -> None:
    (rows,) = sequences([[9]], 5)
    rows[0][:, 0] = 0
    rows[0][:, 1] = -2.5
    rows[0][:, 2] = 3.25
    rows[0][:, 3] = -np.abs(rows[0][:, 3])
    found = detect_features(run_of(cut([rows]))).layers[0]
    check(found, [rows], top=10, threshold=0.0, skip=1)
    assert found.dead.tolist() == [True, True, False, True, False]
    assert found.always_zero.tolist() == [True, False, False, False, False]
    assert np.isnan(found.kurtosis[:3]).all()
    assert found.variance[:3].tolist() == [0, 0, 0]
    assert found.density[2] == 1
    assert 2 not in found.most_selective(5)


def test_values_that_are_no_numbers() -> None:
    prompts = sequences([[9, 8], [7]], 4)
    prompts[0][1][3, 0] = np.nan
    prompts[1][0][2, 1] = np.inf
    prompts[1][0][4, 1] = -np.inf
    for rows in prompts:
        for row in rows:
            row[:, 2] = np.nan
    found = detect_features(run_of(cut(prompts, 2)), neurons=[0, 1, 2, 3]).layers[0]
    check(found, prompts, top=10, threshold=0.0, skip=1)
    assert found.not_finite.tolist() == [1, 2, 21, 0]
    assert [int(profile.histogram.sum()) for profile in found.profiles] == [20, 19, 0, 21]
    assert b"NaN" not in encode(detect_features(run_of(cut(prompts, 2))))


def test_equal_values_come_in_the_order_of_the_run() -> None:
    prompts = [[np.ones((4, 2), np.float32), np.ones((3, 2), np.float32)], [np.ones((5, 2), np.float32)]]
    for decoded in (0, 1, 2):
        found = detect_features(run_of(cut(prompts, decoded)), top=7).layers[0]
        check(found, prompts, top=7, threshold=0.0, skip=1)
        places = list(zip(*(array[0].tolist() for array in tops(found)), strict=True))
        assert places == [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 1), (0, 1, 2), (1, 0, 1), (1, 0, 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int32])
def test_dtypes(dtype: torch.dtype) -> None:
    prompts = sequences([[6, 9], [5]], 4)
    rounded = [[torch.tensor(8 * row).to(dtype).double().numpy() for row in rows] for rows in prompts]
    records = cut([[8 * row for row in rows] for rows in prompts], 2, dtype=dtype)
    check(detect_features(run_of(records), top=3).layers[0], rounded, top=3, threshold=0.0, skip=1)


def test_float64_is_not_rounded() -> None:
    rows = 1 + np.random.default_rng(0).normal(size=(30, 2)) * 1e-12
    found = detect_features(run_of(cut([[rows]], dtype=torch.float64)), skip_first=0).layers[0]
    assert found.variance[0] == pytest.approx(moments_of(rows[:, 0].tolist())[1], rel=1e-3)


def test_int8_with_scales(llama: torch.nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    with nsf.capture(llama, [{"layer_name": "model.layers.*", "component": "neuron", "dtype": "int8"}]) as cap:
        llama(**tokens)
    run = cap.result
    assert run.records[0].dtype == "int8"
    prompts = [[run[run.hooks[1]][0][row].numpy() for row in range(2)]]
    found = detect_features(run, threshold=0.001)
    assert [layer.layer for layer in found.layers] == [0, 1]
    check(found.layers[1], prompts, top=10, threshold=0.001, skip=1)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_padding_of_a_real_model(name: str) -> None:
    """OPT computes its feed-forward blocks on rows and positions in one axis."""
    model = architectures.build(name)
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    mask = (ids > 0).long()
    layer, embedding = {
        "opt": ("model.decoder.layers.1", "model.decoder.embed_tokens"),
        "gpt2": ("transformer.h.1", "transformer.wte"),
    }.get(name, ("model.layers.1", "model.embed_tokens"))
    ids_in = {"layer_name": embedding, "component": "embedding", "capture_input": True, "capture_output": False}
    with nsf.capture(model, [{**ids_in, "hook_id": "ids"}, f"{layer}:neuron"]) as cap:
        model(ids, attention_mask=mask)
    values = cap.result[cap.result.hooks[1]][0].reshape(2, 5, -1).numpy()
    found = detect_features(cap.result)
    check(found.layers[0], [[values[0, 2:], values[1]]], top=10, threshold=0.0, skip=1)


def test_a_run_on_disk_of_a_generation(tmp_path: Any) -> None:
    prompts = ["The capital of France is", "Anna has a red ball. Tom has a blue hat."]
    run = nsf.generate("demo", prompts, ["model.layers.{1,3}:neuron"], out=tmp_path / "run", max_new_tokens=5)
    opened = nsf.open(tmp_path / "run")
    found = detect_features(opened, before=3, after=2)
    assert encode(found) == encode(detect_features(run, before=3, after=2))
    for layer in found.layers:
        whole = [[run[layer.hook_id].where(prompt=number).cat()[0].numpy()] for number in range(2)]
        check(layer, whole, top=10, threshold=0.0, skip=1)
        assert len(layer.profiles) == 6
        for profile in layer.profiles:
            column = np.concatenate([rows[0][1:, profile.neuron] for rows in whole]).astype(np.float64)
            expected, edges = np.histogram(column, len(profile.histogram))
            assert profile.edges == pytest.approx(edges)
            assert profile.histogram.tolist() == expected.tolist()
            for context in profile.contexts:
                tokens = list(opened.prompts[context.prompt].texts[0].tokens)
                start = max(context.position - 3, 0)
                stop = context.position + 3
                assert context.texts == tokens[start:stop]
                assert context.peak == context.position - start
                values = whole[context.prompt][0][start:stop, profile.neuron]
                assert context.activations[: len(values)] == pytest.approx(values)
                assert np.isnan(context.activations[len(values) :]).all()
                assert context.activations[context.peak] == context.value
    table = found.tables()[0]
    assert len(table.rows) == 12
    assert all("«" in str(row[5]) for row in table.rows)


def test_means_by_token() -> None:
    words = {"a": 3, "b": 4, "c": 9, "d": 2}
    texts = [[["a", "b", "a", "c", "d"]], [["b", "a", "b", "b", "d"]]]
    prompts = sequences([[4], [4]], 2)
    entries = [entry_of(number, rows, words) for number, rows in enumerate(texts)]
    (layer,) = detect_features(run_of(cut(prompts, 1), entries), neurons=[1]).layers
    a = [float(prompts[0][0][2, 1]), float(prompts[1][0][1, 1])]
    b = [float(prompts[0][0][1, 1]), *(float(prompts[1][0][at, 1]) for at in (2, 3))]
    expected = sorted([(-np.mean(a), "a", 3, 2), (-np.mean(b), "b", 4, 3)])
    found = [(-each.mean, each.text, each.token_id, each.count) for each in layer.profiles[0].tokens]
    assert [each[1:] for each in found] == [each[1:] for each in expected]
    assert [each[0] for each in found] == pytest.approx([each[0] for each in expected])


def test_without_tokens_a_context_says_where_it_is() -> None:
    prompts = sequences([[6], [7]], 2)
    (layer,) = detect_features(run_of(cut(prompts)), neurons=[0], before=2, after=1).layers
    context = layer.profiles[0].contexts[0]
    assert context.texts[context.peak] == str(context.position)
    assert context.activations[context.peak] == pytest.approx(prompts[context.prompt][0][context.position, 0])
    assert layer.profiles[0].tokens == []
    table = detect_features(run_of(cut(prompts))).tables()[0]
    assert str(table.rows[0][5]).startswith("prompt ")


def test_sequences_that_start_over_within_a_prompt_are_told_apart() -> None:
    prompts = sequences([[5], [5]], 3)
    first, second = cut([prompts[0]]), [record_of(torch.tensor(prompts[1][0])[None], step=1)]
    found = detect_features(run_of(first + second)).layers[0]
    assert found.positions == 8
    assert found.mean == pytest.approx(np.concatenate([rows[0][1:] for rows in prompts]).mean(axis=0))


def test_rows_at_different_positions_are_no_new_sequence() -> None:
    steps = [record_of(torch.ones(2, 1, 1), positions=[[3 + at], [5 + at]], step=at) for at in range(3)]
    found = detect_features(run_of(steps), top=6).layers[0]
    assert found.top_positions[0].tolist() == [3, 4, 5, 5, 6, 7]
    assert found.top_rows[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_chosen_positions() -> None:
    """The last position of a prefill padded on the left is counted from the first real token."""
    whole = record_of(torch.zeros(2, 4, 3), hook_id="all", component="residual", real_tokens=[[2, 4], [0, 4]])
    last = record_of(torch.ones(2, 1, 3), positions=[3])
    found = detect_features(run_of([whole, last]), top=3, skip_first=0).layers[0]
    assert found.top_positions[0].tolist() == [1, 3, -1]
    assert found.top_rows[0].tolist() == [0, 1, -1]
    unknown = detect_features(run_of([record_of(torch.ones(1, 2, 3), positions=[])]), neurons=[0]).layers[0]
    assert unknown.positions == 2
    assert unknown.top_positions.max() == -1
    assert unknown.profiles[0].contexts[0].texts == []


def test_what_is_looked_at() -> None:
    (rows,) = sequences([[5]], 3)
    records = [
        *cut([rows], hook_id="n1", layer_name="model.layers.1"),
        *cut([rows], hook_id="n0"),
        *cut([rows], hook_id="m0", component="mlp"),
    ]
    run = run_of(records)
    assert [layer.hook_id for layer in detect_features(run).layers] == ["n0", "n1"]
    assert [layer.hook_id for layer in detect_features(run, component="mlp").layers] == ["m0"]
    assert [layer.hook_id for layer in detect_features(run, ["m0", "n1"]).layers] == ["m0", "n1"]
    assert [layer.unit for layer in detect_features(run, ["m0", "n1"]).layers] == ["dimension", "neuron"]
    assert [layer.hook_id for layer in detect_features(run_of(records[2:])).layers] == ["m0"]
    seen: list[str] = []
    detect_features(run, progress=seen.append)
    assert seen == ["n0", "n1"]


def test_refusals() -> None:
    (rows,) = sequences([[5]], 3)
    run = run_of(cut([rows]))
    with pytest.raises(MissingActivations, match=r"capture it with --hook 'model\.layers\.\*:neuron'"):
        detect_features(run_of(cut([rows], component="residual")))
    with pytest.raises(MissingActivations, match=r"--hook 'model\.layers\.\*:mlp'"):
        detect_features(run, component="mlp")
    with pytest.raises(HookNotCaptured):
        detect_features(run, ["nothing"])
    with pytest.raises(OptionError, match="there is no neuron 3: the hook has 3, counted from 0"):
        detect_features(run, neurons=[1, 3])
    for option in ("top", "skip_first", "profiles", "before", "after"):
        with pytest.raises(OptionError, match=f"{option} is -1: it cannot be negative"):
            detect_features(run, **{option: -1})
    with pytest.raises(OptionError, match="at least one"):
        detect_features(run, bins=0)
    with pytest.raises(OptionError, match="NaN"):
        detect_features(run, threshold=math.nan)
    with pytest.raises(OptionError, match="at least one hook id"):
        detect_features(run, [])
    with pytest.raises(RunError, match=r"shape \[3\], not of rows, positions and neurons"):
        detect_features(run_of([record_of(torch.zeros(3))]))
    with pytest.raises(RunError, match="different widths"):
        detect_features(
            run_of([record_of(torch.zeros(1, 2, 3)), record_of(torch.zeros(1, 1, 4), step=1, positions=[2])])
        )
    for facts in (
        {"component": "attention_pattern", "reduction": "entropy"},
        {"component": "expert"},
        {"component": "query"},
    ):
        with pytest.raises(RunError, match="which has no neurons: choose a hook of neuron or mlp"):
            detect_features(run_of([record_of(torch.zeros(1, 2, 3), **facts)]), ["h"])
    with pytest.raises(RunError, match="have no neurons"):
        detect_features(run_of([record_of(torch.zeros(1, 2, 3, 4), component="head_output")]), ["h"])
