"""How each attention implementation reads its arguments, and what is said of those that cannot be read."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from attention_architectures import build, eager_copy, padded
from neuroscope_fast.attention_inputs import UnreadableAttention, attention_call, attention_kind
from neuroscope_fast.attention_interface import AttentionGiven
from neuroscope_fast.attention_math import attention_pattern
from neuroscope_fast.errors import CaptureError, HookError
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import StaticCache
from transformers.modeling_utils import AttentionInterface


class FlashReference:
    """Flash attention by its definition: rows without padding, one after the other; keeps its patterns [B, H, Q, K]."""

    def __init__(self) -> None:
        self.patterns: list[torch.Tensor] = []

    def __call__(
        self, _module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        scaling, softcap, s_aux = (options.get(name) for name in ("scaling", "softcap", "s_aux"))
        sliding_window = options.get("sliding_window")
        batch, heads, queries, size = query.shape
        keys = key.shape[2]
        key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
        if mask is None:
            mask = torch.ones(batch, keys)
        pattern = torch.zeros(batch, heads, queries, keys)
        for row in range(batch):
            real_keys = mask[row].nonzero()[:, 0].tolist()
            real_queries = (mask[row, -queries:] if queries > 1 else torch.ones(1)).nonzero()[:, 0].tolist()
            for number, index in enumerate(real_queries):
                end = len(real_keys) - len(real_queries) + number  # aligned to the lower right
                begin = 0 if sliding_window is None else max(0, end - sliding_window + 1)
                seen = real_keys[begin : end + 1]
                logits = (query[row, :, index, None] * key[row][:, seen]).sum(-1) * (scaling or size**-0.5)
                if softcap:
                    logits = torch.tanh(logits / softcap) * softcap
                if s_aux is not None:
                    logits = torch.cat([logits, s_aux[:, None]], dim=-1)
                pattern[row, :, index, seen] = logits.softmax(-1)[:, : len(seen)]
        self.patterns.append(pattern)
        return torch.matmul(pattern, value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_flash_attention(name: str, side: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = FlashReference()
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", reference)
    model = build(name)
    model.config._attn_implementation = "flash_attention_2"
    inputs = padded((7, 7) if side == "none" else (7, 3), "left" if side == "none" else side)
    mask = inputs["attention_mask"]
    past = StaticCache(config=model.config, max_cache_len=16) if cache == "static" else None
    with nsf.capture(model, "model.layers.*:attention_pattern") as cap:
        output = model(**inputs, past_key_values=past, use_cache=True)
        if side != "right":
            more = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
            model(torch.tensor([[5], [6]]), attention_mask=more, past_key_values=output.past_key_values)
    hooks = cap.hook_ids
    steps = len(reference.patterns) // len(hooks)
    for number, hook_id in enumerate(hooks):
        for step in range(steps):
            stored = cap.result[hook_id][step]
            torch.testing.assert_close(stored, reference.patterns[step * len(hooks) + number], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe"])
def test_a_static_cache(name: str) -> None:
    """Keys that are not there yet are masked; sink and previous are counted from the front of the cache."""
    model, length = build(name), 7
    inputs = padded((length, 3), "left")
    hooks = ["model.layers.*:attention_pattern", "model.layers.0:key:key"]
    last = model.config.num_hidden_layers - 1  # Gemma 3: the one without a window
    for reduction in ("sink", "previous"):
        hook = {"layer_name": f"model.layers.{last}", "component": "attention_pattern", "hook_id": reduction}
        hooks.append({**hook, "reduction": reduction})  # type: ignore[arg-type]
    runs = []
    for past in (None, StaticCache(config=model.config, max_cache_len=16)):
        with nsf.capture(model, hooks) as cap:
            output = model(**inputs, past_key_values=past, use_cache=True)
            mask = inputs["attention_mask"]
            for token in (5, 6):
                mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
                model(torch.tensor([[token]] * 2), attention_mask=mask, past_key_values=output.past_key_values)
        runs.append(cap.result)
    growing, static = runs
    for reduction in ("sink", "previous"):
        for one, other in zip(growing[reduction], static[reduction], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for step, (one, other) in enumerate(
        zip(
            growing[f"model.layers.{last}_attention_pattern"],
            static[f"model.layers.{last}_attention_pattern"],
            strict=True,
        )
    ):
        torch.testing.assert_close(other[..., : length + step], one, rtol=0, atol=1e-6)
        assert not other[..., length + step :].any()
    assert [record.positions for record in growing["key"].records] == (
        [None] * 3 if name != "gemma3" else [None, [], []]
    )
    assert static["key"].records[2].positions == []


def given(implementation: str, module: Any = None, queries: int = 5, keys: int = 5, **fields: Any) -> AttentionGiven:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, queries, 8, generator=generator)
    key, value = (torch.randn(2, 2, keys, 8, generator=generator) for _ in range(2))
    mask = fields.pop("mask", None)
    module = SimpleNamespace(is_causal=True) if module is None else module
    return AttentionGiven(implementation, module, query, key, value, mask, fields, torch.empty(2, queries, 4, 8))


def dense(call: AttentionGiven, mask: torch.Tensor) -> torch.Tensor:
    """The pattern of an additive mask."""
    logits = call.query @ call.key.repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    return (logits + mask).softmax(-1)


def test_flex_attention_reads_a_block_mask() -> None:
    lengths = torch.tensor([5, 3])

    def mask_mod(batch: Any, _head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key < lengths[batch])

    call = given("flex_attention", mask=create_block_mask(mask_mod, 2, None, 5, 5, device="cpu"))
    grid = torch.arange(5)
    seen = (grid <= grid[:, None]) & (grid < lengths[:, None, None])
    additive = torch.where(seen, 0.0, float("-inf"))[:, None]
    torch.testing.assert_close(attention_pattern(attention_call(call, None)), dense(call, additive))
    bias = torch.randn(1, 4, 5, 5)
    call = given("flex_attention", mask=additive, position_bias=bias, is_causal=False)
    torch.testing.assert_close(attention_pattern(attention_call(call, None)), dense(call, additive + bias))


def test_sdpa_reads_its_flags() -> None:
    causal = torch.full((5, 5), float("-inf")).triu(1)
    assert torch.allclose(attention_pattern(attention_call(given("sdpa"), None)), dense(given("sdpa"), causal))
    # Its own flag comes before the module's; without either, causal; a mask or a single query is never causal.
    module = SimpleNamespace(is_causal=False)
    assert torch.allclose(
        attention_pattern(attention_call(given("sdpa", module), None)), dense(given("sdpa"), torch.zeros(5, 5))
    )
    assert attention_call(given("sdpa", module, is_causal=True), None).causal_offset == 0
    assert attention_call(given("sdpa", SimpleNamespace()), None).causal_offset == 0
    assert attention_call(given("sdpa", queries=1), None).causal_offset is None
    assert attention_call(given("sdpa", mask=torch.ones(1, 1, 5, 5, dtype=torch.bool)), None).causal_offset is None
    # Aligned to the upper left, where a static cache has room behind the prompt.
    assert attention_call(given("sdpa", keys=9), None).causal_offset == 0
    bias = torch.randn(1, 4, 5, 5)
    biased = attention_call(given("sdpa", mask=causal == 0, position_bias=bias), None)
    torch.testing.assert_close(attention_pattern(biased), dense(given("sdpa"), causal + bias))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sdpa", "sdpa"),
        ("paged|sdpa", "sdpa"),
        ("eager", "eager"),
        ("paged|eager", None),
        ("flex_attention", "flex"),
        ("flash_attention_3", "flash"),
        ("kernels-community/vllm-flash-attn3", "flash"),
        ("mine", None),
    ],
)
def test_names_of_implementations(name: str, kind: str | None) -> None:
    assert attention_kind(name) == kind


def test_packed_sequences_are_refused() -> None:
    call = given("flash_attention_2", position_ids=torch.tensor([[0, 1, 2, 0, 1]]))
    one = call._replace(query=call.query[:1], key=call.key[:1], value=call.value[:1])
    with pytest.raises(UnreadableAttention, match="packed into one row"):
        attention_call(one, None)
    with pytest.raises(UnreadableAttention, match="packed into one row"):
        attention_call(given("flash_attention_2", cu_seq_lens_q=torch.tensor([0, 5])), None)


def test_an_implementation_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = AttentionInterface._global_mapping
    monkeypatch.setitem(mapping, "mine", mapping["sdpa"])
    model = build("llama")
    model.config._attn_implementation = "mine"
    inputs = architectures.inputs("llama")
    with pytest.raises(HookError, match="cannot be told of the attention implementation 'mine'; load the model with"):
        nsf.capture(model, "model.layers.0:attention_pattern").__enter__()
    with nsf.capture(model, "model.layers.0:query:query") as cap:
        model(**inputs)
    assert len(cap.result["query"]) == 1
    model.config._attn_implementation = "sdpa"
    with nsf.capture(model, "model.layers.0:attention_pattern"):
        model.config._attn_implementation = "mine"
        with pytest.raises(CaptureError, match="reads its arguments is not known"):
            model(**inputs)


def test_attention_that_does_more_than_it_is_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = AttentionInterface._global_mapping
    sdpa = mapping["sdpa"]

    def sharper(module: Any, query: Any, *args: Any, **options: Any) -> Any:
        return sdpa(module, query * 2, *args, **options)

    monkeypatch.setitem(mapping, "sdpa", sharper)
    model = build("llama")
    with (
        nsf.capture(model, "model.layers.0:attention_pattern:p"),
        pytest.raises(CaptureError, match="is not what its query, key and mask say") as caught,
    ):
        model(**architectures.inputs("llama"))
    assert "hook 'p' on layer 'model.layers.0'" in str(caught.value)


def test_eager_and_sdpa_give_the_same_pattern() -> None:
    """The model is captured under the implementation that it has, and keeps it."""
    model = build("llama")
    eager = eager_copy(model)
    results = []
    for each in (model, eager, copy.deepcopy(model).to(torch.float64)):
        name = each.config._attn_implementation
        with nsf.capture(each, "model.layers.*:attention_pattern") as cap:
            each(**architectures.inputs("llama"))
            assert each.config._attn_implementation == name
        results.append([cap.result[hook_id][0] for hook_id in cap.hook_ids])
    for one, other, precise in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        torch.testing.assert_close(one, precise, rtol=0, atol=1e-6)
