"""Taps that know their tensors from the last call store what taps do that look at each one anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from tiny_models import llama
from torch import nn

HOOKS = ["model.layers.*:residual", "model.layers.*.self_attn:query", "lm_head:logits", "model.layers.0.mlp:neuron"]


class Place(nn.Module):
    """Hands on what it is given."""

    def forward(self, value: Any) -> Any:
        return value


class Echo(nn.Module):
    """Three places, of which the later ones find the notes that the first has made."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.second, self.third = Place(), Place(), Place()

    def forward(self, value: Any) -> Any:
        return self.third(self.second(self.body(value)))


ECHO = ["body:mlp:x", "second:mlp:y", "third:mlp:z"]


def short_ways(capture: Any) -> int:
    """How many of a capture's records went the short way."""
    count: int = capture._running.session.small_records
    return count


def stored(run: Callable[[Any], None], model: nn.Module, hooks: Any, **options: Any) -> list[tuple[Any, torch.Tensor]]:
    """Every record as its metadata beside its tensor, in the order of capture."""
    with nsf.capture(model, hooks, **options) as capture:
        run(capture)
    assert (short_ways(capture) > 0) == (options["tensor_access"] == "dlpack" and options["dtype"] != "int8")
    result = capture.result
    found = []
    for hook in result.hooks:
        for record, tensor in zip(result[hook].records, result[hook], strict=True):
            label = (hook, record.step, record.prompt, record.call, record.positions, record.real_tokens, record.dtype)
            found.append((label, tensor))
    return found


def assert_same(run: Callable[[Any], None], model: nn.Module, hooks: Any, **options: Any) -> None:
    known = stored(run, model, hooks, tensor_access="dlpack", **options)
    anew = stored(run, model, hooks, tensor_access="attributes", **options)
    assert [label for label, _ in known] == [label for label, _ in anew]
    assert known
    for (label, one), (_, other) in zip(known, anew, strict=True):
        assert one.dtype == other.dtype, label
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), label


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_generate_with_padding_and_several_prompts(dtype: str | None) -> None:
    model = llama()
    ids = torch.randint(3, 60, (3, 7))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :1] = 0

    def run(capture: Any) -> None:
        for rows in (3, 1, 2):
            capture.next_prompt()
            model.generate(ids[:rows], attention_mask=mask[:rows], max_new_tokens=6, do_sample=False, pad_token_id=0)

    assert_same(run, model, HOOKS, dtype=dtype)


def test_tensors_that_change_their_kind() -> None:
    model = Echo()
    base = torch.arange(48.0).reshape(2, 3, 8)
    kinds = [
        base,
        base + 1,
        base + 2,
        base.transpose(0, 1),  # another shape
        (base + 3).transpose(1, 2).contiguous().transpose(1, 2),  # the first shape, other strides
        base + 4,
        (base + 5).to(torch.float64),
        (base + 6).to(torch.bfloat16),
        (base + 7).to(torch.int32),
        (base + 8)[:, :, ::2].repeat(1, 1, 2),
        base + 9,
        torch.complex(base, base + 1).conj(),
        torch.complex(base, base + 2),
        torch.complex(base, base + 2).conj(),
        base + 10,
        torch._neg_view(base + 10),  # type: ignore[attr-defined]
        torch.complex(base, base + 1).conj().imag.as_strided((2, 3, 8), (24, 8, 1), 1),
        torch.complex(base, base + 3).conj().imag,
        torch.complex(base, base + 4).conj().imag.contiguous(),
        torch.complex(base, base + 5).conj().imag[:1, :1],
        torch.complex(base, base + 6).conj().imag[:1, :1, :1],  # one element: contiguous whatever its strides
        torch.complex(base, base + 7).conj()[:1, :1, :1].imag.reshape(()),
        torch.complex(base, base + 8).conj()[:1, :1, :1].imag.expand(2, 3, 8),
        torch.complex(base, base + 9).conj().imag[:0],
        base + 11,
        base.reshape(2, 3, 2, 4),
        base.reshape(48),
        torch.tensor(3.0),
        torch.tensor(4.0),
        torch.empty(0, 3),
        torch.empty(0, 3),
        base.expand(4, 2, 3, 8),
        nn.Parameter(base + 12),
        torch.zeros(*[1] * 12),
        torch.zeros(*[1] * 12),
        base + 13,
    ]
    values = [value for value in kinds for _ in range(3)]
    with nsf.capture(model, ECHO) as capture:
        for value in values:
            model(value)
    assert short_ways(capture) > 50
    for hook in "xyz":
        for number, (value, tensor) in enumerate(zip(values, capture.result[hook], strict=True)):
            assert tensor.dtype == value.dtype, (hook, number)
            assert torch.equal(tensor, value.detach()), (hook, number)


