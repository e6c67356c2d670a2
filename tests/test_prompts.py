"""Prompts in all their forms, and the text of what was generated."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from neuroscope_fast.errors import ModelError, OptionError
from neuroscope_fast.prompts import decode_completion, encode_prompt, split_prompts

USER = {"role": "user", "content": "What is recursion?"}
ASSISTANT = {"role": "assistant", "content": "Recursion is"}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        (("one", "two"), ["one", "two"]),
        (iter(["one"]), ["one"]),
        ([USER], [[USER]]),
        ([USER, ASSISTANT], [[USER, ASSISTANT]]),
        ([[USER], "two", [USER, ASSISTANT]], [[USER], "two", [USER, ASSISTANT]]),
        ("", [""]),
    ],
)
def test_one_prompt_or_several(given: Any, prompts: list[Any]) -> None:
    assert split_prompts(given) == prompts


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "there is no prompt"),
        (7, "a int is no prompt"),
        ([7], "prompt 1 is a int: give text or a list of messages"),
        (["one", b"two"], "prompt 2 is a bytes"),
        (USER, "prompt 1 is a dict"),
        ([[USER], []], "prompt 2 is a list"),
        ([{"content": "x"}], "prompt 1: each message is an object with role and content"),
        ([{"role": "user"}], "each message"),
        ([USER, "more"], "each message"),
    ],
)
def test_what_is_no_prompt(given: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        split_prompts(given)


def test_text_is_read_as_it_is() -> None:
    tokenizer = tiny_models.tokenizer()
    prompt = encode_prompt(tokenizer, "Recursion is", 1)
    assert prompt.text == "Recursion is"
    assert prompt.tokens == tokenizer("Recursion is")["input_ids"]
    assert len(prompt.tokens) == 12


def test_an_empty_prompt_is_the_beginning_of_a_sequence() -> None:
    tokenizer = tiny_models.tokenizer()
    assert encode_prompt(tokenizer, "", 1).tokens == [tokenizer.bos_token_id]
    tokenizer.bos_token = None
    with pytest.raises(OptionError, match="prompt 3 is empty"):
        encode_prompt(tokenizer, "", 3)


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = tiny_models.tokenizer()
    prompt = encode_prompt(tokenizer, [USER], 1)
    assert prompt.text == "<s><user> What is recursion?\n<assistant>"
    # The template writes <s> itself: no second one is put in front of it.
    expected = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt.tokens == expected
    assert prompt.tokens.count(tokenizer.bos_token_id) == 1


def test_the_model_goes_on_with_the_assistants_own_words() -> None:
    prompt = encode_prompt(tiny_models.tokenizer(), [USER, ASSISTANT], 1)
    assert prompt.text == "<s><user> What is recursion?\n<assistant> Recursion is"


def test_messages_need_a_template_and_one_that_takes_them() -> None:
    with pytest.raises(ModelError, match="no chat template: give the prompt as plain text"):
        encode_prompt(tiny_models.tokenizer(chat_template=None), [USER], 1)
    strict = tiny_models.tokenizer(chat_template="{{ raise_exception('roles\nmust alternate') }}")
    with pytest.raises(OptionError, match="prompt 2: the chat template refuses these messages: roles must alternate"):
        encode_prompt(strict, [USER], 2)


@pytest.mark.parametrize("completion", [" a method", "é, ö and 漢", "\n", "</s>", ""])
def test_the_text_of_a_completion_has_neither_the_prompt_nor_special_tokens(completion: str) -> None:
    tokenizer = tiny_models.tokenizer()
    prompt, tokens = (tokenizer(text)["input_ids"] for text in ("Recursion is", completion))
    expected = "" if completion == "</s>" else completion
    assert decode_completion(tokenizer, prompt, [*tokens, tokenizer.eos_token_id]) == expected


class DropsTheFirstSpace:
    """Decodes as SentencePiece tokenizers do: without the space in front of the first word."""

    words = ("▁Recursion", "▁is", "▁a", "▁method")

    def decode(self, tokens: list[int], **_options: Any) -> str:
        return "".join(self.words[token] for token in tokens).replace("▁", " ").removeprefix(" ")


class ChangesWhatStandsBefore(DropsTheFirstSpace):
    """Decodes a prompt otherwise when something follows it."""

    def decode(self, tokens: list[int], **options: Any) -> str:
        return super().decode(tokens, **options).upper() if len(tokens) == 4 else super().decode(tokens, **options)


def test_the_space_between_prompt_and_completion_is_kept() -> None:
    assert decode_completion(DropsTheFirstSpace(), [0, 1], [2, 3]) == " a method"
    assert decode_completion(ChangesWhatStandsBefore(), [0, 1], [2, 3]) == "a method"
