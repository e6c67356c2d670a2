"""What can be hooked in each of the architectures, written out by hand; a helper of the tests."""

from __future__ import annotations

import re

import architectures
from architectures import EXPERTS, HIDDEN, VOCAB
from neuroscope_fast.head_options import HEAD_COMPONENTS

# Layer name, component and tapped module. A module that begins with a dot is below the layer name; where none
# is given it is the layer name itself. `#` is each layer.
_LLAMA = """
    model.embed_tokens                          embedding
    model.layers.#                              residual
    model.layers.#                              attention   .self_attn
    model.layers.#                              mlp         .mlp
    model.layers.#                              neuron      .mlp.down_proj
    model.layers.#.input_layernorm              layernorm
    model.layers.#.post_attention_layernorm     layernorm
    model.norm                                  layernorm
    lm_head                                     logits      (model)
"""
_QK_NORMS = """
    model.layers.#.self_attn.q_norm             layernorm
    model.layers.#.self_attn.k_norm             layernorm
"""
_GEMMA_NORMS = """
    model.layers.#.pre_feedforward_layernorm    layernorm
    model.layers.#.post_feedforward_layernorm   layernorm
"""
_SPARSE = """
    model.layers.#                              moe         .mlp
    model.layers.#                              router      .mlp.gate
    model.layers.#                              expert      .mlp.experts
"""
_NO_NEURON = re.sub(".*neuron.*", "", _LLAMA)
EXPECTED = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "qwen3": _LLAMA + _QK_NORMS,
    "gemma2": _LLAMA + _GEMMA_NORMS,
    "gemma3": _LLAMA + _GEMMA_NORMS + _QK_NORMS,
    "mixtral": _NO_NEURON + _SPARSE,
    "gpt_oss": _NO_NEURON + _SPARSE.replace(".gate", ".router"),
    "qwen3_moe": _NO_NEURON  # its first layer is dense
    + _QK_NORMS
    + "model.layers.0 neuron .mlp.down_proj\n"
    + _SPARSE.replace("#", "1")
    + _SPARSE.replace("#", "2"),
    "gpt2": """
        transformer.wte                             embedding
        transformer.h.#                             residual
        transformer.h.#                             attention   .attn
        transformer.h.#                             mlp         .mlp
        transformer.h.#                             neuron      .mlp.c_proj
        transformer.h.#.ln_1                        layernorm
        transformer.h.#.ln_2                        layernorm
        transformer.ln_f                            layernorm
        lm_head                                     logits      (model)
    """,
    "gpt_neox": """
        gpt_neox.embed_in                           embedding
        gpt_neox.layers.#                           residual
        gpt_neox.layers.#                           attention   .attention
        gpt_neox.layers.#                           mlp         .mlp
        gpt_neox.layers.#                           neuron      .mlp.dense_4h_to_h
        gpt_neox.layers.#.input_layernorm           layernorm
        gpt_neox.layers.#.post_attention_layernorm  layernorm
        gpt_neox.final_layer_norm                   layernorm
        lm_head                                     logits      (model)
    """,
    "opt": """
        model.decoder.embed_tokens                  embedding
        model.decoder.layers.#                      residual
        model.decoder.layers.#                      attention   .self_attn
        model.decoder.layers.#                      mlp         .fc2
        model.decoder.layers.#                      neuron      .fc2
        model.decoder.layers.#.self_attn_layer_norm layernorm
        model.decoder.layers.#.final_layer_norm     layernorm
        model.decoder.final_layer_norm              layernorm
        lm_head                                     logits      (model)
    """,
    "bloom": """
        transformer.word_embeddings                 embedding
        transformer.word_embeddings_layernorm       layernorm
        transformer.h.#                             residual
        transformer.h.#                             attention   .self_attention
        transformer.h.#                             mlp         .mlp
        transformer.h.#                             neuron      .mlp.dense_4h_to_h
        transformer.h.#.input_layernorm             layernorm
        transformer.h.#.post_attention_layernorm    layernorm
        transformer.ln_f                            layernorm
        lm_head                                     logits      (model)
    """,
    "mamba": """
        backbone.embeddings                         embedding
        backbone.layers.#                           residual
        backbone.layers.#.norm                      layernorm
        backbone.norm_f                             layernorm
        lm_head                                     logits      (model)
    """,
    "bert": """
        bert.embeddings.word_embeddings             embedding
        bert.embeddings.LayerNorm                   layernorm
        bert.encoder.layer.#                        residual
        bert.encoder.layer.#                        attention   .attention
        bert.encoder.layer.#                        mlp         .output.dense
        bert.encoder.layer.#                        neuron      .output.dense
        bert.encoder.layer.#.attention.output.LayerNorm layernorm
        bert.encoder.layer.#.output.LayerNorm       layernorm
        cls.predictions.transform.LayerNorm         layernorm
        cls.predictions.decoder                     logits      (model)
    """,
    "t5": """
        encoder.embed_tokens                        embedding
        encoder.block.#                             residual
        encoder.block.#                             attention   .layer.0.SelfAttention
        encoder.block.#                             mlp         .layer.1.DenseReluDense
        encoder.block.#                             neuron      .layer.1.DenseReluDense.wo
        encoder.block.#.layer.0.layer_norm          layernorm
        encoder.block.#.layer.1.layer_norm          layernorm
        encoder.final_layer_norm                    layernorm
        decoder.embed_tokens                        embedding
        decoder.block.#                             residual
        decoder.block.#                             attention   .layer.0.SelfAttention
        decoder.block.#.layer.1.EncDecAttention     attention
        decoder.block.#                             mlp         .layer.2.DenseReluDense
        decoder.block.#                             neuron      .layer.2.DenseReluDense.wo
        decoder.block.#.layer.0.layer_norm          layernorm
        decoder.block.#.layer.1.layer_norm          layernorm
        decoder.block.#.layer.2.layer_norm          layernorm
        decoder.final_layer_norm                    layernorm
        lm_head                                     logits      (model)
    """,
}


def layer_count(name: str) -> int:
    return 3 if name in ("gemma3", "qwen3_moe") else 2


def expected(name: str) -> set[tuple[str, str, str]]:
    rows = set()
    for line in EXPECTED[name].strip().splitlines():
        if not line.strip():
            continue
        layer, component, *module = line.split()
        path = module[0] if module else layer
        path = {"(model)": ""}.get(path, layer + path if path.startswith(".") else path)
        for index in range(layer_count(name)) if "#" in line else (0,):
            at = layer.replace("#", str(index)), path.replace("#", str(index))
            rows.add((at[0], component, at[1]))
            if component == "attention":
                rows |= {(at[0], each, at[1] + FUNCTION_MODULE.get(name, "")) for each in head_components(name)}
    return rows


FUNCTION_MODULE = {"bert": ".self"}
"""Where the attention module is not itself the one that calls the attention function."""


def head_components(name: str) -> tuple[str, ...]:
    """What an attention module of the architecture has besides its output."""
    return ("attention_pattern",) if name == "bloom" else HEAD_COMPONENTS


def trailing_size(name: str, layer: str, component: str) -> int | None:
    """What the last dimension of a component's tensor is; None for norms inside of attention, and what is split by
    head."""
    if component in HEAD_COMPONENTS:
        return None
    if component == "logits":
        return VOCAB
    if component == "router":
        return EXPERTS
    if component == "neuron":
        return architectures.inner_size(name)
    return None if component == "layernorm" and layer.endswith(("q_norm", "k_norm")) else HIDDEN
