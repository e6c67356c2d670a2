"""Attention scores, patterns and reductions: the twin against eager attention, the blocks against the twin."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_calls import OF_ROWS, Case, assert_like_the_twin, call, cases, chance, values
from hypothesis import given, settings
from neuroscope_fast import attention_blocks, attention_blockwise, attention_math
from neuroscope_fast.attention_math import AttentionCall, attention_pattern, attention_scores, reduce_pattern
from neuroscope_fast.kernels import reference_attention

FLOAT = torch.float32
NAN, INF = float("nan"), float("inf")
IMPLEMENTATIONS = [reference_attention, attention_math]


def causal_mask(batch: int, queries: int, keys: int, padded: int = 0) -> torch.Tensor:
    """[B, 1, Q, K] bool as transformers makes it with a cache, with `padded` tokens on the left of the last prompt."""
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(batch, 1, 1, 1)
    visible[-1, :, :, :padded] = False
    return visible


# ----------------------------------------------------------------------------------------- eager attention


def eager(module: Any, call: AttentionCall, **options: Any) -> torch.Tensor:
    """What `eager_attention_forward` of a modeling file of transformers returns as weights."""
    groups = SimpleNamespace(num_key_value_groups=call.queries_per_key_head, training=False, sinks=call.sinks)
    mask = call.mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(FLOAT).min)
    _, weights = module.eager_attention_forward(
        groups, call.query, call.key, call.key, mask, scaling=call.scale, dropout=0.0, **options
    )
    result: torch.Tensor = weights.float()
    return result


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(FLOAT, 1e-6), (torch.bfloat16, 1e-2)])
def test_patterns_are_those_of_eager_attention(implementation: Any, dtype: torch.dtype, tolerance: float) -> None:
    from transformers.models.gemma2 import modeling_gemma2
    from transformers.models.gpt_oss import modeling_gpt_oss
    from transformers.models.llama import modeling_llama

    for queries, keys in ((33, 33), (1, 34), (5, 70)):
        given = call(2, 6, 2, queries, keys, 64, dtype, mask=causal_mask(2, queries, keys, padded=keys - queries))
        unmasked = dataclasses.replace(given, mask=None)
        sinks = dataclasses.replace(given, sinks=values(3, 6).to(dtype))
        capped = dataclasses.replace(given, softcap=3.0)
        pairs = [(one, eager(modeling_llama, one)) for one in (given, unmasked)]
        pairs.append((sinks, eager(modeling_gpt_oss, sinks)))
        pairs.append((capped, eager(modeling_gemma2, capped, softcap=3.0)))
        for one, want in pairs:
            got = implementation.attention_pattern(one)
            seen = reference_attention.visible_keys(one).any(-1)  # eager attention shares out what nobody sees
            assert got.dtype == torch.float32
            torch.testing.assert_close(got[seen], want[seen], rtol=0, atol=tolerance)
            assert not got[~seen].any()


def test_softmax_of_the_scores_is_the_pattern() -> None:
    given = call(2, 4, 2, 20, 20, 16, FLOAT, mask=causal_mask(2, 20, 20, padded=4), softcap=5.0)
    scores = attention_scores(given)
    pattern = attention_pattern(given)
    seen = reference_attention.visible_keys(given)
    blind = ~seen.any(-1)
    assert int(blind.sum()) == 4 * 4
    assert torch.equal(scores == -INF, ~seen & ~blind[..., None])
    assert not scores[blind].any()
    assert not pattern[blind].any()
    torch.testing.assert_close(scores.softmax(-1)[~blind], pattern[~blind], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the blocks


@contextlib.contextmanager
def small_blocks(size: int) -> Iterator[None]:
    """Blocks of a few rows, keys in pieces, nothing held."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_BLOCK_BYTES", "_LARGE_BLOCK_BYTES", "_PIECE_BYTES"):
            patch.setattr(attention_blocks, name, size)
        patch.setattr(attention_blocks, "_HELD_BYTES", 0)
        yield


@given(cases())
@settings(max_examples=150)
def test_blocks_give_what_the_definition_says(case: Case) -> None:
    assert_like_the_twin(attention_math, case)


