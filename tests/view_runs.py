"""Runs in memory that hold attention of known numbers; a helper of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from neuroscope_fast.keys import tensor_key
from neuroscope_fast.manifest import Manifest, ModelInfo
from neuroscope_fast.prompt_log import PromptEntry, Text
from neuroscope_fast.reader import MemorySource, Run
from neuroscope_fast.records import ActivationCapture, HookConfiguration, Record, Usage

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>&amp;\u202e\"'"


def causal(heads: int, tokens: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Attention patterns, float32 [H, T, T], of a causal model."""
    logits = np.random.default_rng(seed).normal(size=(heads, tokens, tokens)) * 2
    weights = np.exp(logits) * np.tri(tokens)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


class MemoryRun:
    """Collects records and makes them a run in memory."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.prompts: dict[int, list[Text]] = {}

    def add(
        self,
        hook_id: str,
        values: np.ndarray[Any, Any] | torch.Tensor,
        *,
        layer: str = "model.layers.0.self_attn",
        component: str = "attention_pattern",
        indices: np.ndarray[Any, Any] | None = None,
        **facts: Any,
    ) -> MemoryRun:
        tensor = torch.as_tensor(values)
        record = Record(hook_id, layer, component, list(tensor.shape), str(tensor.dtype)[6:], False, **facts)
        key = tensor_key(hook_id, record.step, prompt=record.prompt, call=0, is_input=False)
        self.records.setdefault(hook_id, []).append(record)
        self.tensors[key] = tensor
        if indices is not None:
            self.tensors[f"{key}/indices"] = torch.as_tensor(indices)
        return self

    def say(self, tokens: list[str], prompt: int = 0, generated: int = 0, rows: int = 1) -> MemoryRun:
        """What the model read, and `generated` tokens that it wrote."""
        cut = len(tokens) - generated
        text = Text(
            prompt="".join(tokens[:cut]),
            generated_text="".join(tokens[cut:]),
            usage=Usage(cut, generated, len(tokens)),
            token_ids=list(range(len(tokens))),
            tokens=tokens,
        )
        self.prompts[prompt] = [text] * rows
        return self

    def run(self, model: str = "a model") -> Run:
        configurations = [
            HookConfiguration(records[0].layer_name, records[0].component, hook_id, True)
            for hook_id, records in self.records.items()
        ]
        metadata = ActivationCapture(
            timestamp="2026-01-02T03:04:05.678901",
            demo_type="activation_capture",
            total_hooks=len(self.records),
            generated_text="",
            activations=self.records,
            usage=Usage(),
            hook_configurations=configurations,
        )
        manifest = Manifest(
            status="complete", created="2026", metadata_file="", model=ModelInfo(class_name="M", name_or_path=model)
        )
        prompts = [PromptEntry(prompt=number, records=1, texts=texts) for number, texts in self.prompts.items()]
        return Run(metadata, manifest, MemorySource(self.tensors), prompts=prompts)
