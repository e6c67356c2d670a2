"""Tiny models for the tests of attention: more architectures, patterns that are far from even, inputs with padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import architectures
import torch
import transformers
from architectures import LLAMA_SIZES
from torch import nn

_ONE_KEY_HEAD = {**LLAMA_SIZES, "num_key_value_heads": 1}
_EVERY_HEAD = {key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"}
_SPARSE = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}
_CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", LLAMA_SIZES),
    "gemma": ("Gemma", {**_ONE_KEY_HEAD, "head_dim": 16}),
    "qwen2_moe": ("Qwen2Moe", {**LLAMA_SIZES, **_SPARSE, "shared_expert_intermediate_size": 24}),
    "olmo2": ("Olmo2", LLAMA_SIZES),
    "phi": ("Phi", LLAMA_SIZES),
    "starcoder2": ("Starcoder2", {**LLAMA_SIZES, "sliding_window": 4}),
    "stablelm": ("StableLm", {**LLAMA_SIZES, "partial_rotary_factor": 0.5}),
    "cohere2": ("Cohere2", {**LLAMA_SIZES, "sliding_window": 4}),
    "granite": ("Granite", {**LLAMA_SIZES, "attention_multiplier": 0.2}),
    "smollm3": ("SmolLM3", LLAMA_SIZES),
    "nemotron": ("Nemotron", LLAMA_SIZES),
    "glm4": ("Glm4", {**LLAMA_SIZES, "head_dim": 16}),
    "mpt": (
        "Mpt",
        {**architectures._COMMON, "d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "use_cache": True},
    ),
}
_OTHERS: dict[str, Callable[[], nn.Module]] = {
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            **architectures._COMMON,
            d_model=48,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=2,
            encoder_ffn_dim=80,
            decoder_ffn_dim=80,
            max_position_embeddings=64,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    ),
    "whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **architectures._COMMON,
            d_model=48,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=2,
            encoder_ffn_dim=80,
            decoder_ffn_dim=80,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=64,
            decoder_start_token_id=1,
        )
    ),
}

DECODERS = [
    *(name for name in architectures.ARCHITECTURES if name not in ("bert", "t5", "mamba")),
    *_CAUSAL,
]
"""Causal language models."""
ENCODER_DECODERS = ["t5", "bart", "whisper"]
PAD = 0


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny model whose queries and keys are large enough to prefer some keys over others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in _CAUSAL:
            kind, sizes = _CAUSAL[name]
            config = getattr(transformers, f"{kind}Config")(**sizes)
            model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
        elif name in _OTHERS:
            model = _OTHERS[name]()
        else:
            model = architectures.build(name)
        for path, parameter in model.named_parameters():
            if parameter.dim() == 2 and not path.endswith(("norm.weight", "bias")) and "router" not in path:
                # In half precision eager attention rounds its logits: what it rounds is kept small.
                parameter.data.normal_(std=0.12 if dtype == torch.float32 else 0.08)
            elif path.endswith("sinks"):
                parameter.data.normal_()
    return model.eval().to(dtype)


def eager_copy(model: nn.Module) -> nn.Module:
    """The same model with eager attention, which returns its patterns."""
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


def padded(lengths: tuple[int, ...], side: str) -> dict[str, torch.Tensor]:
    """Token ids and attention mask of rows of different lengths, padded on one side."""
    generator = torch.Generator().manual_seed(1)
    width = max(lengths)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, where] = torch.randint(3, architectures.VOCAB, (length,), generator=generator)
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask}
