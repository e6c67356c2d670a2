"""Patterns of every architecture against those that the same model returns with eager attention."""

from __future__ import annotations

from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from attention_architectures import DECODERS, ENCODER_DECODERS, build, eager_copy, padded
from neuroscope_fast.model_map import components
from neuroscope_fast.records import Record
from torch import nn

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
UNSCALED = 2e-6
"""For T5 in float32, whose scores are not divided by the root of the head size: by so much larger is their rounding,
which differs between processors.
"""
NEW_TOKENS = 4
LENGTHS = (7, 3)


def pattern_hooks(model: nn.Module) -> list[str]:
    return [f"{layer}:{component}" for layer, component, _ in components(model) if component == "attention_pattern"]


def compare(
    stored: torch.Tensor, eager: torch.Tensor, tolerance: float, real: torch.Tensor | None, record: Record
) -> None:
    """`real`: [B, Q], which queries are no padding."""
    assert stored.shape == eager.shape
    eager = eager.to(torch.float32)
    if real is None:
        real = torch.ones(eager.shape[0], eager.shape[2], dtype=torch.bool)
    rows = real[:, None, :, None].expand_as(eager)
    torch.testing.assert_close(stored[rows], eager[rows], rtol=0, atol=tolerance)
    assert not stored[~rows].any()
    listed = torch.zeros_like(real)
    if record.real_tokens is None:
        listed[:] = True
    else:
        for row, ranges in enumerate(record.real_tokens):
            for start, stop in zip(ranges[::2], ranges[1::2], strict=True):
                listed[row, start:stop] = True
    assert torch.equal(listed, real)


def tolerance_of(name: str) -> float:
    return UNSCALED if name == "t5" else TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    eager = eager_copy(model)
    hooks = pattern_hooks(model)
    assert len(hooks) == model.config.get_text_config().num_hidden_layers
    for side in ("right", "left"):
        inputs = padded(LENGTHS, side)
        bare = model(**inputs).logits
        with nsf.capture(model, hooks) as cap:
            assert torch.equal(model(**inputs).logits, bare)
        attentions = eager(**inputs, output_attentions=True).attentions
        for hook_id, attention in zip(cap.hook_ids, attentions, strict=True):
            (stored,), (record,) = cap.result[hook_id], cap.result[hook_id].records
            compare(stored, attention, TOLERANCE[dtype], inputs["attention_mask"] != 0, record)
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    bare = model.generate(**inputs, **options)
    with nsf.capture(model, hooks) as cap:
        hooked = model.generate(**inputs, **options)
    assert torch.equal(hooked.sequences, bare.sequences)
    assert all(torch.equal(one, other) for one, other in zip(hooked.logits, bare.logits, strict=True))
    expected = forced(eager, inputs, hooked.sequences)
    for hook_id, layer in zip(cap.hook_ids, range(len(hooks)), strict=True):
        assert len(cap.result[hook_id]) == NEW_TOKENS
        for stored, record in zip(cap.result[hook_id], cap.result[hook_id].records, strict=True):
            real = inputs["attention_mask"] != 0 if record.step == 0 else None
            compare(stored, expected[record.step][layer], TOLERANCE[dtype], real, record)
            if record.step:
                assert record.positions == [LENGTHS[0] + record.step - 1]


def forced(
    eager: nn.Module, inputs: dict[str, torch.Tensor], sequences: torch.Tensor
) -> list[tuple[torch.Tensor, ...]]:
    """The patterns of each step of a generation that writes `sequences`."""
    prompt = inputs["input_ids"].shape[1]
    output = None
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}

    def allowed(batch: int, so_far: torch.Tensor) -> list[int]:
        return [int(sequences[batch, len(so_far)])]

    output = eager.generate(
        **inputs, **options, prefix_allowed_tokens_fn=allowed, output_attentions=True, return_dict_in_generate=True
    )
    assert torch.equal(output.sequences[:, prompt:], sequences[:, prompt:])
    return list(output.attentions)


def test_an_encoder() -> None:
    model = build("bert")
    inputs = padded(LENGTHS, "right")
    hooks = pattern_hooks(model)
    bare = model(**inputs).logits
    with nsf.capture(model, hooks) as cap:
        assert torch.equal(model(**inputs).logits, bare)
    attentions = eager_copy(model)(**inputs, output_attentions=True).attentions
    for hook_id, attention in zip(cap.hook_ids, attentions, strict=True):
        (stored,), (record,) = cap.result[hook_id], cap.result[hook_id].records
        compare(stored, attention, TOLERANCE[torch.float32], inputs["attention_mask"] != 0, record)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders(name: str) -> None:
    model = build(name)
    inputs: dict[str, Any] = padded(LENGTHS, "right")
    encoder_real = inputs["attention_mask"] != 0
    if name == "whisper":
        generator = torch.Generator().manual_seed(2)
        inputs = {"input_features": torch.randn(2, 8, 20, generator=generator)}
    decoder = padded((5, 4), "right")
    inputs |= {"decoder_input_ids": decoder["input_ids"], "decoder_attention_mask": decoder["attention_mask"]}
    decoder_real = decoder["attention_mask"] != 0
    bare = model(**inputs).logits
    hooks = pattern_hooks(model)
    with nsf.capture(model, hooks) as cap:
        assert torch.equal(model(**inputs).logits, bare)
    output = eager_copy(model)(**inputs, output_attentions=True)
    assert len(hooks) == 6
    seen = {"encoder": 0, "decoder": 0, "cross": 0}
    for hook_id in cap.hook_ids:
        kind = "encoder" if "encoder." in hook_id.replace("encoder_attn", "cross").split("decoder.")[0] else "decoder"
        kind = "cross" if "EncDec" in hook_id or "encoder_attn" in hook_id else kind
        attention = getattr(output, f"{kind}_attentions")[seen[kind]]
        seen[kind] += 1
        (stored,), (record,) = cap.result[hook_id], cap.result[hook_id].records
        real = decoder_real if kind != "encoder" else encoder_real if name != "whisper" else None
        compare(stored, attention, tolerance_of(name), real, record)
    assert seen == {"encoder": 2, "decoder": 2, "cross": 2}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_cross_attention_in_every_decode_step(name: str) -> None:
    model = build(name)
    inputs = padded(LENGTHS, "right")
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    options |= {"num_beams": 1, "return_dict_in_generate": True}
    bare = model.generate(**inputs, **options)
    hooks = [hook for hook in pattern_hooks(model) if "decoder." in hook]
    with nsf.capture(model, hooks) as cap:
        hooked = model.generate(**inputs, **options)
    assert torch.equal(bare.sequences, hooked.sequences)
    output = eager_copy(model).generate(**inputs, **options, output_attentions=True)
    assert torch.equal(bare.sequences, output.sequences)
    layers = {"decoder": 0, "cross": 0}
    for hook_id in cap.hook_ids:
        kind = "cross" if "EncDec" in hook_id or "encoder_attn" in hook_id else "decoder"
        layer = layers[kind]
        layers[kind] += 1
        assert len(cap.result[hook_id]) == NEW_TOKENS
        for step, stored in enumerate(cap.result[hook_id]):
            attention = getattr(output, f"{kind}_attentions")[step][layer]
            torch.testing.assert_close(stored, attention, rtol=0, atol=tolerance_of(name))
