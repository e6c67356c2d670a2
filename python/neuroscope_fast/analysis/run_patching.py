"""Activation patching of two runs: their prompts are run again, and the answers are what each run wrote next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..errors import OptionError, RunError
from ..reader import Run
from .interventions import sites
from .logit_metric import told_tokens
from .patching import Patching, activation_patching
from .sequences import Tokens, prompt_numbers

DEFAULT_COMPONENTS = ("attention", "head_output", "mlp")


def patch_runs(
    model: nn.Module,
    clean: Run,
    corrupted: Run,
    *,
    components: Sequence[str] | None = None,
    each_position: bool = False,
    noising: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Patching:
    """Patch every component of a kind, one at a time, between the prompts of two runs.

    The first prompt of `clean` is matched with the first of `corrupted`, and so on. The right answer of a pair is the
    first token that the model wrote behind the clean prompt, the wrong one that behind the corrupted prompt. What is
    patched in is captured anew: the runs need to hold tokens only (`nsf.generate`).

    Args:
        components: None for `attention`, `head_output` (each head) and `mlp`.
        each_position: patch one position at a time, and not all at once.
        noising: put corrupted activations into the clean prompts, and not clean ones into the corrupted.

    Raises RunError where a run holds no tokens, OptionError where the pairs do not match or their answers are the same.
    """
    sides = [[_tokens(run, number) for number in prompt_numbers(run)] for run in (clean, corrupted)]
    if len(sides[0]) != len(sides[1]):
        raise OptionError(
            f"the runs have {len(sides[0])} and {len(sides[1])} prompts: matched pairs need as many in each"
        )
    right, wrong = ([each.ids[each.prompt_tokens] for each in side] for side in sides)
    same = [number for number, pair in enumerate(zip(right, wrong, strict=True)) if pair[0] == pair[1]]
    if same:
        raise OptionError(
            f"the model wrote the same token behind both prompts of pair {same[0]}: choose prompts whose answers differ"
        )
    first, second = ([each.ids[: each.prompt_tokens] for each in side] for side in sides)
    options: dict[str, Any] = {"positions": "each", "labels": _labels(sides)} if each_position else {}
    return activation_patching(
        model,
        first,
        second,
        right,
        wrong,
        sites=sites(model, components or DEFAULT_COMPONENTS),
        direction="noising" if noising else "denoising",
        progress=progress,
        **options,
    )


def _tokens(run: Run, number: int) -> Tokens:
    found = told_tokens(run, number)
    if len(found.ids) <= found.prompt_tokens:
        raise RunError(f"prompt {number} has no generated token to be the answer: generate one at least")
    return found


def _labels(sides: list[list[Tokens]]) -> list[str] | None:
    """The tokens of the positions, where all prompts have the same; else None."""
    texts = [each.texts[: each.prompt_tokens] for side in sides for each in side]
    if len({len(each) for each in texts}) > 1:
        return None
    return [here[0] if len(set(here)) == 1 else str(at) for at, here in enumerate(zip(*texts, strict=True))]
