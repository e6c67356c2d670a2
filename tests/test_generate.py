"""`generate`: the main job in Python, on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import tiny_models
import torch
from conftest import hook_state
from neuroscope_fast.errors import CaptureError, HookError, ModelError, OptionError
from neuroscope_fast.generate import GenerationProgress, generate
from torch import nn

TOKENIZER = tiny_models.tokenizer()
PROMPT = "Recursion is"
LENGTH = 12  # its tokens
HOOK = "model.layers.2.self_attn:attention:attention_layer_2"


@pytest.fixture(scope="module")
def shared_model() -> nn.Module:
    return tiny_models.llama()


@pytest.fixture
def model(shared_model: nn.Module) -> Iterator[nn.Module]:
    before = hook_state(shared_model)
    yield shared_model
    assert hook_state(shared_model) == before


def plain_tokens(model: Any, text: str, **options: Any) -> list[int]:
    """What the model generates without a capture."""
    tokens = torch.tensor([TOKENIZER(text)["input_ids"]])
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    generated = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return list(generated[0, tokens.shape[1] :].tolist())


def captured_tokens(run: nsf.Run, prompt: int = 0) -> list[int]:
    """What it generated with one, by its logits: greedily chosen tokens are their maxima."""
    return [int(logits[0, -1].argmax()) for logits in run["logits"].where(prompt=prompt)]


def test_the_main_job(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model")
    run = generate(
        str(folder),
        PROMPT,
        [HOOK, "model.layers.10.self_attn:attention:attention_layer_10"],
        tmp_path / "run",
        max_new_tokens=8,
        analysis="attention_patterns",
        description="Analyze attention patterns across layers",
    )
    metadata = nsf.open(tmp_path / "run").metadata
    assert metadata == run.metadata
    assert metadata.hooks_used == 2
    assert list(metadata.activations) == ["attention_layer_2", "attention_layer_10"]
    for records in metadata.activations.values():
        assert [record.shape for record in records] == [[1, LENGTH, tiny_models.HIDDEN]] + [
            [1, 1, tiny_models.HIDDEN]
        ] * 7
    assert (metadata.usage.prompt_tokens, metadata.usage.completion_tokens, metadata.usage.total_tokens) == (12, 8, 20)
    assert run.manifest.model.name_or_path == str(folder)
    assert "unknown" not in (tmp_path / "run" / "circuit_analysis_attention_patterns_format.md").read_text()


def test_tokens_text_and_usage_are_those_of_the_model_alone(model: nn.Module) -> None:
    expected = plain_tokens(model, PROMPT)
    run = generate(model, PROMPT, [HOOK, "lm_head:logits:logits"], tokenizer=TOKENIZER, max_new_tokens=8)
    assert captured_tokens(run) == expected
    assert run.metadata.generated_text == TOKENIZER.decode(expected, skip_special_tokens=True)
    assert run.metadata.generations == []


def test_each_of_several_prompts_is_counted_from_0(model: nn.Module) -> None:
    prompts = [PROMPT, "A loop", [{"role": "user", "content": "Hello"}]]
    run = generate(model, prompts, "lm_head:logits:logits", tokenizer=TOKENIZER, max_new_tokens=4)
    for number, prompt in enumerate(prompts):
        steps = [record.step for record in run["logits"].where(prompt=number).records]
        assert steps == [0, 1, 2, 3]
        if isinstance(prompt, str):
            assert captured_tokens(run, number) == plain_tokens(model, prompt, max_new_tokens=4)
    texts = [generation.prompt for generation in run.metadata.generations]
    assert texts == [PROMPT, "A loop", "<s><user> Hello\n<assistant>"]
    usage = run.metadata.usage
    assert usage.prompt_tokens == sum(each.usage.prompt_tokens for each in run.metadata.generations)
    assert usage.completion_tokens == 12
    assert run.metadata.generated_text == "\n\n".join(each.generated_text for each in run.metadata.generations)


def test_a_seed_repeats_a_sample_and_leaves_torchs_random_numbers_alone(model: nn.Module) -> None:
    def sampled(seed: int | None, prompts: Any = PROMPT) -> nsf.Run:
        return generate(model, prompts, HOOK, tokenizer=TOKENIZER, max_new_tokens=8, temperature=2.0, seed=seed)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (sampled(seed).metadata.generated_text for seed in (7, 7, 8))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    both = sampled(7, [PROMPT, PROMPT]).metadata.generations
    assert [each.generated_text for each in both] == [first, other]  # prompt n has seed + n

    torch.manual_seed(7)
    tokens = plain_tokens(model, PROMPT, do_sample=True, temperature=2.0)
    assert TOKENIZER.decode(tokens, skip_special_tokens=True) == first

    state = torch.get_rng_state()
    sampled(None)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_model_samples_only_if_it_is_asked_to(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"do_sample": True, "temperature": 5.0, "num_beams": 3}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    expected = plain_tokens(model, PROMPT, num_beams=1)
    for options in ({}, {"temperature": 0}, {"do_sample": False}, {"seed": 3}):
        run = generate(model, PROMPT, "lm_head:logits:logits", tokenizer=TOKENIZER, max_new_tokens=8, **options)
        assert captured_tokens(run) == expected


def test_a_text_ends_where_the_model_ends_it_unless_told_otherwise(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = plain_tokens(model, PROMPT)
    ending = next(token for token in tokens[2:] if token not in tokens[:2])
    length = tokens.index(ending) + 1
    monkeypatch.setattr(model.generation_config, "eos_token_id", [ending])
    monkeypatch.setattr(model.generation_config, "pad_token_id", None)
    run = generate(model, PROMPT, HOOK, tokenizer=TOKENIZER, max_new_tokens=8)
    assert len(run["attention_layer_2"]) == run.metadata.usage.completion_tokens == length < 8
    run = generate(model, PROMPT, HOOK, tokenizer=TOKENIZER, max_new_tokens=8, ignore_eos=True)
    assert len(run["attention_layer_2"]) == run.metadata.usage.completion_tokens == 8


def test_progress(model: nn.Module) -> None:
    seen: list[tuple[int, int, int, int]] = []
    captured: list[int] = []

    def progress(now: GenerationProgress) -> None:
        seen.append((now.prompt, now.prompts, now.tokens, now.most_tokens))
        captured.append(now.capture.stats.bytes_in)

    generate(model, ["a", "b"], HOOK, tokenizer=TOKENIZER, max_new_tokens=2, progress=progress)
    assert seen == [(0, 2, 0, 4), (0, 2, 1, 4), (0, 2, 2, 4), (1, 2, 2, 4), (1, 2, 3, 4), (1, 2, 4, 4), (2, 2, 4, 4)]
    assert captured == [0, 64, 128, 128, 192, 256, 256]


def test_an_interrupted_run_is_whole_and_says_how_far_it_came(model: nn.Module, tmp_path: Path) -> None:
    def interrupt(now: GenerationProgress) -> None:
        if now.prompt == 1 and now.tokens == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, ["a", "b", "c"], HOOK, tmp_path, tokenizer=TOKENIZER, max_new_tokens=4, progress=interrupt)
    with pytest.warns(nsf.RunIncompleteWarning, match="KeyboardInterrupt"):
        run = nsf.open(tmp_path)
    assert run.status == "interrupted"
    assert [(each.prompt, each.usage.completion_tokens) for each in run.metadata.generations] == [("a", 4), ("b", 3)]
    assert len(run["attention_layer_2"]) == 7
    assert run.verify() == []


def test_options_of_the_capture_reach_it(model: nn.Module, tmp_path: Path) -> None:
    run = generate(
        model, PROMPT, HOOK, tmp_path, tokenizer=TOKENIZER, max_new_tokens=2, capture_dtype="bfloat16", shard_bytes=64
    )
    assert {record.dtype for record in run.records} == {"bfloat16"}
    assert run.manifest.options["shard_bytes"] == 64


def test_dtype_of_the_weights(tmp_path: Path) -> None:
    run = generate(tiny_models.save(tmp_path / "model"), PROMPT, HOOK, dtype="bfloat16", max_new_tokens=2, device="cpu")
    assert {record.dtype for record in run.records} == {"bfloat16"}
    assert run.manifest.model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it has to be at least 1"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"do_sample": True, "temperature": 0}, "temperature 0 takes the likeliest token"),
        ({"do_sample": False, "top_p": 0.5}, "top_p need sampling"),
        ({"max_new_tokens": 200}, "the model has 128: shorten the prompt"),
        ({"tokenizer": None}, "needs its tokenizer"),
        ({"dtype": "float32"}, "are for a model that is loaded here"),
        ({"device": "cpu"}, "are for a model that is loaded here"),
        ({"analysis": "a/b"}, "becomes part of a file name"),
        ({"capture_dtype": "float7"}, "cannot store activations as 'float7'"),
        ({"rings": 1}, "unknown option 'rings'"),
    ],
)
def test_wrong_options(model: nn.Module, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        generate(model, PROMPT, HOOK, tmp_path / "run", **{"tokenizer": TOKENIZER, **options})
    assert not (tmp_path / "run").exists()


def test_the_last_position_may_be_used(model: nn.Module) -> None:
    most = tiny_models.POSITIONS - LENGTH + 1  # the last token is not read
    run = generate(model, PROMPT, HOOK, tokenizer=TOKENIZER, max_new_tokens=most, ignore_eos=True)
    assert len(run["attention_layer_2"]) == most


def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "capture.json").touch()
    for wrong, error in (
        ({"hooks": "model.layers.2:attentio"}, HookError),
        ({"prompts": []}, OptionError),
        ({"seed": -1}, OptionError),
        ({"out": tmp_path}, CaptureError),
        ({"analysis": "a/b"}, OptionError),
    ):
        arguments: dict[str, Any] = {"prompts": PROMPT, "hooks": HOOK, **wrong}
        with pytest.raises(error):
            generate("./there-is-no-such-folder", **arguments)


def test_a_model_without_generate_is_refused() -> None:
    with pytest.raises(ModelError, match="a Linear has no generate"):
        generate(nn.Linear(2, 2), PROMPT, HOOK, tokenizer=TOKENIZER)


def test_hooks_that_the_model_has_not(model: nn.Module) -> None:
    with pytest.raises(HookError, match=r"no layer 'model\.layers\.99'"):
        generate(model, PROMPT, "model.layers.99:residual", tokenizer=TOKENIZER)
