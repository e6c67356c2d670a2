"""Tiny, randomly initialised models of sixteen architectures, and inputs for them; a helper of the tests.

`build(name)` gives a model with its language-modelling head in eval mode, `inputs(name)` the keyword
arguments of one forward pass. Sizes are the smallest that keep the structure (grouped heads, several experts,
a sliding window, …) and differ from one another wherever they can, so that a test which looks at a trailing
dimension cannot be fooled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers

HIDDEN = 48
"""The hidden size of every model here."""
INNER = 80
"""Width of a dense MLP (`intermediate_size`) in every model here."""
EXPERTS = 4
"""Experts of a sparse block."""
VOCAB = 101
"""Vocabulary size."""
LAYERS = 2
"""Layers (T5: of either stack); Gemma 3 and Qwen3-MoE have 3."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_SIZES: dict[str, Any] = {  # the arguments of most configurations
    **_COMMON,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_SPARSE: dict[str, Any] = {"num_experts_per_tok": 2}


def _model(kind: str, config: str, **options: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        model: torch.nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options))
        return model

    return make


_BUILDERS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": _model("LlamaForCausalLM", "LlamaConfig", **LLAMA_SIZES),
    "gpt2": _model(
        "GPT2LMHeadModel",
        "GPT2Config",
        **_COMMON,
        n_embd=HIDDEN,
        n_inner=INNER,
        n_layer=LAYERS,
        n_head=4,
        n_positions=128,
    ),
    "gpt_neox": _model(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        **{key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"},
    ),
    "qwen3": _model("Qwen3ForCausalLM", "Qwen3Config", **LLAMA_SIZES, head_dim=16),
    "gemma2": _model("Gemma2ForCausalLM", "Gemma2Config", **LLAMA_SIZES, head_dim=16, sliding_window=4),
    "gemma3": _model(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        **{**LLAMA_SIZES, "num_hidden_layers": 3},
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "mistral": _model("MistralForCausalLM", "MistralConfig", **LLAMA_SIZES, sliding_window=4),
    "mixtral": _model("MixtralForCausalLM", "MixtralConfig", **LLAMA_SIZES, **_SPARSE, num_local_experts=EXPERTS),
    "qwen3_moe": _model(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        **{**LLAMA_SIZES, "num_hidden_layers": 3},
        **_SPARSE,
        head_dim=16,
        num_experts=EXPERTS,
        moe_intermediate_size=24,
        mlp_only_layers=[0],
    ),
    "gpt_oss": _model(
        "GptOssForCausalLM",
        "GptOssConfig",
        **LLAMA_SIZES,
        **_SPARSE,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        num_local_experts=EXPERTS,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "opt": _model(
        "OPTForCausalLM",
        "OPTConfig",
        **_COMMON,
        hidden_size=HIDDEN,
        ffn_dim=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=HIDDEN,
    ),
    "phi3": _model("Phi3ForCausalLM", "Phi3Config", **LLAMA_SIZES),
    "bloom": _model("BloomForCausalLM", "BloomConfig", **_COMMON, hidden_size=HIDDEN, n_layer=LAYERS, n_head=4),
    "mamba": _model(
        "MambaForCausalLM",
        "MambaConfig",
        **_COMMON,
        hidden_size=HIDDEN,
        state_size=8,
        num_hidden_layers=LAYERS,
        conv_kernel=4,
        expand=2,
    ),
    "bert": _model(
        "BertForMaskedLM",
        "BertConfig",
        **{key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"},
    ),
    "t5": _model(
        "T5ForConditionalGeneration",
        "T5Config",
        **_COMMON,
        d_model=HIDDEN,
        d_kv=16,
        d_ff=INNER,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=4,
        decoder_start_token_id=0,
    ),
}

ARCHITECTURES: list[str] = list(_BUILDERS)
"""The names that `build` and `inputs` take."""


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A tiny model of the architecture `name` in eval mode; equal seeds give equal weights, torch's own
    generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _BUILDERS[name]().eval()


def inner_size(name: str) -> int:
    """The width of the architecture's dense MLPs; BLOOM's is always four times the hidden size."""
    return 4 * HIDDEN if name == "bloom" else INNER


@functools.cache
def shared(name: str) -> torch.nn.Module:
    """The model of seed 0, built once for all tests that only look at it."""
    return build(name)


def inputs(name: str, batch: int = 1, length: int = 7, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of one forward pass over `batch` rows of `length` random tokens, none of them
    padding."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(width: int) -> torch.Tensor:
        return torch.randint(3, VOCAB, (batch, width), generator=generator)

    forward: dict[str, Any] = {"input_ids": tokens(length)}
    if name == "t5":
        forward["decoder_input_ids"] = tokens(max(1, length - 2))
    return forward
