"""The demo model's tokenizer: one token for each word of the corpus, bytes for everything else.

A byte-level BPE (the alphabet of GPT-2) whose vocabulary holds whole words beside the merges. With
``ignore_merges`` a word that is in the vocabulary is one token, so that a heatmap of the demo model reads
word by word; any other text is spelled with the merges and, in the last resort, with single bytes. Every
string round-trips.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .corpus import EOS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
BOS = "<|bos|>"
SPECIAL_TOKENS = (PAD, BOS, EOS)  # ids 0, 1, 2

# The first turn opens with BOS, each of the assistant's turns closes with EOS. The prompt for a turn ends in
# "Assistant:" without a space, because the space belongs to the first word of the answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% endif %}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)


def build(passages: Sequence[str], vocabulary: int, rarest: int = 10) -> PreTrainedTokenizerFast:
    """Build the tokenizer from corpus text.

    vocabulary: number of tokens in all: the special ones, 256 bytes, every word that occurs at least
    ``rarest`` times in the passages (made-up names stay below), and merges learned by BPE (Sennrich et al.
    2016) in what is left. Raises ValueError if there is no room for the words.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    # Letters and digits with the space before them, line breaks with the indentation after them, other
    # signs alone.
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+|\n *| +|[^\s\p{L}\p{N}]|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    texts = [part for passage in passages for part in passage.split(EOS)]

    counts = Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text))
    frequent = sorted((w for w, count in counts.items() if count >= rarest), key=lambda w: (-counts[w], w))
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *frequent])
    if len(tokens) > vocabulary:
        raise ValueError(f"{len(tokens)} words and bytes do not fit a vocabulary of {vocabulary} tokens")

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizer
    learned.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        ),
    )
    merges: list[tuple[str, str]] = []
    for left, right in json.loads(learned.to_str())["model"]["merges"]:
        if len(tokens) == vocabulary and left + right not in tokens:
            break  # a later merge may need this one's result, so nothing after it is kept
        merges.append((left, right))
        tokens.setdefault(left + right)
    vocab = {token: i for i, token in enumerate(tokens)}

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",  # so that a batch of prompts of unequal lengths can be continued
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
