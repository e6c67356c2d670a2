"""Tiny runs for the tests of information flow: a prefill of two rows, one of them padded, then decode steps."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import architectures
import msgspec
import neuroscope_fast as nsf
import numpy as np
import torch
import transformers
from architectures import LLAMA_SIZES
from neuroscope_fast.activations import data_ref
from neuroscope_fast.sources import MemorySource
from torch import nn

LENGTH, STEPS, PADDED = 6, 2, 2
STACKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "gemma2": "model.layers",
    "gemma3": "model.layers",
    "olmo2": "model.layers",
    "granite": "model.layers",
    "bloom": "transformer.h",
    "opt": "model.decoder.layers",
    "qwen3_moe": "model.layers",
}
EMBEDDINGS = {"llama": "model.embed_tokens", "gemma3": "model.embed_tokens", "gpt_neox": "gpt_neox.embed_in"}


def build(name: str) -> nn.Module:
    """A tiny model in which no weight is what it was initialised to: norms have weights of their own, layers biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if name in ("olmo2", "granite", "cohere"):
            options: dict[str, Any] = {
                "olmo2": {},
                "granite": {"logits_scaling": 6.0, "residual_multiplier": 0.22},
                "cohere": {"logit_scale": 0.25},
            }[name]
            kind = name.capitalize()
            config = getattr(transformers, f"{kind}Config")(**LLAMA_SIZES, **options)
            model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        else:
            model = architectures.build(name)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


class Captured(NamedTuple):
    """A run, and the model's own logits of each row without its padding, float64 [T, V]."""

    run: nsf.Run
    logits: list[np.ndarray[Any, Any]]


def capture(model: nn.Module, folder: Path, hooks: list[Any], **options: Any) -> Captured:
    """Two rows, the second padded on the left, then decode steps. With the model's readout, if not told otherwise."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, architectures.VOCAB, (2, LENGTH + STEPS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :PADDED] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    takes_places = "position_ids" in inspect.signature(model.forward).parameters
    given = []
    with nsf.capture(model, hooks, folder, **{"store_readout": True, **options}) as cap:
        past = None
        for begin, end in [(0, LENGTH), *((at, at + 1) for at in range(LENGTH, LENGTH + STEPS))]:
            more = {"position_ids": places[:, begin:end]} if takes_places else {}
            output = model(
                ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True, **more
            )
            past = output.past_key_values
            given.append(output.logits)
        for row, padding in enumerate((0, PADDED)):
            tokens = ids[row, padding:].tolist()
            cap.add_generation(
                "", "", prompt_tokens=LENGTH - padding, completion_tokens=STEPS, token_ids=tokens,
                tokens=[f"t{token}" for token in tokens],
            )  # fmt: skip
    logits = torch.cat(given, 1).double().numpy()
    return Captured(nsf.open(folder), [logits[0], logits[1, PADDED:]])


def hooks_of(name: str, *components: str) -> list[str]:
    """Hooks on every layer."""
    return [f"{STACKS[name]}.*:{component}" for component in components]


def with_changed(run: nsf.Run, hook_id: str, at: tuple[int, ...], value: float) -> nsf.Run:
    """The run in memory, in which one value of a hook's first tensor is another."""
    tensors = {}
    activations = {}
    for each in run:
        records = run[each].records
        activations[each] = [msgspec.structs.replace(record, data=None) for record in records]
        for number, record in enumerate(records):
            tensors[data_ref(activations[each][number]).key] = run[each][number].clone()
            assert record.scale is None
    tensors[data_ref(activations[hook_id][0]).key][at] = value
    metadata = msgspec.structs.replace(run.metadata, activations=activations)
    return nsf.Run(metadata, run.manifest, MemorySource(tensors), prompts=run.prompts)
