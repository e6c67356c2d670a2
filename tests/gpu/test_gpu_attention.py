"""Attention scores, patterns and reductions on a GPU: the kernels against their twin on the CPU, and their memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from attention_calls import assert_like_the_twin, call
from neuroscope_fast import attention_math
from neuroscope_fast.attention_math import AttentionCall
from neuroscope_fast.kernels import reference_attention
from test_kernels_attention import examples

from gpu.attention import OnTheDevice, on

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.mark.parametrize("example", examples())
def test_examples(device: torch.device, example: str) -> None:
    assert_like_the_twin(OnTheDevice(device), examples()[example], tolerance=2e-6)  # type: ignore[arg-type]


def test_a_call_waits_for_nothing(cuda: torch.device) -> None:
    given = on(cuda, call(1, 8, 2, 128, 128, 64, torch.bfloat16, causal_offset=0))

    def results() -> list[Any]:
        options: dict[str, Any] = {"heads": [0, 5], "rows": [127, 3]}
        found = [attention_math.attention_pattern(given, **options)]
        return found + [
            attention_math.reduce_pattern(given, name, k=4, **options) for name in ("mean", "sink", "top_k")
        ]

    results()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        results()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", ["mean", "max", "entropy", "sink", "previous", "top_k"])
def test_memory(cuda: torch.device, reduction: str) -> None:
    """32 heads of 8192 tokens, whose pattern would take 8 GiB."""
    length = 8192
    given = AttentionCall(
        torch.randn(1, 32, length, 64, device=cuda, dtype=torch.bfloat16),
        torch.randn(1, 8, length, 64, device=cuda, dtype=torch.bfloat16),
        0.125,
        causal_offset=0,
    )
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    result = attention_math.reduce_pattern(given, reduction, k=8)
    parts = result if isinstance(result, tuple) else (result,)
    output = sum(part.numel() * part.itemsize for part in parts)
    work = torch.cuda.max_memory_allocated(cuda) - before - output
    assert work < (256 if reduction == "top_k" else 16) * MIB
    last = dataclasses.replace(
        given, query=given.query[:, :, -64:].cpu(), key=given.key.cpu(), causal_offset=length - 64
    )
    want = reference_attention.reduce_pattern(last, reduction, k=8)
    for part, wanted in zip(parts[-1:], (want if isinstance(want, tuple) else (want,))[-1:], strict=True):
        axis = 1 if reduction in ("mean", "max") else 2
        torch.testing.assert_close(part.narrow(axis, length - 64, 64).cpu(), wanted, rtol=1e-4, atol=1e-6)
