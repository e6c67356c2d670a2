# ruff: noqa: PLR0917 - batch, heads, positions and head size have their places
"""Calls of attention functions, for the tests of what is computed from them, and how implementations are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from neuroscope_fast.kernels import reference_attention
from neuroscope_fast.kernels.attention_call import AttentionCall
from torch import Tensor

OF_ROWS = ("entropy", "sink", "previous")
TOLERANCE = 1e-6


def values(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chance(seed: int, share: float, *shape: int) -> Tensor:
    """bool, True with probability `share`."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def call(
    batch: int, heads: int, key_heads: int, queries: int, keys: int, size: int, dtype: torch.dtype, **options: Any
) -> AttentionCall:
    """A call with random query and key, whose logits are about as large as those of a trained model."""
    query = values(1, batch, heads, queries, size).to(dtype)
    key = values(2, batch, key_heads, keys, size).to(dtype)
    return AttentionCall(query, key, **{"scale": 2 * size**-0.5, **options})


@dataclass(frozen=True)
class Case:
    """A call, what is chosen of it, and where its first and own keys are."""

    call: AttentionCall
    heads: list[int] | None = None
    rows: Any = None
    places: dict[str, Any] = field(default_factory=dict)


def assert_like_the_twin(implementation: ModuleType, case: Case, tolerance: float = TOLERANCE) -> None:
    """Everything that there is, held against the plain definition."""
    call, chosen = case.call, {"heads": case.heads, "rows": case.rows}
    twin = reference_attention
    scores = twin.attention_scores(call, **chosen)
    torch.testing.assert_close(
        implementation.attention_scores(call, **chosen), scores, rtol=1e-5, atol=10 * tolerance, equal_nan=True
    )
    pattern = twin.attention_pattern(call, **chosen)
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    torch.testing.assert_close(implementation.attention_pattern(call, **chosen), pattern, **close)
    for reduction in ("mean", "max", *OF_ROWS):
        options = {**chosen, **case.places}
        wanted = twin.reduce_pattern(call, reduction, **options)
        got = implementation.reduce_pattern(call, reduction, **options)
        # An entropy is as far off as the logits are, whose products were added in another order.
        allowed = 5 * tolerance if reduction == "entropy" else tolerance
        close_to = {"rtol": allowed, "atol": allowed, "equal_nan": True}
        torch.testing.assert_close(got, wanted, **close_to, msg=f"{reduction}: {{}}".format)
    for k in (1, 5, call.key.shape[2] + 3):
        indices, weights = implementation.reduce_pattern(call, "top_k", k=k, **chosen)
        wanted_indices, wanted_weights = twin.reduce_pattern(call, "top_k", k=k, **chosen)
        torch.testing.assert_close(weights, wanted_weights, **close)
        # Weights that differ by a rounding may change places.
        torch.testing.assert_close(pattern.gather(-1, indices), wanted_weights, **close)
        nothing = wanted_weights == 0
        assert torch.equal(indices[nothing], wanted_indices[nothing])
        assert indices.dtype == torch.int64


SIZES = st.sampled_from([1, 2, 5, 63, 65, 130])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Calls of every kind, small."""
    batch, key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, queries, keys, seed = key_heads * group, draw(SIZES), draw(SIZES), draw(st.integers(0, 99))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["causal_offset"] = draw(st.sampled_from([keys - queries, 0, 3, -2]))
        options["window"] = draw(st.sampled_from([None, 1, 2, 40]))
    if draw(st.booleans()):
        options["mask"] = draw(masks(batch, heads, queries, keys, seed))
    options["softcap"] = draw(st.sampled_from([None, None, 0.7, 20.0]))
    options["sinks"] = values(seed, heads) if draw(st.booleans()) else None
    options["padding"] = chance(seed, 0.4, batch, queries) if draw(st.booleans()) else None
    size, dtype = draw(st.sampled_from([1, 8, 80])), draw(DTYPES)
    chosen = draw(st.none() | st.permutations(range(heads)).flatmap(lambda all_: st.just(all_[: max(1, heads // 2)])))
    some = st.lists(st.integers(0, queries - 1), min_size=1, max_size=4)
    rows = draw(st.none() | some | st.lists(some, min_size=batch, max_size=batch).map(_rectangle))
    places = {"first_key": draw(st.just(0) | st.just(torch.arange(batch))), "own_offset": draw(st.none() | st.just(1))}
    made = call(batch, heads, key_heads, queries, keys, size, dtype, **options)
    return Case(made, chosen, rows, places)


def _rectangle(rows: list[list[int]]) -> Tensor:
    return torch.tensor([(each * 4)[:4] for each in rows])


@st.composite
def masks(draw: st.DrawFn, batch: int, heads: int, queries: int, keys: int, seed: int) -> Tensor:
    """bool or additive, broadcast in some axes or without them, perhaps longer than the keys."""
    axes = [draw(st.sampled_from([1, full])) for full in (batch, heads, queries)] + [
        keys + draw(st.sampled_from([0, 7]))
    ]
    visible = chance(seed, draw(st.sampled_from([0.05, 0.5, 0.95])), *axes[draw(st.integers(0, 2)) :])
    if draw(st.booleans()):
        return visible
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    hidden = draw(st.sampled_from([float("-inf"), torch.finfo(dtype).min]))
    return values(seed, *visible.shape).to(dtype).masked_fill(~visible, hidden)
