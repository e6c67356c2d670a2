"""Head scores on real models: the embedded one, whose heads are known, and TransformerLens on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import neuroscope_fast as nsf
import numpy as np
import pytest
import tiny_models
import torch
from attention_runs import MASSES, SPECIFIC, naive_scores
from neuroscope_fast import demo
from neuroscope_fast.analysis.attention import AttentionPatterns, HeadScore, attention
from neuroscope_fast.demo import scores
from neuroscope_fast.reader import Run

EVERY = "model.layers.*:attention_pattern"
TEXTS = (
    "Mary has a red ball. Tom has a blue hat. Mary has a red ball. Tom has a blue hat.",
    "The cat sat on the mat. The dog sat on the log. The cat sat on the mat. The dog sat on the log.",
    "A loop repeats a block of code. A list holds many items. A loop repeats a block of code. A list holds many items.",
)


@pytest.fixture(scope="module")
def loaded() -> Any:
    return demo.load()


@pytest.fixture(scope="module")
def eager() -> Any:
    return demo.load(attn_implementation="eager")[0]


def captured(model: Any, sequences: list[list[int]], hooks: Any = EVERY, **options: Any) -> Run:
    """One forward pass for each sequence, and its tokens told."""
    with torch.no_grad(), nsf.capture(model, hooks, **options) as cap:
        for number, ids in enumerate(sequences):
            if number:
                cap.next_prompt()
            model(torch.tensor([ids]), use_cache=False)
            cap.add_generation("", "", prompt_tokens=len(ids), completion_tokens=0, token_ids=ids)
    return cap.result


def place(head: HeadScore | scores.BestHead) -> tuple[int | None, int]:
    return head.layer, head.head


def repeats(model: Any, sequences: int, seed: int) -> list[list[int]]:
    tokens, periods = scores.repeated_sequences(model, sequences, seed)
    return [row[: 1 + 2 * int(period)].tolist() for row, period in zip(tokens, periods, strict=True)]


def by_place(result: AttentionPatterns) -> dict[tuple[int | None, int], HeadScore]:
    return {place(head): head for head in result.heads}


def test_the_heads_that_the_models_own_test_finds_are_ranked_first(loaded: Any, eager: Any) -> None:
    result = attention(captured(loaded[0], repeats(loaded[0], 40, seed=991)))
    induction = scores.induction_scores(eager, seed=20_250_818)
    previous = scores.previous_token_scores(eager, seed=20_250_818)

    best = result.ranked("induction_score")[0]
    assert place(best) == place(scores.best_head(induction))
    assert best.label == "induction"
    assert best.induction_score > 0.9
    assert best.chance < 0.1
    # Several heads look at the token before with 0.999 and more: which is first is a matter of the prompts.
    best = result.ranked("previous_token_score")[0]
    assert float(previous[best.layer, best.head]) == pytest.approx(float(previous.max()), abs=1e-3)
    assert best.label == "previous_token"

    for (layer, head), found in by_place(result).items():
        assert found.induction_score == pytest.approx(float(induction[layer, head]), abs=0.03)
        assert found.previous_token_score == pytest.approx(float(previous[layer, head]), abs=0.03)
    assert {head.label for head in result.ranked("induction_score")[:5]} == {"induction"}


def test_on_text_that_repeats_itself_they_are_ranked_first_too(loaded: Any, eager: Any) -> None:
    """Which of the model's several induction heads is the very first is a matter of the text."""
    model, tokenizer = loaded
    induction, previous = scores.induction_scores(eager, seed=5), scores.previous_token_scores(eager, seed=5)
    result = attention(captured(model, [tokenizer(text)["input_ids"] for text in TEXTS]))
    first = result.ranked("induction_score")[:5]
    assert all(float(induction[head.layer, head.head]) > 0.9 for head in first)
    assert {head.label for head in first} == {"induction"}
    assert place(scores.best_head(induction)) in [place(head) for head in first]
    for head in result.ranked("previous_token_score")[:3]:
        assert float(previous[head.layer, head.head]) > 0.99
        assert head.label == "previous_token"


