"""Head scores against plain loops: from whole patterns and every reduction, whatever heads and positions were taken."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from attention_runs import MASSES, SPECIFIC, Hook, causal, made_run, naive_scores, steps_of
from neuroscope_fast.analysis.attention import HeadScore, attention
from neuroscope_fast.analysis.attention_scores import row_entropy
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import RunError
from neuroscope_fast.reader import Run

LAYER = "model.layers.3.self_attn"


def ids_of(tokens: int, seed: int, vocabulary: int = 4) -> list[int]:
    """A first token of its own, then few different ones: nearly all come again."""
    drawn = np.random.default_rng(seed).integers(1, vocabulary + 1, tokens)
    return [0, *drawn[1:].tolist()][:tokens]


def by_head(run: Run) -> dict[tuple[int | None, int], HeadScore]:
    return {(each.layer, each.head): each for each in attention(run).heads}


def assert_scores(found: HeadScore, expected: dict[str, float], names: tuple[str, ...] = (*MASSES, *SPECIFIC)) -> None:
    for name in names:
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name


def reduced(pattern: torch.Tensor, reduction: str) -> torch.Tensor:
    """[B, H, Q] of a pattern [B, H, T, T]."""
    size = pattern.shape[-1]
    if reduction == "entropy":
        return -torch.xlogy(pattern, pattern).sum(-1)
    if reduction == "sink":
        return pattern[..., 0].contiguous()
    shifted = torch.zeros(pattern.shape[:3])
    shifted[..., 1:] = pattern[:, :, range(1, size), range(size - 1)]
    return shifted


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 9, 33, 300])
def test_scores_are_those_of_plain_loops(heads: int, tokens: int) -> None:
    pattern, ids = causal(heads, tokens, seed=tokens), ids_of(tokens, seed=tokens)
    found = by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, max(tokens - 2, 1))])}, [ids]))
    assert sorted(found) == [(3, head) for head in range(heads)]
    for head in range(heads):
        assert_scores(found[3, head], naive_scores([(pattern[0, head].numpy(), ids)]))
        assert found[3, head].queries == tokens - 1
        assert not found[3, head].lower_bound


def test_prompts_are_averaged_by_their_queries() -> None:
    lengths = (2, 17, 5)
    patterns = [causal(2, length, seed=length) for length in lengths]
    ids = [ids_of(length, seed=length) for length in lengths]
    found = by_head(made_run({"a": Hook(LAYER, [steps_of(each, 2) for each in patterns])}, ids))
    for head in (0, 1):
        pairs = [(pattern[0, head].numpy(), given) for pattern, given in zip(patterns, ids, strict=True)]
        assert_scores(found[3, head], naive_scores(pairs))


def test_a_prompt_without_tokens_counts_for_the_masses_alone() -> None:
    patterns = [causal(1, 9, seed=1), causal(1, 12, seed=2)]
    run = made_run({"a": Hook(LAYER, [steps_of(each, 3) for each in patterns])}, [ids_of(9, seed=4)])
    expected = naive_scores([(patterns[0][0, 0].numpy(), ids_of(9, seed=4)), (patterns[1][0, 0].numpy(), None)])
    assert_scores(by_head(run)[3, 0], expected)


def test_without_token_ids_the_scores_that_need_them_are_absent_and_the_note_says_why() -> None:
    pattern = causal(2, 12)
    result = attention(made_run({"a": Hook(LAYER, [steps_of(pattern, 12)])}))
    for head in result.heads:
        assert math.isnan(head.induction_score)
        assert math.isnan(head.duplicate_token_score)
        assert_scores(head, naive_scores([(pattern[0, head.head].numpy(), None)]))
    assert [note for note in result.notes if "token_ids" in note and "induction and duplicate-token" in note]
    assert "token_ids" in result.tables()[0].note


@pytest.mark.parametrize("reduction", ["entropy", "sink", "previous"])
def test_a_reduction_carries_its_own_scores_and_no_others(reduction: str) -> None:
    pattern, ids = causal(3, 13, seed=5), ids_of(13, seed=5)
    steps = [
        (0, reduced(pattern, reduction)[:, :, :9]),
        *((q, reduced(pattern, reduction)[:, :, [q]]) for q in range(9, 13)),
    ]
    result = attention(made_run({"r": Hook(LAYER, [steps], reduction=reduction)}, [ids]))
    carried = {"entropy": ("entropy",), "sink": ("first",), "previous": ("previous", "previous_token_score")}[reduction]
    for head in result.heads:
        expected = naive_scores([(pattern[0, head.head].numpy(), ids)])
        assert_scores(head, expected, carried)
        assert all(math.isnan(getattr(head, name)) for name in (*MASSES, *SPECIFIC) if name not in carried)
        assert (head.label == "unknown") == (reduction == "entropy")
    assert "--hook 'model.layers.*:attention_pattern'" in " ".join(result.notes)
    assert not result.attended


def test_reductions_together_say_what_each_says() -> None:
    pattern, ids = causal(2, 11, seed=6), ids_of(11, seed=6)
    hooks = {
        name: Hook(LAYER, [[(0, reduced(pattern, name))]], reduction=name) for name in ("previous", "sink", "entropy")
    }
    for (_, head), score in by_head(made_run(hooks, [ids])).items():
        expected = naive_scores([(pattern[0, head].numpy(), ids)])
        assert_scores(score, expected, ("entropy", "first", "previous", "previous_token_score"))


def top_k(pattern: torch.Tensor, prefill: int, k: int) -> tuple[list[tuple[int, torch.Tensor]], list[torch.Tensor]]:
    steps = steps_of(pattern, prefill)
    kept = [weights.topk(min(k, weights.shape[-1]), dim=-1) for _, weights in steps]
    return [(start, each.values) for (start, _), each in zip(steps, kept, strict=True)], [
        each.indices.to(torch.int32) for each in kept
    ]


@pytest.mark.parametrize("k", [1, 3, 64])
def test_top_k_gives_lower_bounds_and_says_so(k: int) -> None:
    pattern, ids = causal(2, 21, seed=7), ids_of(21, seed=7)
    weights, indices = top_k(pattern, 4, k)
    result = attention(made_run({"t": Hook(LAYER, [weights], reduction="top_k", indices=[indices])}, [ids]))
    for score in result.heads:
        whole = pattern[0, score.head].numpy()
        largest = np.sort(whole, axis=1)[:, -min(k, 21)][:, None]
        assert_scores(score, naive_scores([(np.where(whole >= largest, whole, 0), ids)]))
        for name in (*MASSES, *SPECIFIC):
            assert getattr(score, name) <= naive_scores([(whole, ids)])[name] + 1e-6
        assert score.lower_bound == (k < 21)
    assert any("lower bounds" in note for note in result.notes) == (k < 21)


def test_selected_heads_keep_their_numbers() -> None:
    pattern, ids = causal(3, 14, seed=8), ids_of(14, seed=8)
    found = by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, 14)], heads=[7, 2, 5])}, [ids]))
    assert sorted(found) == [(3, 2), (3, 5), (3, 7)]
    for number, head in enumerate((7, 2, 5)):
        assert_scores(found[3, head], naive_scores([(pattern[0, number].numpy(), ids)]))


def test_hooks_of_one_module_are_joined_and_no_query_counts_twice() -> None:
    pattern, ids = causal(2, 15, seed=9), ids_of(15, seed=9)
    first, rest = pattern[:, :, :6], pattern[:, :, 6:]
    hooks = {
        "one": Hook(LAYER, [[(0, first[:, [0]].contiguous())]], heads=[0]),
        "two": Hook(LAYER, [[(6, rest.contiguous())]]),
        "again": Hook(LAYER, [[(0, pattern[:, [1]].contiguous())]], heads=[1]),
        "entropy": Hook(
            LAYER, [[(0, reduced(pattern, "entropy") + 1)]], reduction="entropy"
        ),  # whole patterns go first
    }
    found = by_head(made_run(hooks, [ids]))
    assert sorted(found) == [(3, 0), (3, 1)]
    for head in (0, 1):
        assert_scores(found[3, head], naive_scores([(pattern[0, head].numpy(), ids)]))
        assert found[3, head].queries == 14


def test_chosen_positions_are_the_ones_that_count() -> None:
    pattern, ids = causal(1, 20, seed=10), ids_of(20, seed=10)
    found = by_head(made_run({"a": Hook(LAYER, [[(8, pattern[:, :, 8:].contiguous())]])}, [ids]))[3, 0]
    kept = [[float(weight) for weight in row] for row in pattern[0, 0, 8:]]
    assert found.queries == 12
    assert found.first == pytest.approx(sum(row[0] for row in kept) / 12, abs=1e-6)
    assert found.previous == pytest.approx(sum(row[7 + number] for number, row in enumerate(kept)) / 12, abs=1e-6)


def test_layers_are_told_apart_and_so_are_stacks() -> None:
    names = ["decoder.layers.1.self_attn", "encoder.layers.1.self_attn", "model.attention"]
    patterns = {name: causal(1, 8, seed=number) for number, name in enumerate(names)}
    hooks = {name: Hook(name, [steps_of(each, 8)]) for name, each in patterns.items()}
    result = attention(made_run(hooks))
    assert {(each.layer, each.layer_name, each.name) for each in result.heads} == {
        (1, names[0], "1.0"),
        (1, names[1], "1.0"),
        (None, names[2], "model.attention.0"),
    }
    labels, values = result.grid("first")
    assert labels == ["1", "1", "model.attention"]
    assert values[:, 0] == pytest.approx([float(patterns[name][0, 0, 1:, 0].mean()) for name in names], abs=1e-6)


def test_cross_attention_has_no_scores() -> None:
    for name in ("decoder.layers.1.encoder_attn", "decoder.block.3.layer.1", "decoder.block.3.layer.1.EncDecAttention"):
        with pytest.raises(MissingActivations, match="attention_pattern"):
            attention(made_run({"a": Hook(name, [steps_of(causal(1, 8), 8)])}))


def test_the_tokens_of_an_encoder_are_not_those_of_the_decoder_beside_it() -> None:
    pattern, ids = causal(1, 30, seed=1), ids_of(30, seed=1)
    names = ["encoder.layers.1.self_attn", "decoder.layers.1.self_attn"]
    run = made_run({name: Hook(name, [[(0, pattern)]]) for name in names}, [ids], prompt_tokens=20)
    result = attention(run)
    found = {head.layer_name: head for head in result.heads}
    assert_scores(found[names[0]], naive_scores([(pattern[0, 0].numpy(), ids)]))
    assert_scores(found[names[1]], naive_scores([(pattern[0, 0].numpy(), None)]))
    assert not result.attended
    assert "causal language model" in result.notes[-1]
    run.manifest.model.class_name = "OPTForCausalLM"  # its layers stand in model.decoder, and there is no encoder
    found = {head.layer_name: head for head in attention(run).heads}
    assert_scores(found[names[1]], naive_scores([(pattern[0, 0].numpy(), ids)]))


def test_a_number_that_is_none_stays_none() -> None:
    pattern, ids = causal(2, 30, seed=11), ids_of(30, seed=11)
    pattern[0, 1, 20, 7] = float("nan")
    result = attention(made_run({"a": Hook(LAYER, [steps_of(pattern, 30)])}, [ids]))
    assert [head.head for head in result.heads] == [0, 1]
    broken = result.heads[1]
    assert broken.label == "unknown"
    assert all(math.isnan(getattr(broken, name)) for name in (*MASSES, "previous_token_score"))
    assert [head.head for head in result.ranked("first")] == [0]
    assert json.loads(encode(result))["heads"][1]["first"] is None
    assert result.tables()[-1].rows[1][2] is None


def test_nothing_captured_names_the_hook() -> None:
    with pytest.raises(MissingActivations, match=r"--hook 'model\.layers\.\*:attention_pattern'"):
        attention(made_run({}))


def test_entropy_of_certain_uniform_and_broken_rows() -> None:
    rows = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0, 0, 0, 0], [math.nan, 0.5, 0.5, 0]])
    assert row_entropy(rows)[:3] == pytest.approx([0, math.log(4), 0])
    assert math.isnan(row_entropy(rows)[3])
    assert not np.signbit(row_entropy(rows)[0])


def attending(shares: dict[str, float], ids: list[int]) -> torch.Tensor:
    """A head that gives these kinds of keys this much of its attention, where they are, and the rest to all alike."""
    size = len(ids)
    pattern = torch.zeros(size, size)
    for query in range(size):
        kinds = {"first": [0], "previous": [query - 1] if query else [], "current": [query]}
        kinds["induction"] = [key for key in range(1, query) if ids[key - 1] == ids[query]]
        kinds["duplicate"] = [key for key in range(1, query) if ids[key] == ids[query]]
        left = 1.0
        for kind, share in shares.items():
            for key in kinds[kind]:
                pattern[query, key] += share / len(kinds[kind])
            left -= share if kinds[kind] else 0.0
        pattern[query, : query + 1] += left / (query + 1)
    return pattern


REPEATED = [0, *range(1, 21), *range(1, 21)]


@pytest.mark.parametrize(
    ("shares", "label"),
    [
        ({}, "none"),
        ({"previous": 0.15}, "none"),
        ({"previous": 0.5}, "previous_token"),
        ({"current": 0.5}, "current_token"),
        ({"first": 0.5}, "first_token"),
        ({"induction": 0.5}, "induction"),
        ({"duplicate": 0.5}, "duplicate_token"),
        ({"induction": 0.4, "duplicate": 0.3}, "induction"),
        ({"first": 0.6, "previous": 0.3}, "first_token"),  # it rests, and looks back a little
        ({"first": 0.3, "previous": 0.6}, "previous_token"),
    ],
)
def test_a_label_is_the_score_that_stands_out(shares: dict[str, float], label: str) -> None:
    pattern = attending(shares, REPEATED)[None, None]
    assert by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, 41)])}, [REPEATED]))[3, 0].label == label


def test_a_head_that_rests_where_nothing_repeats_is_still_an_induction_head() -> None:
    pattern = attending({"induction": 0.9}, REPEATED)
    pattern[:21] = 0
    pattern[:21, 0] = 1  # all of the first copy rests
    head = by_head(made_run({"a": Hook(LAYER, [steps_of(pattern[None, None], 41)])}, [REPEATED]))[3, 0]
    assert head.first > head.chance
    assert (head.label, head.label_score) == ("induction", head.induction_score)


@pytest.mark.parametrize("period", [1, 2])
def test_a_previous_token_head_is_no_induction_head_in_a_loop(period: int) -> None:
    ids = [0, *([1, 2][:period] * 30)]
    pattern = attending({"previous": 0.9}, ids)[None, None]
    head = by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, len(ids))])}, [ids]))[3, 0]
    assert head.label == "previous_token"


def test_uniform_attention_has_the_score_of_chance_and_no_label_in_any_prompt() -> None:
    for seed in range(5):
        ids = ids_of(40, seed, vocabulary=3)
        pattern = attending({}, ids)[None, None]
        head = by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, 40)])}, [ids]))[3, 0]
        assert head.label == "none"
        assert head.strength == pytest.approx(0, abs=1e-6)


def test_attention_that_looks_ahead_is_compared_with_all_keys() -> None:
    pattern = torch.full((1, 1, 30, 30), 1 / 30)
    head = by_head(made_run({"a": Hook("encoder.layer.3.attention", [[(0, pattern)]])}))[3, 0]
    assert (head.label, head.previous) == ("none", pytest.approx(1 / 30))
    assert head.strength == pytest.approx(0, abs=1e-6)


def test_few_queries_give_no_label() -> None:
    ids = [0, 1, 2, 3, 1]
    pattern = attending({"previous": 0.9}, ids)[None, None]
    assert by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, 5)])}, [ids]))[3, 0].label == "unknown"


def test_a_short_list_of_weights_leaves_open_what_it_leaves_open() -> None:
    """Of two weights of 0.1 nothing is known of the rest: it may all be on one kind."""
    steps = [(0, torch.full((1, 1, 12, 2), 0.1))]
    indices = [torch.arange(2, dtype=torch.int32).expand(1, 1, 12, 2)]
    run = made_run({"t": Hook(LAYER, [steps], reduction="top_k", indices=[indices])}, [ids_of(12, 1)])
    assert by_head(run)[3, 0].label == "unknown"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    pattern, ids = causal(2, 12, seed=3).to(dtype), ids_of(12, 3)
    found = by_head(made_run({"a": Hook(LAYER, [steps_of(pattern, 12)])}, [ids]))
    for head in (0, 1):
        assert_scores(found[3, head], naive_scores([(pattern[0, head].double().numpy(), ids)]))


def attended_naively(weights: np.ndarray[Any, Any], top: int) -> list[int]:
    return sorted(range(1, len(weights)), key=lambda key: (-weights[key], key))[:top]


def test_what_each_new_token_was_chosen_from() -> None:
    pattern, other = causal(2, 10, seed=1), causal(3, 10, seed=2)
    ids = ids_of(11, seed=1)
    hooks = {"a": Hook(LAYER, [steps_of(pattern, 6)]), "b": Hook("model.layers.4.self_attn", [steps_of(other, 6)])}
    result = attention(made_run(hooks, [ids], prompt_tokens=6), top=3)
    mean = (pattern[0].mean(0) + other[0].mean(0)).numpy() / 2
    assert [each.query for each in result.attended] == [5, 6, 7, 8, 9]
    for each in result.attended:
        row = mean[each.query][: each.query + 1]
        assert (each.read, each.chosen) == (f"t{ids[each.query]}", f"t{ids[each.query + 1]}")
        assert each.first_token == pytest.approx(row[0], abs=1e-6)
        assert each.positions == attended_naively(row, 3)
        assert each.weights == pytest.approx([row[key] for key in each.positions], abs=1e-6)
        assert each.texts == [f"t{ids[key]}" for key in each.positions]
    assert result.attended_over == "mean over the captured heads of 2 layers"


def test_a_query_that_one_layer_lacks_is_left_out_of_the_mean() -> None:
    pattern = causal(2, 10, seed=1)
    part = Hook("model.layers.4.self_attn", [[(0, pattern[:, :, :8].contiguous())]])
    result = attention(
        made_run({"a": Hook(LAYER, [steps_of(pattern, 6)]), "b": part}, [ids_of(11, 1)], prompt_tokens=6)
    )
    assert [each.query for each in result.attended] == [5, 6, 7]


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_reductions_over_heads_say_what_was_attended_and_nothing_of_heads(reduction: str) -> None:
    pattern, ids = causal(3, 9, seed=3), ids_of(10, seed=3)
    whole = pattern.mean(1) if reduction == "mean" else pattern.amax(1)
    steps = [(start, tensor[:, 0]) for start, tensor in steps_of(whole[:, None], 5)]
    result = attention(made_run({"m": Hook(LAYER, [steps], reduction=reduction)}, [ids], prompt_tokens=5))
    assert result.heads == []
    assert "single ones" in result.notes[0]
    assert "--hook" in result.notes[0]
    for each in result.attended:
        row = whole[0, each.query, : each.query + 1].numpy()
        assert each.positions == attended_naively(row, 5)
        assert each.first_token == pytest.approx(row[0], abs=1e-6)
    assert [table.title for table in result.tables()] == ["What each new token was chosen from"]
    assert result.notes[0] in result.tables()[0].note


def test_one_head_can_be_asked_for() -> None:
    pattern, ids = causal(2, 10, seed=1), ids_of(11, seed=1)
    run = made_run({"a": Hook(LAYER, [steps_of(pattern, 6)], heads=[4, 1])}, [ids], prompt_tokens=6)
    result = attention(run, layer=3, head=1)
    assert result.attended[2].first_token == pytest.approx(float(pattern[0, 1, 7, 0]), abs=1e-6)
    assert result.attended_over == "head 1 of layer 3"
    for layer, head in ((3, 0), (2, 1)):
        with pytest.raises(RunError, match=f"attention of layer {layer} head {head}: capture it with --hook"):
            attention(run, layer=layer, head=head)


def test_listed_weights_say_what_was_attended() -> None:
    pattern, ids = causal(2, 10, seed=1), ids_of(11, seed=1)
    weights, indices = top_k(pattern, 6, 2)
    hook = Hook(LAYER, [weights], reduction="top_k", indices=[indices])
    result = attention(made_run({"t": hook}, [ids], prompt_tokens=6), head=1)
    for each in result.attended:
        row = pattern[0, 1, each.query].numpy()
        kept = np.argsort(-row)[:2]
        assert each.positions == [key for key in kept if key != 0]
        assert each.first_token == pytest.approx(row[0] if 0 in kept else 0.0, abs=1e-6)
    assert "that the run lists" in result.attended_over


def test_a_row_that_is_no_number_lists_nothing() -> None:
    pattern = causal(1, 8, seed=1)
    pattern[0, 0, 6, 2] = float("nan")
    result = attention(made_run({"a": Hook(LAYER, [steps_of(pattern, 6)])}, [ids_of(9, 1)], prompt_tokens=6))
    broken = next(each for each in result.attended if each.query == 6)
    assert math.isnan(broken.first_token)
    assert (broken.positions, broken.weights) == ([], [])


def test_heads_and_steps_of_several_hooks_on_a_layer_are_in_the_mean_of_what_was_attended() -> None:
    pattern, ids = causal(4, 9, seed=3), ids_of(10, seed=3)
    whole = attention(made_run({"a": Hook(LAYER, [steps_of(pattern, 6)])}, [ids], prompt_tokens=6)).attended
    by_head = {str(heads): Hook(LAYER, [steps_of(pattern[:, heads], 6)], heads=heads) for heads in ([2, 0], [3, 2, 1])}
    steps = steps_of(pattern, 6)
    by_step = {"prefill": Hook(LAYER, [steps[:1]]), "decode": Hook(LAYER, [steps[1:]])}
    for hooks in (by_head, by_step):
        found = attention(made_run(hooks, [ids], prompt_tokens=6))
        assert found.attended_over == "mean over the captured heads"
        assert [each.query for each in found.attended] == [5, 6, 7, 8]
        for mine, theirs in zip(found.attended, whole, strict=True):
            assert mine.positions == theirs.positions
            np.testing.assert_allclose(mine.weights, theirs.weights, rtol=1e-6)


def test_one_prompt_can_be_asked_for() -> None:
    patterns, ids = [causal(2, 9, seed=seed) for seed in (1, 2)], [ids_of(10, 1), ids_of(10, 2)]
    both = made_run({"a": Hook(LAYER, [steps_of(each, 6) for each in patterns])}, ids, prompt_tokens=6)
    alone = made_run({"a": Hook(LAYER, [steps_of(patterns[1], 6)])}, ids[1:], prompt_tokens=6)
    found, wanted = attention(both, prompt=1), attention(alone)
    assert found.heads == wanted.heads
    assert [each.prompt for each in found.attended] == [1] * len(wanted.attended)
    with pytest.raises(RunError, match="this run holds no prompt 2; its prompts are 0, 1"):
        attention(both, prompt=2)
    with pytest.raises(RunError, match="holds no row 1"):
        attention(both, row=1)
