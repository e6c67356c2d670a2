"""Prompts: plain text or chat messages, and the tokens that a model reads for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from .errors import ModelError, OptionError

Message = Mapping[str, Any]
"""One turn of a chat: `{"role": "user", "content": "…"}`."""
Prompt = str | Sequence[Message]
"""Text as the model shall read it, or the messages of a chat, which go through the tokenizer's chat
template.
"""
Prompts = Prompt | Sequence[Prompt]
"""One prompt or several."""


class EncodedPrompt(NamedTuple):
    """A prompt as the model reads it."""

    text: str
    """For a chat: the messages as the template renders them."""
    tokens: list[int]


def split_prompts(prompts: Prompts) -> list[Prompt]:
    """The prompts, checked for their form, as a list. Raises OptionError, which counts them from 1."""
    given: Any = [prompts] if isinstance(prompts, (str, Mapping)) or _is_chat(prompts) else prompts
    try:
        listed: list[Any] = list(given)
    except TypeError:
        raise OptionError(f"a {type(prompts).__name__} is no prompt: give text, or a list of messages") from None
    if not listed:
        raise OptionError("there is no prompt: give at least one")
    return [_checked(prompt, f"prompt {number}") for number, prompt in enumerate(listed, start=1)]


def encode_prompt(tokenizer: Any, prompt: Prompt, number: int) -> EncodedPrompt:
    """The tokens of a prompt; an empty one is the tokenizer's beginning-of-sequence token.

    A chat ends with the template's opening of the assistant's turn; where its last message is the
    assistant's own, the model goes on with that. Raises OptionError for a prompt that the tokenizer or its
    template cannot take, ModelError where there is no template. `number` counts the prompts from 1 in what
    the errors say.
    """
    plain = isinstance(prompt, str)
    text = prompt if isinstance(prompt, str) else _render(tokenizer, prompt, number)
    # A chat template writes the special tokens itself.
    tokens = [int(token) for token in tokenizer(text, add_special_tokens=plain)["input_ids"]]
    if not tokens:
        start = getattr(tokenizer, "bos_token_id", None)
        if start is None:
            raise OptionError(f"prompt {number} is empty, and the tokenizer has no token to begin with: give some text")
        tokens = [int(start)]
    return EncodedPrompt(text, tokens)


def decode_completion(tokenizer: Any, prompt: Sequence[int], completion: Sequence[int]) -> str:
    """The text of the generated tokens, special tokens left out.

    Decoded behind the prompt's tokens: alone, many tokenizers drop the space that the completion begins with.
    """

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    before, whole = decode(prompt), decode([*prompt, *completion])
    return whole[len(before) :] if whole.startswith(before) else decode(completion)


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text of each token alone, with the space that it begins with: what a label says.

    A part of a character, and a token that the tokenizer does not know, is the replacement character.
    """
    texts: dict[int, str] = {}
    for token in tokens:
        if token not in texts:
            texts[token] = _token_text(tokenizer, token).encode("utf-8", "replace").decode()
    return [texts[token] for token in tokens]


def _token_text(tokenizer: Any, token: int) -> str:
    if not (hasattr(tokenizer, "convert_ids_to_tokens") and hasattr(tokenizer, "convert_tokens_to_string")):
        return str(tokenizer.decode([token]))
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        return "\ufffd"
    if "▁" in piece:  # SentencePiece's space, which decoding a token alone drops
        return str(piece).replace("▁", " ")
    if piece.startswith("##"):  # WordPiece's mark that no space is meant, which it drops too
        return str(piece)
    return str(tokenizer.convert_tokens_to_string([piece]))


def _render(tokenizer: Any, messages: Sequence[Message], number: int) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("the tokenizer has no chat template: give the prompt as plain text, not as messages")
    going_on = messages[-1]["role"] == "assistant"
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not going_on,
                continue_final_message=going_on,
            )
        )
    except Exception as error:  # whatever the template's own code raises
        reason = " ".join(str(error).split())
        raise OptionError(f"prompt {number}: the chat template refuses these messages: {reason}") from error


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _checked(prompt: Any, where: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if not _is_chat(prompt):
        form = 'text or a list of messages such as {"role": "user", "content": "…"}'
        raise OptionError(f"{where} is a {type(prompt).__name__}: give {form}")
    for message in prompt:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message):
            raise OptionError(f"{where}: each message is an object with role and content, not {message!r}")
    return cast(Sequence[Message], prompt)
