"""A tiny, randomly initialised Llama with a tokenizer of its own, in memory or in a folder; a helper of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYERS = 12
HIDDEN = 16
POSITIONS = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes as tokens: every text has tokens, and every token is a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<pad>"]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    built = Tokenizer(models.BPE(vocabulary, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    wrapped.chat_template = chat_template
    return wrapped


def llama(*, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Twelve layers, so that the layers of the reference document's hooks are there."""
    settings: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.5,  # far from uniform: greedy decoding must not hang on rounding
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def save(folder: Path, **changes: Any) -> Path:
    """A model and its tokenizer as `from_pretrained` reads them."""
    llama(**changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