def test_a_generation_gives_the_scores_of_one_pass_over_all_it_read(loaded: Any, eager: Any) -> None:
    """Prefill and decode joined: the same numbers as plain loops over what eager attention returns."""
    model, tokenizer = loaded
    run = nsf.generate(
        model, ["Recursion is", "The capital of France is"], [EVERY], tokenizer=tokenizer, max_new_tokens=12
    )
    result = attention(run)
    sequences = []
    for entry in run.prompts:
        ids = list(entry.texts[0].token_ids)
        patterns = eager(torch.tensor([ids[:-1]]), output_attentions=True, use_cache=False).attentions
        sequences.append((torch.cat(patterns), ids))
    assert len(result.heads) == 48
    for head in result.heads:
        expected = naive_scores(
            [(patterns[head.layer, head.head].double().numpy(), ids) for patterns, ids in sequences]
        )
        for name in (*MASSES, *SPECIFIC):
            assert getattr(head, name) == pytest.approx(expected[name], abs=2e-5, nan_ok=True)
    assert [each.prompt for each in result.attended] == [0] * 12 + [1] * 12
    patterns, ids = sequences[1]
    for each in result.attended[12:]:
        mean = patterns.mean((0, 1))[each.query].numpy()
        assert each.chosen == tokenizer.decode([ids[each.query + 1]])
        assert each.first_token == pytest.approx(float(mean[0]), abs=2e-5)
        assert each.positions[0] == 1 + int(np.argmax(mean[1:]))


def only(run: Run, hook_ids: list[str]) -> Run:
    """A run that holds these hooks alone."""
    kept = {hook_id: records for hook_id, records in run.metadata.activations.items() if hook_id in hook_ids}
    return Run(msgspec.structs.replace(run.metadata, activations=kept), run.manifest, run._source, prompts=run.prompts)


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (("entropy", "sink", "previous"), ("entropy", "first", "previous", "previous_token_score")),
        (("top_k",), (*MASSES, *SPECIFIC)),
    ],
)
def test_reductions_captured_without_the_pattern_give_the_same_scores(
    loaded: Any, names: tuple[str, ...], fields: tuple[str, ...]
) -> None:
    model, tokenizer = loaded
    place_of = {"layer_name": "model.layers.*", "component": "attention_pattern"}
    more = [
        {**place_of, "hook_id": name, "reduction": name, **({"top_k": 60} if name == "top_k" else {})} for name in names
    ]
    run = nsf.generate(model, list(TEXTS[:2]), [EVERY, *more], tokenizer=tokenizer, max_new_tokens=8)
    whole = by_place(attention(only(run, [hook for hook in run if hook.endswith("_attention_pattern")])))
    part = by_place(attention(only(run, [hook for hook in run if hook.split(".")[0] in names])))
    assert part.keys() == whole.keys()
    for where, head in part.items():
        assert not head.lower_bound
        for field in fields:
            assert getattr(head, field) == pytest.approx(getattr(whole[where], field), abs=1e-5), field


def test_the_mean_over_heads_says_the_same_of_what_was_attended(loaded: Any) -> None:
    model, tokenizer = loaded
    mean = {"layer_name": "model.layers.*", "component": "attention_pattern", "hook_id": "mean", "reduction": "mean"}
    run = nsf.generate(model, [TEXTS[0]], [EVERY, mean], tokenizer=tokenizer, max_new_tokens=6)
    whole = attention(only(run, [hook for hook in run if hook.endswith("_attention_pattern")])).attended
    part = attention(only(run, [hook for hook in run if hook.startswith("mean")])).attended
    assert len(part) == 6
    for one, other in zip(part, whole, strict=True):
        assert (one.query, one.read, one.chosen, one.positions) == (
            other.query,
            other.read,
            other.chosen,
            other.positions,
        )
        assert one.weights == pytest.approx(other.weights, abs=1e-6)
        assert one.first_token == pytest.approx(other.first_token, abs=1e-6)


