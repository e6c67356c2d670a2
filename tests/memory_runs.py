"""Runs in memory with given tensors, for the tests of analyses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from neuroscope_fast.keys import tensor_key
from neuroscope_fast.manifest import Manifest
from neuroscope_fast.reader import MemorySource, Run
from neuroscope_fast.records import ActivationCapture, Record, Usage


class Hook(NamedTuple):
    """One hook: by prompt the tensors of its steps."""

    layer_name: str
    component: str
    prompts: list[list[torch.Tensor]]
    reduction: str | None = None
    heads: list[int] | None = None


def memory_run(hooks: Mapping[str, Hook]) -> Run:
    """A complete run that holds these hooks' tensors as they are. Steps go on at the position at which the one before
    ended; the sequence axis is the last but one, of `head_output` the one before that."""
    records: dict[str, list[Record]] = {}
    tensors: dict[str, torch.Tensor] = {}
    for hook_id, hook in hooks.items():
        records[hook_id] = []
        for prompt, steps in enumerate(hook.prompts):
            begin = 0
            for step, tensor in enumerate(steps):
                axis = 1 if hook.component == "head_output" or hook.reduction is None else -1
                axis = 2 if hook.component == "attention_pattern" and hook.reduction is None else axis
                length = tensor.shape[axis]
                records[hook_id].append(
                    Record(
                        hook_id,
                        hook.layer_name,
                        hook.component,
                        list(tensor.shape),
                        str(tensor.dtype).removeprefix("torch."),
                        False,
                        step=step,
                        prompt=prompt,
                        positions=list(range(begin, begin + length)) if step else None,
                        heads=hook.heads,
                        reduction=hook.reduction,
                    )
                )
                tensors[tensor_key(hook_id, step, prompt=prompt)] = tensor
                begin += length
    metadata = ActivationCapture(
        timestamp="2026-01-02T03:04:05",
        demo_type="activation_capture",
        total_hooks=len(hooks),
        generated_text="",
        activations=records,
        usage=Usage(),
        hook_configurations=[],
    )
    manifest = Manifest(status="complete", created="2026-01-02T03:04:05", metadata_file="activation_capture.json")
    return Run(metadata, manifest, MemorySource(tensors))
