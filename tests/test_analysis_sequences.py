"""The sequences of a run: the same values as a forward of that sequence alone, whatever it was batched with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from neuroscope_fast.analysis import sequences
from neuroscope_fast.analysis.position_blocks import PositionBlocks, position_of, sequence_of
from neuroscope_fast.analysis.results import encode
from neuroscope_fast.analysis.tables import cell_text
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel

TEXTS = ["Recursion is", "When Mary and John went to the store, John", "A"]
LAYER = "model.layers.5"
HOOKS: list[Any] = [
    f"{LAYER}:residual",
    f"{LAYER}.self_attn:attention_pattern",
    f"{LAYER}.self_attn:head_output",
    "model.embed_tokens:embedding",
    *(
        {
            "layer_name": f"{LAYER}.self_attn",
            "component": "attention_pattern",
            "reduction": reduction,
            "hook_id": reduction,
        }
        for reduction in ("entropy", "mean", "top_k")
    ),
    {"layer_name": f"{LAYER}.self_attn", "component": "attention_pattern", "heads": [3, 1], "hook_id": "two"},
    {"layer_name": "model.embed_tokens", "component": "embedding", "capture_input": True, "hook_id": "ids"},
    {"layer_name": f"{LAYER}", "component": "residual", "positions": "last", "hook_id": "last"},
]
PATTERN, HEADS, RESIDUAL = (
    f"{LAYER}.self_attn_attention_pattern",
    f"{LAYER}.self_attn_head_output",
    f"{LAYER}_residual",
)


@pytest.fixture(scope="module")
def demo() -> tuple[nn.Module, Any]:
    torch.set_num_threads(1)
    return nsf.demo.load()


def padded(demo: tuple[nn.Module, Any], side: str, steps: int = 3) -> nsf.Run:
    """A batch that is padded on one side, and some tokens decoded behind it."""
    model, tokenizer = demo
    tokenizer.padding_side = side
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with nsf.capture(model, HOOKS) as cap:
        if side == "left":
            model.generate(**batch, max_new_tokens=steps, min_new_tokens=steps, do_sample=False)  # type: ignore[operator]
        else:
            model(**batch)
    return cap.result


@pytest.fixture(scope="module")
def alone(demo: tuple[nn.Module, Any]) -> list[nsf.Run]:
    model, tokenizer = demo
    return [nsf.generate(model, text, HOOKS, tokenizer=tokenizer, max_new_tokens=3, ignore_eos=True) for text in TEXTS]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", range(3))
def test_a_padded_row_is_the_sequence_alone(
    demo: tuple[nn.Module, Any], alone: list[nsf.Run], side: str, row: int
) -> None:
    run = padded(demo, side)
    assert sequences.rows(run, 0) == 3
    for hook_id in (RESIDUAL, HEADS, "entropy"):
        mine, theirs = sequences.join(run, hook_id, 0, row), sequences.join(alone[row], hook_id)
        count = len(theirs.positions) if side == "left" else len(sequences.join(run, hook_id, 0, row).positions)
        assert mine.positions.tolist() == list(range(count))
        np.testing.assert_allclose(mine.values, theirs.values[:count], atol=2e-3, rtol=1e-3)
    for hook_id in (PATTERN, "two", "mean"):
        found, wanted = sequences.pattern(run, hook_id, 0, row), sequences.pattern(alone[row], hook_id)
        count = len(found.queries)
        assert found.heads == wanted.heads
        assert found.queries.tolist() == list(range(count))
        assert found.weights.shape[1:] == (count, count)
        np.testing.assert_allclose(found.weights, wanted.weights[:, :count, :count], atol=1e-4)
        np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-5)
    ids = sequences.tokens(alone[row]).ids
    read = sequences.tokens(run, 0, row)
    assert read.ids == ids[: len(read.ids)]
    assert len(read.ids) >= len(demo[1](TEXTS[row])["input_ids"])


def test_the_tokens_of_a_generation(alone: list[nsf.Run]) -> None:
    tokens = sequences.tokens(alone[0])
    assert tokens.prompt_tokens == 3
    assert tokens.texts[:3] == ["<|bos|>", "Recursion", " is"]
    assert len(tokens.ids) == len(tokens.texts) == 6
    # The last is chosen and not read.
    assert sequences.join(alone[0], RESIDUAL).positions.tolist() == [0, 1, 2, 3, 4]


def test_selected_positions_keep_their_numbers(alone: list[nsf.Run]) -> None:
    assert sequences.join(alone[0], "last").positions.tolist() == [2, 3, 4]


def test_which_hooks_there_are(alone: list[nsf.Run]) -> None:
    run = alone[0]
    assert [each.hook_id for each in sequences.find(run, "attention_pattern")] == [PATTERN]
    assert [each.hook_id for each in sequences.find(run, "attention_pattern", reduction="top_k")] == ["top_k"]
    assert sequences.find(run, "residual")[0].layer == 5
    assert sequences.find(run, "mlp") == []
    assert sequences.layers_pattern(run) == "model.layers.*"
    error = sequences.missing("the logit lens", ["model.layers.*:residual", "lm_head:logits"])
    assert str(error) == (
        "this run does not hold what the logit lens needs: capture it with --hook 'model.layers.*:residual' "
        "--hook 'lm_head:logits'"
    )


def test_several_prompts_and_bfloat16_on_disk(tmp_path: Path) -> None:
    run = nsf.generate("demo", TEXTS, HOOKS[:3], tmp_path / "run", max_new_tokens=2, capture_dtype="bfloat16")
    assert sequences.prompt_numbers(run) == [0, 1, 2]
    for prompt in range(3):
        joined = sequences.join(run, RESIDUAL, prompt)
        assert joined.values.dtype == np.float32
        assert len(joined.positions) == len(sequences.tokens(run, prompt).ids) - 1
        expected = run[RESIDUAL].where(prompt=prompt).cat()[0].float().numpy()
        np.testing.assert_array_equal(joined.values, expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: sequences.join(run, RESIDUAL, 3), "holds nothing of prompt 3, row 0"),
        (lambda run: sequences.join(run, RESIDUAL, 0, 1), "there is no row 1"),
        (lambda run: sequences.join(run, PATTERN), "tensors of the whole cache"),
        (lambda run: sequences.pattern(run, RESIDUAL), "holds no attention patterns"),
        (lambda run: sequences.pattern(run, "top_k"), "holds no attention patterns"),
        (lambda run: sequences.join(run, "nowhere"), "has no hook 'nowhere'"),
    ],
)
def test_what_there_is_not(alone: list[nsf.Run], call: Any, said: str) -> None:
    with pytest.raises(nsf.RunError, match=said):
        call(alone[0])


def test_two_sequences_under_one_prompt(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    with nsf.capture(llama, "model.layers.0:residual") as cap:
        llama(**tokens)
        llama(**tokens)
    with pytest.raises(nsf.RunError, match="call next_prompt"):
        sequences.join(cap.result, "model.layers.0_residual")
    assert sequences.tokens(cap.result).texts == [str(number) for number in range(7)]


def test_results_as_json() -> None:
    import msgspec

    class Result(msgspec.Struct):
        values: np.ndarray[Any, Any]
        one: Any
        name: str = "<x>"

    result = Result(np.array([[1.5, np.nan], [np.inf, -0.0]]), np.float32(2))
    assert msgspec.json.decode(encode(result)) == {"values": [[1.5, None], [None, 0.0]], "one": 2.0, "name": "<x>"}
    assert [cell_text(cell) for cell in (None, float("nan"), 0.12345, 7, "a")] == ["-", "-", "0.123", "7", "a"]


@pytest.mark.parametrize("chosen", [{"positions": "last"}, {"phase": "decode"}, {"positions": "2:"}, {"every": 2}])
def test_padding_is_left_out_of_positions_where_no_hook_holds_the_whole_prefill(
    demo: tuple[nn.Module, Any], alone: list[nsf.Run], chosen: dict[str, Any], tmp_path: Path
) -> None:
    model, tokenizer = demo
    tokenizer.padding_side = "left"
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    hooks = [
        {"layer_name": LAYER, "component": "residual", "hook_id": "stream", **chosen},
        {"layer_name": f"{LAYER}.self_attn", "component": "attention_pattern", "hook_id": "pattern", **chosen},
    ]
    with nsf.capture(model, hooks, out=tmp_path / "run"):
        model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)  # type: ignore[operator]
    run = nsf.open(tmp_path / "run")
    for row in range(3):
        whole, mine = sequences.join(alone[row], RESIDUAL), sequences.join(run, "stream", 0, row)
        assert mine.positions[-1] == whole.positions[-1]
        np.testing.assert_allclose(mine.values, whole.values[mine.positions], atol=2e-3, rtol=1e-3)
        found, wanted = sequences.pattern(run, "pattern", 0, row), sequences.pattern(alone[row], PATTERN)
        size = found.weights.shape[2]
        np.testing.assert_allclose(found.weights, wanted.weights[:, found.queries, :size], atol=1e-4)
        keys = [key for block in PositionBlocks(run, "stream") for key in block.keys if sequence_of(key) == row]
        assert [int(position_of(key)) for key in keys] == mine.positions.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_of_an_encoder_is_not_that_of_the_decoder(side: str) -> None:
    torch.manual_seed(0)
    sizes = {
        f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 16))
    }
    config = BartConfig(d_model=16, vocab_size=32, max_position_embeddings=32, forced_eos_token_id=None, **sizes)
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    model = BartForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 22, 1, 1, 1] if side == "right" else [1, 1, 1, 20, 21, 22]])
    decoder_ids = torch.tensor([[2, 3, 4, 5, 6], [2, 7, 8, 9, 10]])
    hooks = [
        {"layer_name": f"model.{stack}.layers.0", "component": "residual", "hook_id": stack + which, "positions": which}
        for stack in ("encoder", "decoder")
        for which in ("all", "1:")
    ]
    with nsf.capture(model, hooks) as cap:
        model(input_ids=ids, attention_mask=(ids != 1).long(), decoder_input_ids=decoder_ids)
    first = 1 if side == "right" else 0
    assert sequences.join(cap.result, "encoderall", 0, 1).positions.tolist() == [0, 1, 2]
    assert sequences.join(cap.result, "encoder1:", 0, 1).positions.tolist() == [0, 1, 2][first:]
    assert sequences.join(cap.result, "decoderall", 0, 1).positions.tolist() == [0, 1, 2, 3, 4]
    assert sequences.join(cap.result, "decoder1:", 0, 1).positions.tolist() == [1, 2, 3, 4]


def test_chosen_queries_of_an_encoder_keep_the_keys_behind_them() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32)
    model = BertModel(config).eval()
    hooks = [
        {
            "layer_name": "encoder.layer.0.attention.self",
            "component": "attention_pattern",
            "hook_id": str(name),
            "positions": name,
        }
        for name in ("all", "1:3")
    ]
    with nsf.capture(model, hooks) as cap:
        model(torch.tensor([[5, 6, 7, 8, 9, 10]]))
    whole, chosen = sequences.pattern(cap.result, "all"), sequences.pattern(cap.result, "1:3")
    assert chosen.queries.tolist() == [1, 2]
    np.testing.assert_array_equal(chosen.weights, whole.weights[:, 1:3])


@pytest.mark.parametrize("chosen", [{"phase": "decode"}, {"every": 2}])
def test_token_ids_of_some_passes_are_not_those_of_the_sequence(
    demo: tuple[nn.Module, Any], chosen: dict[str, Any]
) -> None:
    model, _ = demo
    ids: dict[str, Any] = {"layer_name": "model.embed_tokens", "component": "embedding", "capture_input": True}
    with nsf.capture(model, [{**ids, "capture_output": False, "hook_id": "ids", **chosen}, f"{LAYER}:residual"]) as cap:
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)  # type: ignore[operator]
    assert sequences.tokens(cap.result) == sequences.Tokens([], ["0", "1", "2", "3", "4", "5"], 3)


def test_keys_of_a_cache_that_holds_a_window_are_positions() -> None:
    model = architectures.build("mistral")  # a window of four
    hook = {"layer_name": "model.layers.*.self_attn", "component": "attention_pattern"}
    with nsf.capture(
        model, [{**hook, "hook_id": "whole"}, {**hook, "reduction": "top_k", "top_k": 3, "hook_id": "t"}]
    ) as cap:
        ids = architectures.inputs("mistral", batch=1, length=3)["input_ids"]
        model.generate(ids, max_new_tokens=9, min_new_tokens=9, do_sample=False)  # type: ignore[operator]
    for layer in range(2):
        whole = sequences.pattern(cap.result, f"whole.{layer}")
        found = sequences.listed(cap.result, f"t.{layer}")
        assert whole.weights.shape[1:] == (11, 11)
        for head in range(len(whole.heads)):
            for query in range(11):
                seen = min(query + 1, 4)
                expected = np.argsort(-whole.weights[head, query], kind="stable")[: min(3, seen)]
                assert found.keys[head, query, : len(expected)].tolist() == expected.tolist()
                np.testing.assert_allclose(
                    found.weights[head, query, : len(expected)], whole.weights[head, query, expected], atol=1e-6
                )
