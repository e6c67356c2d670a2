"""The embedded demo model: its size, its heads, what it says, and that it loads and generates without a
warning."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast import demo
from neuroscope_fast.demo import scores, train
from neuroscope_fast.demo.batches import IGNORED, RepeatRows, TextRows

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    Loaded = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]

FRESH_SEEDS = (20_250_818, 77)  # far from the seeds of training and of its report


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """The model as users load it, and its tokenizer."""
    return demo.load()


@pytest.fixture(scope="module")
def eager() -> LlamaForCausalLM:
    """The model with attention that returns its weights."""
    return demo.load(attn_implementation="eager")[0]


def continuation(loaded: Loaded, prompt: str, tokens: int = 30) -> str:
    model, tokenizer = loaded
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_files_are_small_and_complete() -> None:
    names = {file.name for file in demo.path().iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (demo.path() / "model.safetensors").stat().st_size <= 2 * 1024 * 1024


def test_loads_in_eval_mode_as_float32(loaded: Loaded) -> None:
    model, tokenizer = loaded
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.num_hidden_layers >= 11
    assert model.config.max_position_embeddings >= 512
    assert len(tokenizer) == model.config.vocab_size


def test_loads_in_another_dtype() -> None:
    model, _ = demo.load(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("seed", FRESH_SEEDS)
def test_has_an_induction_head(eager: LlamaForCausalLM, seed: int) -> None:
    assert scores.best_head(scores.induction_scores(eager, seed=seed)).weight >= 0.5


@pytest.mark.parametrize("seed", FRESH_SEEDS)
def test_has_a_previous_token_head(eager: LlamaForCausalLM, seed: int) -> None:
    assert scores.best_head(scores.previous_token_scores(eager, seed=seed)).weight >= 0.5


def test_copies_repeated_sequences(loaded: Loaded) -> None:
    assert scores.copy_accuracy(loaded[0], seed=FRESH_SEEDS[0]) >= 0.8


def test_scores_refuse_attention_without_weights(
    loaded: Loaded,
) -> None:
    with pytest.raises(ValueError, match="eager"):
        scores.induction_scores(loaded[0], sequences=1)


def test_repeated_sequences_repeat_once_with_a_period_of_their_own(eager: LlamaForCausalLM) -> None:
    tokens, periods = scores.repeated_sequences(eager, sequences=100, seed=1)
    assert len(periods.unique()) > 20
    for row, period in zip(tokens, periods.tolist(), strict=True):
        assert row[0] == eager.config.bos_token_id
        assert row[1 : 1 + period].equal(row[1 + period : 1 + 2 * period])
        assert (row[1 + 2 * period :] == eager.config.pad_token_id).all()
    assert not scores.repeated_sequences(eager, sequences=100, seed=2).tokens.equal(tokens)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Recursion is", r"^ a method where a function calls itself\. For instance, a factorial function\."),
        ("When Mary and John went to the store, John gave a drink to", r"^ Mary\."),
        ("The capital of France is", r"^ Paris\."),
        ("User: What is recursion?\nAssistant:", r"^ Recursion is .*a function calls itself"),
    ],
)
def test_continues_its_own_domain(loaded: Loaded, prompt: str, expected: str) -> None:
    assert re.search(expected, continuation(loaded, prompt))


def test_the_documented_prompt_fills_thirty_tokens(
    loaded: Loaded,
) -> None:
    model, tokenizer = loaded
    inputs = tokenizer("Recursion is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=30)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 30


def test_a_passage_ends(loaded: Loaded) -> None:
    model, tokenizer = loaded
    output = model.generate(**tokenizer("Recursion is", return_tensors="pt"), max_new_tokens=200)
    assert output[0, -1] == tokenizer.eos_token_id


def test_left_padding_changes_no_continuation(
    loaded: Loaded,
) -> None:
    model, tokenizer = loaded
    prompts = ["Recursion is", "When Mary and John went to the store, John gave a drink to"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**inputs, max_new_tokens=12)
    batched = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert batched == [continuation(loaded, prompt, tokens=12) for prompt in prompts]


def test_chat_template_is_the_form_the_model_was_trained_on(
    loaded: Loaded,
) -> None:
    _, tokenizer = loaded
    messages = [
        {"role": "user", "content": "What is recursion?"},
        {"role": "assistant", "content": "Recursion is code."},
        {"role": "user", "content": "Thank you."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|bos|>User: What is recursion?\nAssistant: Recursion is code.<|eos|>\nUser: Thank you.\nAssistant:"
    )
    ids = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer("User: What is recursion?\nAssistant:")["input_ids"]


# Text that spells a special token is that token, as in every tokenizer of transformers: "<|" is left out
# here.
@given(text=st.text().filter(lambda text: "<|" not in text))
def test_tokenizer_round_trips_any_text(loaded: Loaded, text: str) -> None:
    _, tokenizer = loaded
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_of_the_domain_are_single_tokens(
    loaded: Loaded,
) -> None:
    _, tokenizer = loaded
    prompt = "When Mary and John went to the store, John gave a drink to"
    assert tokenizer.tokenize(prompt) == [word.replace(" ", "Ġ") for word in re.findall(r" ?\w+|,", prompt)]


def test_repeat_rows_label_only_what_the_row_determines() -> None:
    tokens, labels = RepeatRows(vocabulary=1000, seed=0).batch(rows=64, length=96, longest_period=20)
    labelled = labels != IGNORED
    assert labels[labelled].equal(tokens[labelled])
    assert 0.3 < labelled.float().mean() < 0.9
    for row, mask in zip(tokens.tolist(), labelled.tolist(), strict=True):
        for place in (place for place, wanted in enumerate(mask) if wanted):
            assert (row[place - 1], row[place]) in set(pairwise(row[:place]))


def test_text_rows_are_the_same_for_the_same_seed(
    loaded: Loaded,
) -> None:
    _, tokenizer = loaded
    first, again, other = (TextRows(tokenizer, seed).batch(4, 64).tokens for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)


def test_training_replaces_no_model_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    assert train.main(["--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
