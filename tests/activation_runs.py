"""Runs in memory for the tests of analyses, from plain arrays: a sequence for each prompt and row, cut into a prefill
and decode steps, padded on the left where rows differ in length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from neuroscope_fast.keys import tensor_key
from neuroscope_fast.manifest import Manifest
from neuroscope_fast.prompt_log import PromptEntry, Text
from neuroscope_fast.reader import MemorySource, Run
from neuroscope_fast.records import ActivationCapture, Record, Usage

Array = np.ndarray[Any, Any]
GARBAGE = 240
"""What stands at positions that are padding."""


def run_of(records: list[tuple[Record, torch.Tensor]], prompts: list[PromptEntry] | None = None) -> Run:
    """A run in memory of these records."""
    activations: dict[str, list[Record]] = {}
    tensors = {}
    for record, tensor in records:
        activations.setdefault(record.hook_id, []).append(record)
        key = tensor_key(record.hook_id, record.step, prompt=record.prompt, call=record.call, is_input=record.is_input)
        tensors[key] = tensor
    metadata = ActivationCapture(
        timestamp="2026-01-02T03:04:05",
        demo_type="activation_capture",
        total_hooks=len(activations),
        generated_text="",
        activations=activations,
        usage=Usage(),
        hook_configurations=[],
    )
    manifest = Manifest(status="complete", created="2026-01-02T03:04:05", metadata_file="activation_capture.json")
    return Run(metadata, manifest, MemorySource(tensors), prompts=prompts)


def record_of(tensor: torch.Tensor, **facts: Any) -> tuple[Record, torch.Tensor]:
    """A record of this tensor, of the hook `h` on the neurons of layer 0 unless `facts` say otherwise."""
    known: dict[str, Any] = {"hook_id": "h", "layer_name": "model.layers.0", "component": "neuron", "is_input": False}
    known |= {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."), **facts}
    return Record(**known), tensor


def cut(
    prompts: list[list[Array]], decoded: int = 0, dtype: torch.dtype = torch.float32, **facts: Any
) -> list[tuple[Record, torch.Tensor]]:
    """Records of prompts, each a list of rows [T, N]: a prefill of all but `decoded` positions, padded on the left,
    then a step for each position that is left.
    """
    found = []
    for number, rows in enumerate(prompts):
        lengths = [len(row) - decoded for row in rows]
        longest = max(lengths)
        prefill = torch.full((len(rows), longest, rows[0].shape[1]), GARBAGE, dtype=dtype)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            prefill[index, longest - length :] = torch.tensor(row[:length]).to(dtype)
        real = [[longest - length, longest] for length in lengths]
        told = real if min(lengths) < longest else None
        found.append(record_of(prefill, prompt=number, real_tokens=told, **facts))
        for step in range(decoded):
            tensor = torch.stack([torch.tensor(row[len(row) - decoded + step]).to(dtype) for row in rows])[:, None]
            found.append(record_of(tensor, prompt=number, step=step + 1, positions=[longest + step], **facts))
    return found


def entry_of(number: int, rows: list[list[str]], ids: dict[str, int]) -> PromptEntry:
    """The tokens of a prompt, one list for each row."""
    texts = [
        Text(prompt="", generated_text="", usage=Usage(), token_ids=[ids[word] for word in row], tokens=row)
        for row in rows
    ]
    return PromptEntry(prompt=number, records=0, texts=texts)
