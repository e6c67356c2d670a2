"""Attention kernels on a GPU: sizes of heads, dtypes, and awkward numbers of keys. Compiling takes most of the time, so
not every dtype meets every size.
"""

from __future__ import annotations

import pytest
import torch
from attention_calls import Case, assert_like_the_twin, call, chance

from gpu.attention import OnTheDevice

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.bfloat16, 64),
        (torch.bfloat16, 80),
        (torch.bfloat16, 128),
        (torch.float16, 96),
        (torch.float32, 64),
        (torch.float32, 256),
        (torch.float64, 64),
    ],
    ids=str,
)
@pytest.mark.parametrize("keys", [1, 63, 65, 1000])
def test_sizes_and_dtypes(device: torch.device, dtype: torch.dtype, size: int, keys: int) -> None:
    mask = chance(1, 0.8, 2, 1, 65, keys)
    given = call(2, 6, 2, 65, keys, size, dtype, causal_offset=keys - 65, mask=mask)
    assert_like_the_twin(OnTheDevice(device), Case(given), tolerance=2e-6)  # type: ignore[arg-type]