@pytest.mark.parametrize("access", ["dlpack", "attributes"])
def test_conjugated_tensors_in_a_row(access: str) -> None:
    model, base = Echo(), torch.arange(4.0)
    values = [torch.complex(base, base + number) for number in range(6)]
    values[3:] = [value.conj() for value in values[3:]]
    with nsf.capture(model, ECHO, tensor_access=access) as capture:
        for value in [*values, *reversed(values)]:
            model(value)
    for hook in "xyz":
        assert all(map(torch.equal, capture.result[hook], [*values, *reversed(values)]))


def test_a_tensor_changed_in_place_between_calls() -> None:
    model, value = Echo(), torch.zeros(1, 1, 64)
    with nsf.capture(model, ECHO) as capture:
        for number in range(300):
            value.fill_(number)
            model(value)
        value.fill_(-1)
    assert short_ways(capture) > 800
    for hook in "xyz":
        assert [float(tensor[0, 0, 0]) for tensor in capture.result[hook]] == list(range(300))
        assert all(bool((tensor == tensor[0, 0, 0]).all()) for tensor in capture.result[hook])


@pytest.mark.parametrize("elements", [8191, 8192, 8193])
def test_the_size_from_which_copies_are_made_without_the_gil(elements: int) -> None:
    model = Echo()
    values = [torch.randn(elements) for _ in range(5)]
    with nsf.capture(model, ECHO) as capture:
        for value in values:
            model(value)
    assert (short_ways(capture) > 0) == (elements <= 8192)
    assert all(map(torch.equal, capture.result["z"], values))


def test_two_threads_with_tensors_of_different_kinds() -> None:
    model = Echo()
    failures: list[BaseException] = []

    def work(width: int) -> None:
        try:
            for number in range(400):
                model(torch.full((1, 1, width), float(number * 100 + width)))
        except BaseException as error:
            failures.append(error)

    with nsf.capture(model, ECHO) as capture:
        threads = [threading.Thread(target=work, args=(width,)) for width in (3, 4, 4, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert short_ways(capture) > 0
    seen: dict[int, list[float]] = {}
    for tensor in capture.result["x"]:
        width = tensor.shape[-1]
        assert bool((tensor == tensor[0, 0, 0]).all())
        assert (float(tensor[0, 0, 0]) - width) % 100 == 0
        seen.setdefault(width, []).append(float(tensor[0, 0, 0]))
    assert {width: len(values) for width, values in seen.items()} == {3: 400, 4: 800, 5: 400}
    assert sorted(seen[3]) == [number * 100 + 3 for number in range(400)]


def test_small_tensors_are_timed_and_counted() -> None:
    model = Echo()
    with nsf.capture(model, ECHO) as capture:
        for _ in range(50):
            model(torch.zeros(1, 1, 16))
    counters = capture.result.manifest.counters
    assert short_ways(capture) > 100
    assert counters.records == 150
    assert counters.bytes_in == 150 * 64
    assert 0 < counters.tap_seconds < 1
