"""The metric of patching: the logit difference of two answers behind the last token of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..errors import OptionError, RunError
from ..reader import Run
from . import sequences


def told_tokens(run: Run, prompt: int) -> sequences.Tokens:
    """The tokens of a prompt, to be run again. Raises RunError where the run holds none."""
    tokens = sequences.tokens(run, prompt)
    if not tokens.ids:
        raise RunError(
            "the run holds no tokens, so its prompts cannot be run again: give their token ids, or make the run "
            "with nsf.generate"
        )
    return tokens


def prompt_ids(run: Run, prompts: Sequence[int] | None = None) -> list[list[int]]:
    """The token ids of the prompts of a run, without what was generated; None: of all. Raises RunError where the run
    holds no tokens.
    """
    chosen = sequences.prompt_numbers(run) if prompts is None else prompts
    return [tokens.ids[: tokens.prompt_tokens] for tokens in (told_tokens(run, prompt) for prompt in chosen)]


def last_logits(model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """Logits behind the last token, float32 or float64 [vocabulary], on the CPU."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise OptionError(f"{type(model).__name__} gives no logits: patching needs a causal language model")
    last = logits[0, -1].cpu()
    return last if last.dtype == torch.float64 else last.float()


def logit_difference(model: nn.Module, ids: Sequence[int], right: int, wrong: int) -> float:
    """Logit of the token `right` less that of `wrong` behind the last token. Raises OptionError where it is NaN."""
    logits = last_logits(model, ids)
    for token in (right, wrong):
        if not 0 <= token < len(logits):
            raise OptionError(f"there is no token {token}; the model has {len(logits)}")
    difference = float(logits[right] - logits[wrong])
    if not np.isfinite(difference):
        raise OptionError(f"the logits of tokens {right} and {wrong} differ by {difference}: nothing can be measured")
    return difference
