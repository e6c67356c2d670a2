"""Induction and previous-token scores of a causal LM: does it have the heads that in-context copying is
made of?

Olsson et al. 2022, "In-context Learning and Induction Heads" (transformer-circuits.pub): on random tokens
repeated once, an induction head attends from a token of the second copy to the token that followed its
first occurrence. The period is drawn anew for every sequence: with a fixed one, a head could score by
position alone.

Scores are attention weights, so a model must be loaded with ``attn_implementation="eager"``: other
implementations return none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORTEST_PERIOD = 8
LONGEST_PERIOD = 40
BATCH = 50  # sequences scored at once: 12 layers of eager attention then take about 100 MB


class RepeatedSequences(NamedTuple):
    """Random tokens, each sequence repeated once behind a BOS token.

    tokens: int64 ``[sequences, 1 + 2 * longest]``; after the second copy a row is filled up with the pad
    token, which causal attention never sees. periods: int64 ``[sequences]``, the length of one copy.
    """

    tokens: Tensor
    periods: Tensor


class BestHead(NamedTuple):
    """The head with the highest score. weight is the mean attention weight, 0 to 1. Prints as ``layer.head
    weight``."""

    layer: int
    head: int
    weight: float

    def __str__(self) -> str:
        return f"{self.layer}.{self.head} {self.weight:.3f}"


def repeated_sequences(
    model: PreTrainedModel,
    sequences: int,
    seed: int,
    shortest: int = SHORTEST_PERIOD,
    longest: int = LONGEST_PERIOD,
) -> RepeatedSequences:
    """Draw random sequences of any of the model's tokens but the special ones, each with a period of its own.

    The period is uniform over ``shortest`` to ``longest``, both included.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    special = [config.pad_token_id, config.bos_token_id, config.eos_token_id]
    allowed = torch.ones(config.vocab_size, dtype=torch.bool)
    allowed[special] = False
    ordinary = allowed.nonzero()[:, 0]

    periods = torch.randint(shortest, longest + 1, (sequences,), generator=generator)
    drawn = ordinary[torch.randint(len(ordinary), (sequences, 2 * longest), generator=generator)]
    place = torch.arange(2 * longest).expand(sequences, -1)
    period = periods[:, None]
    tokens = drawn.gather(1, torch.where(place < period, place, (place - period).clamp(min=0)))
    tokens = torch.where(place < 2 * period, tokens, config.pad_token_id)
    return RepeatedSequences(torch.nn.functional.pad(tokens, (1, 0), value=config.bos_token_id), periods)


@torch.no_grad()
def _mean_attention(model: PreTrainedModel, tokens: Tensor, keys: Tensor, scored: Tensor) -> Tensor:
    """Mean attention weight from each scored query to its key, as ``[layers, heads]``.

    tokens, keys and scored are ``[sequences, length]``: the input, for each query the position of the key,
    and whether the query counts. Every scored query weighs the same.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError('scores need the attention weights: load the model with attn_implementation="eager"')
    total = torch.zeros(model.config.num_hidden_layers, model.config.num_attention_heads, dtype=torch.float64)
    for part in range(0, len(tokens), BATCH):
        rows = slice(part, part + BATCH)
        output = model(input_ids=tokens[rows].to(model.device), output_attentions=True, use_cache=False)
        key, weight = keys[rows, None, :, None].to(model.device), scored[rows, None].to(model.device)
        for layer, attention in enumerate(output.attentions):  # [sequences, heads, queries, keys]
            attended = attention.gather(3, key.expand(-1, attention.shape[1], -1, 1))[..., 0]
            total[layer] += (attended * weight).sum(dim=(0, 2)).double().cpu()
    return (total / scored.sum()).float()


def induction_scores(model: PreTrainedModel, sequences: int = 200, seed: int = 0) -> Tensor:
    """Mean weight from each token of the second copy to the token after its first occurrence.

    Returns float32 ``[layers, heads]``, attention weights between 0 and 1. With period p, the token at
    position i of the second copy has its first occurrence at i - p, and so the key is i - p + 1 (Olsson et
    al. 2022). Raises ValueError if the model does not run eager attention.
    """
    tokens, periods = repeated_sequences(model, sequences, seed)
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    period = periods[:, None]
    second = (place > period) & (place <= 2 * period)  # behind BOS the copies begin at 1 and at 1 + period
    return _mean_attention(model, tokens, (place - period + 1).clamp(min=0), second)


def previous_token_scores(model: PreTrainedModel, sequences: int = 200, seed: int = 0) -> Tensor:
    """Mean weight from each token to the token before it, over both copies of the same kind of sequences.

    Returns float32 ``[layers, heads]``, attention weights between 0 and 1. The first token, which has only
    BOS before it, does not count. Raises ValueError if the model does not run eager attention.
    """
    tokens, periods = repeated_sequences(model, sequences, seed)
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    scored = (place >= 2) & (place <= 2 * periods[:, None])
    return _mean_attention(model, tokens, (place - 1).clamp(min=0), scored)


@torch.no_grad()
def copy_accuracy(model: PreTrainedModel, sequences: int = 200, seed: int = 0) -> float:
    """Share of the tokens of the second copy, its first one apart, that the model ranks highest: 0 to 1."""
    tokens, periods = repeated_sequences(model, sequences, seed)
    place = torch.arange(tokens.shape[1] - 1).expand(len(tokens), -1)
    period = periods[:, None]
    predictable = (place > period) & (place < 2 * period)  # the query's place: its target stands one further
    right = 0
    for part in range(0, len(tokens), BATCH):
        rows = slice(part, part + BATCH)
        logits = model(input_ids=tokens[rows].to(model.device), use_cache=False).logits
        hit = logits[:, :-1].argmax(-1).cpu() == tokens[rows, 1:]
        right += int((hit & predictable[rows]).sum())
    return right / int(predictable.sum())


def best_head(scores: Tensor) -> BestHead:
    """The head with the highest score of a ``[layers, heads]`` tensor."""
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return BestHead(layer, head, float(scores[layer, head]))