@given(cases())
@settings(max_examples=100)
def test_small_blocks_do_so_too(case: Case) -> None:
    with small_blocks(2048):
        assert_like_the_twin(attention_math, case)


@pytest.mark.parametrize("keys", [1, 63, 65, 1000])
@pytest.mark.parametrize("queries", [1, 63, 65])
@pytest.mark.parametrize("key_heads", [1, 6])
def test_awkward_sizes(queries: int, keys: int, key_heads: int) -> None:
    for options in ({}, {"causal_offset": keys - queries}, {"causal_offset": keys - queries, "window": 7}):
        with small_blocks(1 << 15):
            assert_like_the_twin(attention_math, Case(call(2, 6, key_heads, queries, keys, 16, FLOAT, **options)))


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """Views with the values of `x` where it is [B, H, S, D]."""
    return [
        x.transpose(1, 2).contiguous().transpose(1, 2),  # [B, S, H, D], as projections leave it
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x + 1], dim=-1)[..., 0],  # no axis with stride 1
        torch.cat([x + 1, x], dim=2)[:, :, x.shape[2] :],
        x.flip(1).flip(1),
    ]


def test_layouts_do_not_matter() -> None:
    given = call(2, 4, 2, 30, 40, 16, FLOAT, causal_offset=10)
    want = attention_pattern(given)
    for query in layouts(given.query):
        for key in layouts(given.key):
            got = attention_pattern(AttentionCall(query, key, given.scale, causal_offset=10))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    expanded = AttentionCall(
        given.query[:1, :1, :1].expand(2, 4, 30, 16), given.key[:1, :1].expand(2, 2, 40, 16), given.scale
    )
    assert_like_the_twin(attention_math, Case(expanded))


