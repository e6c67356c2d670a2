"""Runs in memory that hold given attention patterns, and head scores as plain loops: a helper of the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from neuroscope_fast.keys import tensor_key
from neuroscope_fast.manifest import Manifest
from neuroscope_fast.prompt_log import PromptEntry, Text
from neuroscope_fast.reader import MemorySource, Run
from neuroscope_fast.records import ActivationCapture, Record, Usage


@dataclass
class Hook:
    """What one hook captured: for each prompt its steps, (first position, tensor of a batch of one)."""

    layer_name: str
    prompts: list[list[tuple[int, torch.Tensor]]]
    reduction: str | None = None
    heads: list[int] | None = None
    indices: list[list[torch.Tensor]] | None = None


def made_run(hooks: dict[str, Hook], ids: Sequence[Sequence[int]] = (), prompt_tokens: int = 1) -> Run:
    """`ids`: for each prompt those of its tokens, of which the first `prompt_tokens` are the prompt's."""
    tensors: dict[str, torch.Tensor] = {}
    records: dict[str, list[Record]] = {}
    for hook_id, hook in hooks.items():
        records[hook_id] = []
        for prompt, steps in enumerate(hook.prompts):
            for step, (start, tensor) in enumerate(steps):
                key = tensor_key(hook_id, step, prompt=prompt, call=0, is_input=False)
                tensors[key] = tensor
                if hook.indices is not None:
                    tensors[key + "/indices"] = hook.indices[prompt][step]
                queries = tensor.shape[1] if hook.reduction in ("mean", "max") else tensor.shape[2]
                records[hook_id].append(
                    Record(
                        hook_id=hook_id,
                        layer_name=hook.layer_name,
                        component="attention_pattern",
                        shape=list(tensor.shape),
                        dtype=str(tensor.dtype).removeprefix("torch."),
                        is_input=False,
                        step=step,
                        prompt=prompt,
                        positions=list(range(start, start + queries)) if start else None,
                        heads=hook.heads,
                        reduction=hook.reduction,
                    )
                )
    entries = [
        PromptEntry(
            prompt=number,
            records=1,
            texts=[
                Text(
                    prompt="",
                    generated_text="",
                    usage=Usage(prompt_tokens, len(each) - prompt_tokens, len(each)),
                    token_ids=list(each),
                    tokens=[f"t{token}" for token in each],
                )
            ],
        )
        for number, each in enumerate(ids)
    ]
    metadata = ActivationCapture(
        timestamp="",
        demo_type="activation_capture",
        total_hooks=len(hooks),
        generated_text="",
        activations=records,
        usage=Usage(),
        hook_configurations=[],
    )
    manifest = Manifest(status="complete", created="", metadata_file="")
    return Run(metadata, manifest, MemorySource(tensors), prompts=entries)


def causal(heads: int, tokens: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    """A random causal pattern, float32 [1, heads, tokens, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(1, heads, tokens, tokens, generator=generator)
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


def steps_of(pattern: torch.Tensor, prefill: int) -> list[tuple[int, torch.Tensor]]:
    """A pattern as a prefill of so many tokens and decode steps have it."""
    steps = [(0, pattern[:, :, :prefill, :prefill].contiguous())]
    for query in range(prefill, pattern.shape[2]):
        steps.append((query, pattern[:, :, query : query + 1, : query + 1].contiguous()))
    return steps


def naive_scores(sequences: Sequence[tuple[np.ndarray[Any, Any], Sequence[int] | None]]) -> dict[str, float]:
    """The scores of one head over sequences of (pattern [T, T], token ids), by the words of the documentation."""
    sums: dict[str, list[float]] = {name: [] for name in (*MASSES, *SPECIFIC)}
    for pattern, ids in sequences:
        for query in range(1, len(pattern)):
            row = [float(weight) for weight in pattern[query]]
            sums["entropy"].append(-sum(weight * math.log(weight) for weight in row if weight != 0))
            sums["first"].append(row[0])
            sums["previous"].append(row[query - 1])
            sums["current"].append(row[query])
            if query >= 2:
                sums["previous_token_score"].append(row[query - 1])
            if ids is None:
                continue
            duplicates, followers = [], []
            for key in range(1, query - 1):  # not the first token, not the one before the query
                is_duplicate, is_follower = ids[key] == ids[query], ids[key - 1] == ids[query]
                if is_duplicate and not is_follower:
                    duplicates.append(row[key])
                if is_follower and not is_duplicate:
                    followers.append(row[key])
            if duplicates:
                sums["duplicate_token_score"].append(sum(duplicates))
            if followers:
                sums["induction_score"].append(sum(followers))
    return {name: sum(values) / len(values) if values else math.nan for name, values in sums.items()}


MASSES = ("entropy", "first", "previous", "current")
SPECIFIC = ("previous_token_score", "induction_score", "duplicate_token_score")
