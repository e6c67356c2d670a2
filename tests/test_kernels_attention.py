"""The Triton kernels of attention, in the interpreter against their twin.

Triton must know at its import that it is to interpret: `KernelTests` run in a process of their own. It multiplies
bfloat16 as the integers that it stores (tried with 3.6): that dtype is left to a GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attention_calls import OF_ROWS, Case, assert_like_the_twin, call, chance, values
from kernel_records import INTERPRETED, floats_of_a_gpu, run_in_the_interpreter
from neuroscope_fast.kernels import reference_attention

FLOAT = torch.float32
INF, NAN = float("inf"), float("nan")


def additive(seed: int, share: float, *shape: int, hidden: float = -INF, dtype: torch.dtype = FLOAT) -> torch.Tensor:
    return values(seed, *shape).to(dtype).masked_fill(~chance(seed, share, *shape), hidden)


def examples() -> dict[str, Case]:
    """What a kernel does differently, each at least once."""
    base: dict[str, Any] = {"batch": 1, "heads": 2, "key_heads": 1, "queries": 65, "keys": 70, "size": 16}

    def of(dtype: torch.dtype = FLOAT, chosen: dict[str, Any] | None = None, **options: Any) -> Case:
        sizes = {name: options.pop(name, base[name]) for name in base}
        return Case(call(**sizes, dtype=dtype, **options), **(chosen or {}))

    small: dict[str, Any] = {"batch": 2, "heads": 2, "key_heads": 1, "queries": 9, "keys": 20}
    lowest = torch.finfo(torch.float16).min
    return {
        "plain": of(),
        "one query": of(queries=1, keys=63, causal_offset=62),
        "one key": of(queries=3, keys=1),
        "causal": of(causal_offset=5),
        "causal, rows that see nothing": of(causal_offset=-3, window=70),
        "a window": of(causal_offset=5, window=7),
        "a window of one": of(causal_offset=0, window=1),
        "a window behind the keys": of(queries=65, keys=10, causal_offset=0, window=4),
        "a cap": of(**small, softcap=0.8, scale=3.0),
        "a cap that hardly bends": of(**small, softcap=50.0),
        "sinks": of(**small, sinks=values(3, 2), causal_offset=-2),
        "sinks larger than all": of(**small, sinks=values(3, 2) + 300, causal_offset=11),
        "a mask of queries and keys, longer": of(mask=chance(4, 0.3, 1, 1, 65, 77), causal_offset=5),
        "a mask of keys": of(**small, mask=chance(5, 0.3, 2, 1, 1, 20)),
        "a bias of each head": of(**small, mask=additive(6, 0.8, 1, 2, 9, 20), padding=chance(6, 0.3, 2, 9)),
        "a mask in float16": of(**small, mask=additive(7, 0.4, 2, 2, 9, 25, hidden=lowest, dtype=torch.float16)),
        "a mask in float64": of(**small, mask=additive(7, 0.4, 9, 20, hidden=-1.7e308, dtype=torch.float64)),
        "padding": of(padding=chance(8, 0.4, 1, 65), causal_offset=0),
        "heads and rows": of(heads=4, key_heads=2, chosen={"heads": [3, 0], "rows": [64, 0, 0, 17]}, causal_offset=5),
        "other rows of each": of(
            chosen={"rows": torch.tensor([[0, 64], [63, 1]]), "places": {"first_key": torch.tensor([3, 69])}},
            batch=2,
            causal_offset=5,
            padding=chance(9, 0.5, 2, 65),
        ),
        "keys that are not there": of(**small, chosen={"places": {"first_key": -1, "own_offset": 15}}),
        "shared key heads": of(**{**small, "heads": 6, "key_heads": 2}),
        "a key head for each": of(**{**small, "key_heads": 2}),
        "size 1": of(**small, size=1),
        "size 80": of(**small, size=80),
        "size 96 in float16": of(torch.float16, **small, size=96, causal_offset=11),
        "size 128": of(**small, size=128),
        "size 256": of(**small, size=256),
    }


class KernelTests:
    """Collected only where Triton interprets."""

    @pytest.fixture(autouse=True)
    def _floats_of_a_gpu(self) -> Iterator[None]:
        with floats_of_a_gpu():
            yield

    @pytest.fixture
    def kernels(self) -> Any:
        from neuroscope_fast.kernels import attention_launch

        return attention_launch

    @pytest.mark.parametrize("example", examples())
    def test_examples(self, kernels: Any, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
        case = examples()[example]
        monkeypatch.setattr(kernels, "_TOP_K_ELEMENTS", math.prod(case.call.logits_shape) * 2 // 3)  # in two parts
        assert_like_the_twin(kernels, case)

    @pytest.mark.parametrize("options", [{}, {"causal_offset": 997, "window": 130}], ids=["all", "window"])
    def test_a_thousand_keys(self, kernels: Any, options: dict[str, Any]) -> None:
        assert_like_the_twin(kernels, Case(call(1, 2, 1, 3, 1000, 32, FLOAT, **options)))

    def test_layouts_do_not_matter(self, kernels: Any) -> None:
        given = call(2, 4, 2, 9, 20, 16, FLOAT)
        want = kernels.attention_pattern(given)
        across = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (given.query, given.key)]
        apart = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in across]
        turned = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (given.query, given.key)]
        for query, key in (across, apart, turned):
            assert torch.equal(kernels.attention_pattern(dataclasses.replace(given, query=query, key=key)), want)
        expanded = dataclasses.replace(
            given, query=given.query[:1, :1].expand(2, 4, 9, 16), key=given.key[:, :1, :1].expand(2, 2, 20, 16)
        )
        assert_like_the_twin(kernels, Case(expanded))

    def test_what_is_not_finite_stays_in_its_row(self, kernels: Any) -> None:
        given = call(1, 2, 1, 8, 8, 8, FLOAT, causal_offset=0)
        clean = kernels.attention_pattern(given)
        given.query[0, 1, 3, 2], given.query[0, 0, 5] = NAN, INF
        given.key[0, 0, 7] = NAN  # which only the last row sees
        dirty = kernels.attention_pattern(given)
        same = torch.ones(2, 8, dtype=torch.bool)
        same[1, 3] = same[0, 5] = same[:, 7] = False
        assert torch.equal(dirty[0][same], clean[0][same])
        assert dirty[0, 1, 3, :4].isnan().all()
        for reduction in ("mean", "max", *OF_ROWS):
            result = kernels.reduce_pattern(given, reduction)[0]
            rows = result if reduction in ("mean", "max") else result.T
            assert rows.isnan().any(-1).tolist() == [row in (3, 5, 7) for row in range(8)], reduction

    def test_equal_weights_are_in_the_order_of_their_keys(self, kernels: Any) -> None:
        given = call(1, 1, 1, 70, 70, 8, FLOAT, scale=0.0, causal_offset=0, window=2)
        indices, weights = kernels.reduce_pattern(given, "top_k", k=4)
        assert indices[0, 0, 60].tolist() == [59, 60, 0, 1]
        assert weights[0, 0, 60].tolist() == [0.5, 0.5, 0.0, 0.0]

    def test_entropies_of_long_rows(self, kernels: Any) -> None:
        for sharpness in (0.0, 1.0, 20.0, 1e3):
            query, key = values(9, 1, 1, 5, 16), values(10, 1, 1, 3000, 16)
            given = call(1, 1, 1, 5, 3000, 16, FLOAT)
            given = dataclasses.replace(given, query=query, key=key, scale=sharpness)
            want = torch.special.entr(reference_attention.attention_pattern(given).double()).sum(-1).float()
            torch.testing.assert_close(kernels.reduce_pattern(given, "entropy"), want, rtol=5e-6, atol=5e-6)

    def test_empty_calls_have_empty_results(self, kernels: Any) -> None:
        for batch, queries in ((0, 3), (2, 0)):
            given = call(batch, 2, 1, queries, 4, 8, FLOAT)
            assert kernels.attention_pattern(given).shape == (batch, 2, queries, 4)
            assert kernels.reduce_pattern(given, "mean").shape == (batch, queries, 4)
            assert kernels.reduce_pattern(given, "entropy").shape == (batch, 2, queries)
            assert kernels.reduce_pattern(given, "top_k", k=9)[0].shape == (batch, 2, queries, 4)


if INTERPRETED:
    TestKernels = KernelTests
else:

    def test_the_kernels_in_the_interpreter() -> None:
        run_in_the_interpreter(__file__)

    def test_the_cpu_needs_the_interpreter() -> None:
        from neuroscope_fast.kernels import attention_launch

        with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
            attention_launch.attention_pattern(call(1, 2, 1, 3, 4, 8, FLOAT))