@pytest.mark.parametrize("reduction", [None, "top_k"])
def test_padded_rows_of_a_batch_have_the_scores_that_they_have_alone(loaded: Any, reduction: str | None) -> None:
    model, tokenizer = loaded
    ids = [tokenizer(text)["input_ids"] for text in (TEXTS[1], "Tom has a blue hat. The hat of Tom is")]
    longest = max(map(len, ids))
    padded = torch.tensor([[model.config.pad_token_id] * (longest - len(each)) + each for each in ids])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids])
    hook = {"layer_name": "model.layers.*", "component": "attention_pattern", "reduction": reduction}
    hook |= {"top_k": 64} if reduction else {}
    with torch.no_grad(), nsf.capture(model, hook) as cap:
        written = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None
        )
        sequences = [row[longest - len(each) :].tolist() for row, each in zip(written, ids, strict=True)]
        for each, sequence in zip(ids, sequences, strict=True):
            cap.add_generation("", "", prompt_tokens=len(each), completion_tokens=5, token_ids=sequence)
    together = by_place(attention(cap.result))
    alone = by_place(attention(captured(model, [sequence[:-1] for sequence in sequences])))
    for where, head in alone.items():
        for name in (*MASSES, *SPECIFIC, "queries", "induction_queries", "duplicate_queries"):
            assert getattr(together[where], name) == pytest.approx(getattr(head, name), abs=1e-4), name


def test_a_run_on_disk_in_bfloat16_finds_the_same_heads(loaded: Any, tmp_path: Path) -> None:
    model, tokenizer = loaded
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    exact = attention(captured(model, ids))
    captured(model, ids, out=tmp_path / "run", dtype="bfloat16")
    rounded = by_place(attention(nsf.open(tmp_path / "run")))
    for head in exact.heads:
        assert rounded[place(head)].induction_score == pytest.approx(head.induction_score, abs=4e-3)
    assert sum(rounded[place(head)].label != head.label for head in exact.heads) <= 1


def test_grouped_heads_are_counted_by_query_heads() -> None:
    """Two heads share one key head: each has a pattern of its own."""
    model = tiny_models.llama()
    ids = [0, *range(3, 23), *range(3, 23)]
    result = attention(captured(model, [ids]))
    model.set_attn_implementation("eager")
    patterns = torch.cat(model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions)
    assert patterns.shape[:2] == (12, 2)
    for (layer, head), found in by_place(result).items():
        expected = naive_scores([(patterns[layer, head].double().numpy(), ids)])
        for name in (*MASSES, *SPECIFIC):
            assert getattr(found, name) == pytest.approx(expected[name], abs=2e-5)


def test_transformer_lens_scores_the_same_weights_the_same(tmp_path: Path) -> None:
    """Its detection patterns divide by all attention of a sequence, the first query's too; here the queries are those
    that have such a key. On tokens of which none stands twice within two places, the keys are the same.
    """
    pytest.importorskip("transformer_lens")
    from transformer_lens import head_detector
    from transformer_lens.model_bridge import TransformerBridge

    tiny_models.save(tmp_path)
    model = tiny_models.llama()
    ids = [0, *range(3, 23), *range(3, 23), *range(7, 20)]
    result = attention(captured(model, [ids]))
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu", dtype=torch.float32)
    _, cache = bridge.run_with_cache(torch.tensor([ids]), return_cache_object=False)
    tokens, size = torch.tensor([ids]), len(ids)
    detected = {
        "previous": (head_detector.get_previous_token_head_detection_pattern(tokens), lambda head: head.queries),
        "induction_score": (
            head_detector.get_induction_head_detection_pattern(tokens), lambda head: head.induction_queries
        ),
        "duplicate_token_score": (
            head_detector.get_duplicate_token_head_detection_pattern(tokens), lambda head: head.duplicate_queries
        ),
    }  # fmt: skip
    assert len(result.heads) == 24
    for found in result.heads:
        pattern = cache[f"blocks.{found.layer}.attn.hook_pattern"][0, found.head]
        for name, (kinds, queries) in detected.items():
            theirs = head_detector.compute_head_attention_similarity_score(
                pattern, kinds, exclude_bos=False, exclude_current_token=False, error_measure="mul"
            )
            assert getattr(found, name) * queries(found) / size == pytest.approx(theirs, abs=1e-4)
        rows = pattern[1:].double()
        assert found.entropy == pytest.approx(float(torch.special.entr(rows).sum(-1).mean()), abs=1e-4)
        assert found.first == pytest.approx(float(rows[:, 0].mean()), abs=1e-4)
        assert found.current == pytest.approx(float(pattern.diagonal()[1:].mean()), abs=1e-4)