@pytest.mark.parametrize("function", ["attention_scores", "attention_pattern", *OF_ROWS, "mean", "max", "top_k"])
def test_a_selection_is_that_of_the_whole(function: str) -> None:
    given = call(3, 6, 3, 21, 30, 16, FLOAT, causal_offset=9, window=8, mask=chance(4, 0.8, 3, 6, 21, 30))
    heads = [4, 0, 5]
    rows = torch.tensor([[20, 0, 3], [7, 7, 8], [1, 2, 0]])

    def of(call: AttentionCall, **chosen: Any) -> torch.Tensor:
        if function.startswith("attention"):
            result: torch.Tensor = getattr(attention_math, function)(call, **chosen)
            return result
        found = reduce_pattern(call, function, k=4, **chosen)
        return torch.cat(found, dim=-1) if isinstance(found, tuple) else found

    def of_heads(call: AttentionCall) -> AttentionCall:
        """The same with the chosen heads alone."""
        assert call.mask is not None
        query, key, mask = call.query[:, heads], call.key[:, [head // 2 for head in heads]], call.mask[:, heads]
        return dataclasses.replace(call, query=query, key=key, mask=mask)

    whole, over_heads = of(of_heads(given)), function in ("mean", "max")
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(of(given, heads=heads), whole, **close)
    axis = 1 if over_heads else 2
    torch.testing.assert_close(
        of(given, heads=heads, rows=[20, 3]), whole.index_select(axis, torch.tensor([20, 3])), **close
    )
    want = torch.stack([part.index_select(axis - 1, chosen) for part, chosen in zip(whole, rows, strict=True)])
    torch.testing.assert_close(of(given, heads=heads, rows=rows), want, **close)


# --------------------------------------------------------------------------------------- masks and padding


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masks_of_every_form_are_the_same(implementation: Any) -> None:
    visible = causal_mask(2, 12, 20, padded=3)
    given = call(2, 4, 2, 12, 20, 16, FLOAT)
    want = implementation.attention_pattern(dataclasses.replace(given, mask=visible))
    longer = torch.cat([visible, torch.ones(2, 1, 12, 5, dtype=torch.bool)], dim=-1)
    forms = [longer, visible.expand(2, 4, 12, 20)]
    for dtype in (FLOAT, torch.bfloat16, torch.float16, torch.float64):
        for hidden in (-INF, torch.finfo(dtype).min, torch.finfo(dtype).min * 0.75):
            forms.append(torch.zeros(longer.shape, dtype=dtype).masked_fill(~longer, hidden))
    for mask in forms:
        assert torch.equal(implementation.attention_pattern(dataclasses.replace(given, mask=mask)), want)
        assert torch.equal(
            implementation.attention_scores(dataclasses.replace(given, mask=mask)) == -INF,
            ~visible.expand(2, 4, 12, 20),
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_biases_in_the_mask(implementation: Any) -> None:
    """ALiBi, one slope a head, in a mask that hides with the smallest number."""
    distance = torch.arange(9) - torch.arange(9)[:, None]
    slopes = torch.tensor([0.5, 0.25, 0.125])
    mask = (slopes[:, None, None] * distance).masked_fill(distance > 0, torch.finfo(FLOAT).min)
    given = call(1, 3, 3, 9, 9, 8, FLOAT, mask=mask)
    logits = given.query @ given.key.transpose(2, 3) * given.scale + slopes[:, None, None] * distance
    want = logits.masked_fill(distance > 0, -INF).softmax(-1)
    torch.testing.assert_close(implementation.attention_pattern(given), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_window_shows_so_many_keys(implementation: Any) -> None:
    given = call(1, 2, 1, 10, 14, 8, FLOAT, causal_offset=4, window=3)
    seen = implementation.attention_pattern(given) > 0
    for query in range(10):
        assert seen[0, :, query].nonzero()[:, 1].unique().tolist() == [query + 2, query + 3, query + 4]
    assert not reduce_pattern(given, "sink").any()  # no row reaches back to key 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -3.0])])
def test_padding_and_rows_masked_whole_are_zeros(implementation: Any, sinks: torch.Tensor | None) -> None:
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[0, :2] = True
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[1, :, 4] = False
    given = call(2, 2, 2, 6, 6, 8, FLOAT, mask=mask, padding=padding, sinks=sinks)
    given.query[0, :, 0] = NAN
    blind = padding.clone()
    blind[1, 4] = True
    results = [implementation.attention_scores(given), implementation.attention_pattern(given)]
    results += [implementation.reduce_pattern(given, reduction) for reduction in OF_ROWS]
    results += implementation.reduce_pattern(given, "top_k", k=3)
    for result in results:
        rows = result.transpose(1, 2)
        assert torch.equal(rows[blind], torch.zeros_like(rows[blind]))
        assert not rows.isnan().any()
        assert rows[~blind].count_nonzero() > 0
    for reduction in ("mean", "max"):
        result = implementation.reduce_pattern(given, reduction)
        assert not result[blind].any()
        assert result[~blind].all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_not_finite_stays_in_its_row(implementation: Any) -> None:
    given = call(1, 2, 1, 8, 8, 8, FLOAT, causal_offset=0)
    clean = implementation.attention_pattern(given)
    given.query[0, 1, 3, 2] = NAN
    given.query[0, 0, 5] = INF
    dirty = implementation.attention_pattern(given)
    same = torch.ones(2, 8, dtype=torch.bool)
    same[1, 3] = same[0, 5] = False
    assert torch.equal(dirty[0][same], clean[0][same])
    assert dirty[0, 1, 3, :4].isnan().all()
    assert dirty[0, 0, 5, :6].isnan().any()
    for reduction in ("mean", "max", *OF_ROWS):
        result = implementation.reduce_pattern(given, reduction)
        rows = result[0] if reduction in ("mean", "max") else result[0].T
        assert rows.isnan().any(-1).tolist() == [row in (3, 5) for row in range(8)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_hidden_key_has_no_influence(implementation: Any, value: float) -> None:
    mask = chance(5, 0.5, 1, 1, 8, 8)
    for options in ({"causal_offset": 0}, {"mask": mask}, {"mask": torch.zeros(mask.shape).masked_fill(~mask, -INF)}):
        given = call(1, 2, 1, 8, 8, 8, FLOAT, **options)
        clean = implementation.attention_pattern(given)
        hidden = ~reference_attention.visible_keys(given)[0, 0, :, 6]
        given.key[0, 0, 6] = value
        assert hidden.any()
        assert torch.equal(implementation.attention_pattern(given)[:, :, hidden], clean[:, :, hidden])


def test_nothing_is_changed_and_nothing_recorded() -> None:
    given = call(1, 2, 1, 9, 9, 8, FLOAT, causal_offset=0, mask=values(6, 9, 9), softcap=2.0)
    before = [tensor.clone() for tensor in (given.query, given.key, given.mask) if tensor is not None]
    given.query.requires_grad_()
    want = reference_attention.attention_pattern(given)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        got = attention_pattern(given)
        mean = reduce_pattern(given, "mean")
    assert isinstance(mean, torch.Tensor)
    assert not got.requires_grad
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(mean, want.mean(1), rtol=0, atol=1e-6)
    for tensor, old in zip((given.query, given.key, given.mask), before, strict=True):
        assert tensor is not None
        assert torch.equal(tensor, old)


# ------------------------------------------------------------------------------------------------ reductions


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reductions_are_those_of_the_pattern(implementation: Any) -> None:
    given = call(2, 4, 2, 20, 33, 16, FLOAT, causal_offset=13, sinks=values(7, 4), mask=chance(8, 0.7, 2, 1, 20, 33))
    pattern = implementation.attention_pattern(given)
    first = torch.tensor([0, 5])
    wanted = {
        "mean": pattern.mean(1),
        "max": pattern.amax(1),
        "entropy": torch.special.entr(pattern.double()).sum(-1).float(),
        "sink": torch.stack([pattern[0, ..., 0], pattern[1, ..., 5]]),
        "previous": pattern.diagonal(12, 2, 3),  # query i has key i + 13
    }
    for reduction, want in wanted.items():
        got = implementation.reduce_pattern(given, reduction, first_key=first)
        assert (got.dtype, got.shape) == (torch.float32, want.shape)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    indices, weights = implementation.reduce_pattern(given, "top_k", k=40)
    assert weights.shape == (2, 4, 20, 33)
    torch.testing.assert_close(weights, pattern.sort(descending=True).values, rtol=0, atol=1e-6)
    assert torch.equal(indices.sort().values, torch.arange(33).expand(2, 4, 20, 33))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_places_outside_of_the_keys_have_no_probability(implementation: Any) -> None:
    given = call(2, 2, 2, 4, 4, 8, FLOAT)
    first = implementation.reduce_pattern(given, "sink", first_key=torch.tensor([-1, 4]))
    assert first.tolist() == [[[0.0] * 4] * 2] * 2
    previous = implementation.reduce_pattern(given, "previous")
    assert not previous[..., 0].any()
    assert previous[..., 1:].all()
    assert not implementation.reduce_pattern(given, "previous", own_offset=5).any()
    later = implementation.reduce_pattern(given, "previous", own_offset=-2)
    assert later.count_nonzero(-1).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_weights_are_in_the_order_of_their_keys(implementation: Any) -> None:
    given = AttentionCall(torch.zeros(1, 1, 70, 8), torch.ones(1, 1, 70, 8), 1.0, causal_offset=0)
    indices, weights = implementation.reduce_pattern(given, "top_k", k=70)
    assert torch.equal(indices, torch.arange(70).expand(1, 1, 70, 70))
    windowed = dataclasses.replace(given, window=2)
    indices, weights = implementation.reduce_pattern(windowed, "top_k", k=4)
    assert indices[0, 0, 0].tolist() == [0, 1, 2, 3]
    assert indices[0, 0, 60].tolist() == [59, 60, 0, 1]
    assert weights[0, 0, 60].tolist() == [0.5, 0.5, 0.0, 0.0]


def test_entropy_is_exact_where_it_is_small_and_where_it_is_large() -> None:
    for sharpness in (0.0, 1e-3, 1.0, 30.0, 1e3):
        query, key = values(9, 1, 1, 5, 16).double(), values(10, 1, 1, 3000, 16).double()
        pattern = (query @ key.transpose(2, 3) * sharpness).softmax(-1)
        truth = torch.special.entr(pattern).sum(-1).float()
        got = reduce_pattern(AttentionCall(query, key, sharpness), "entropy")
        torch.testing.assert_close(got, truth, rtol=2e-6, atol=1e-7)
        in_floats = reduce_pattern(AttentionCall(query.float(), key.float(), sharpness), "entropy")
        torch.testing.assert_close(in_floats, truth, rtol=1e-3, atol=1e-3)


def test_empty_calls_have_empty_results() -> None:
    for batch, queries in ((0, 3), (2, 0)):
        given = call(batch, 2, 1, queries, 4, 8, FLOAT, causal_offset=1)
        assert attention_pattern(given).shape == (batch, 2, queries, 4)
        assert attention_scores(given).shape == (batch, 2, queries, 4)
        for reduction in ("mean", "max"):
            assert reduce_pattern(given, reduction).shape == (batch, queries, 4)  # type: ignore[union-attr]
        for reduction in OF_ROWS:
            assert reduce_pattern(given, reduction).shape == (batch, 2, queries)  # type: ignore[union-attr]
        assert [part.shape for part in reduce_pattern(given, "top_k", k=9)] == [(batch, 2, queries, 4)] * 2
    assert attention_pattern(call(1, 2, 1, 3, 4, 8, FLOAT), rows=[]).shape == (1, 2, 0, 4)


# -------------------------------------------------------------------------------------------------- refusals

CALLS = [
    ({"query": torch.ones(2, 3, 4)}, r"axes \[batch, heads, positions, head size\], not \[2, 3, 4\]"),
    ({"key": torch.ones(3, 2, 7, 8)}, "do not go together"),
    ({"key": torch.ones(2, 2, 7, 9)}, "do not go together"),
    ({"key": torch.ones(2, 2, 0, 8)}, "do not go together"),
    ({"key": torch.ones(2, 3, 7, 8)}, "4 query heads cannot share 3 key heads"),
    ({"key": torch.ones(2, 2, 7, 8, dtype=torch.float16)}, "not torch.float32 and torch.float16"),
    ({"query": torch.ones(2, 4, 5, 8, dtype=torch.int64)}, "not torch.int64"),
    ({"window": 3}, "needs causal_offset, not 3, None"),
    ({"window": 0, "causal_offset": 0}, "at least 1"),
    ({"softcap": 0.0}, "a soft cap is greater than 0, not 0.0"),
    ({"mask": torch.ones(2, 7, dtype=torch.int64)}, "bool or floating, not torch.int64"),
    ({"mask": torch.ones(2, 1, 5, 6)}, r"a mask of \[2, 1, 5, 6\] cannot be broadcast to \[2, 4, 5, 7\]"),
    ({"mask": torch.ones(2, 3, 5, 7)}, "cannot be broadcast"),
    ({"mask": torch.ones(1, 2, 4, 5, 7)}, "cannot be broadcast"),
    ({"sinks": torch.ones(3)}, r"one number for each of 4 heads, not \[3\]"),
    ({"padding": torch.ones(2, 5)}, r"padding is bool \[2, 5\], not torch.float32 \[2, 5\]"),
    ({"padding": torch.ones(2, 4, dtype=torch.bool)}, "padding is bool"),
    ({"key": torch.ones(2, 2, 7, 8, device="meta")}, "the query is on cpu and key on meta"),
]


@pytest.mark.parametrize(("change", "message"), CALLS)
def test_calls_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionCall(**{"query": torch.ones(2, 4, 5, 8), "key": torch.ones(2, 2, 7, 8), "scale": 1.0, **change})


ARGUMENTS = [
    ({"reduction": "median"}, "there is no reduction 'median'; use mean, max, entropy, sink, previous, top_k"),
    ({"reduction": "top_k"}, "top_k needs k of at least 1, not None"),
    ({"reduction": "top_k", "k": 0}, "top_k needs k of at least 1, not 0"),
    ({"heads": [4]}, "there is no head 4; the heads are 0 to 3"),
    ({"heads": [-1]}, "there is no head -1"),
    ({"heads": []}, "no heads are chosen"),
    ({"heads": [1, 1]}, "head 1 is chosen twice"),
    ({"rows": [0, 5]}, "there is no query row 5; the rows are 0 to 4"),
    ({"rows": [-1]}, "there is no query row -1"),
    (
        {"rows": torch.zeros(3, 1, dtype=torch.int64)},
        r"rows are int64 \[rows\] or \[2, rows\], not torch.int64 \[3, 1\]",
    ),
    ({"rows": torch.zeros(3)}, "not torch.float32"),
    ({"reduction": "sink", "first_key": torch.zeros(3, dtype=torch.int64)}, "first_key is one index or 2"),
    ({"reduction": "sink", "first_key": torch.zeros(2)}, "not torch.float32"),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("change", "message"), ARGUMENTS)
def test_arguments_that_cannot_be(implementation: Any, change: dict[str, Any], message: str) -> None:
    arguments = {"reduction": "mean", **change}
    with pytest.raises(ValueError, match=message):
        implementation.reduce_pattern(call(2, 4, 2, 5, 7, 8, FLOAT), arguments.pop("reduction"), **arguments)


# ---------------------------------------------------------------------------------------------------- memory

PEAK = """
import torch
from neuroscope_fast.attention_math import AttentionCall, reduce_pattern

def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

def work(batch, heads, key_heads, queries, keys, size, dtype, reduction, make_mask=None):
    torch.manual_seed(0)
    query = torch.randn(batch, heads, queries, size, dtype=dtype)
    key = torch.randn(batch, key_heads, keys, size, dtype=dtype)
    options = {"causal_offset": keys - queries} if make_mask is None else {"mask": make_mask()}
    reduce_pattern(AttentionCall(query[:, :, :8], key, 0.1), reduction, k=8)  # what is loaded once
    call = AttentionCall(query, key, 0.1, **options)
    try:
        open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew, where that is allowed
    except OSError:
        pass
    before = memory("VmRSS")
    result = reduce_pattern(call, reduction, k=8)
    parts = result if isinstance(result, tuple) else (result,)
    print(memory("VmHWM") - before, sum(part.numel() * part.itemsize for part in parts) / 2**20)

"""

WORKS = {
    "8192 tokens": 'work(1, 32, 32, 8192, 8192, 64, torch.float32, "mean")',
    "shared keys in bfloat16": 'work(1, 16, 2, 64, 65536, 128, torch.bfloat16, "max")',
    "a mask": 'work(1, 4, 4, 4096, 4096, 64, torch.float32, "entropy", lambda: torch.randn(1, 1, 4096, 4096))',
    "a bias of each head": 'work(1, 4, 2, 2048, 4096, 64, torch.float32, "mean", lambda: torch.randn(4, 2048, 4096))',
    "top_k": 'work(2, 8, 8, 512, 16384, 32, torch.float32, "top_k")',
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("what", WORKS)
def test_memory(what: str) -> None:
    """In a process of its own: beyond arguments and result no more than the bound, and for the mean over 32 heads of
    8192 tokens, whose pattern would take 8 GiB, less than 1 GiB with the result.
    """
    result = subprocess.run([sys.executable, "-c", PEAK + WORKS[what]], capture_output=True, text=True, check=True)
    peak, output = map(float, result.stdout.split())
    assert peak < 1024
    assert peak - output < attention_blocks.WORK_BYTES / 2**20


def test_blocks_beyond_the_diagonal_are_not_computed() -> None:
    def columns(given: AttentionCall) -> int:
        selection = attention_blockwise.select(given, None, None)
        blocks = attention_blocks.logit_blocks(given, selection)
        return sum(block.logits.shape[1] * block.logits.shape[2] for block in blocks)

    length = 1024
    square = length * length
    given = call(1, 1, 1, length, length, 8, FLOAT)
    assert columns(given) == square
    causal = columns(dataclasses.replace(given, causal_offset=0))
    assert causal <= square * 0.65
    assert columns(dataclasses.replace(given, mask=causal_mask(1, length, length))) == causal
    assert columns(dataclasses.replace(given, causal_offset=0, window=16)) <= square * 0.3
    padded = causal_mask(1, length, length, padded=length // 2)
    assert columns(dataclasses.replace(given, mask=padded)) <= square * 0.2
