"""Listening to attention functions: who is told, who is not, and that the process is as it was afterwards."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from attention_architectures import build
from neuroscope_fast import attention_interface
from neuroscope_fast.attention_interface import Listening
from neuroscope_fast.errors import CaptureError, HookError
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

HOOK = "model.layers.*:attention_pattern"


def state() -> list[Any]:
    """All that is process-wide in it, by identity."""
    return [
        {name: id(value) for name, value in vars(AttentionInterface).items() if name != "__abstractmethods__"},
        {name: id(value) for name, value in AttentionInterface._global_mapping.items()},
        {name: id(value) for name, value in AttentionMaskInterface._global_mapping.items()},
        dict(vars(ALL_ATTENTION_FUNCTIONS)),
        dict(attention_interface._listeners),
        list(attention_interface._installed),
    ]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


def ids() -> torch.Tensor:
    tokens: torch.Tensor = architectures.inputs("llama")["input_ids"]
    return tokens


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_registries_are_not_touched_while_it_listens(name: str) -> None:
    model = build(name)
    before = state()
    implementation = model.config._attn_implementation
    with nsf.capture(model, HOOK):
        model(ids())
        during = state()
        assert during[1:4] == before[1:4]
        assert "eager" not in ALL_ATTENTION_FUNCTIONS
        assert model.config._attn_implementation == implementation
        assert vars(AttentionInterface)["get_interface"].__wrapped__ is not None
    assert state() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restored_after_an_exception(error: type[BaseException]) -> None:
    model = build("llama")

    def work() -> None:
        with nsf.capture(model, HOOK):
            model(ids())
            raise error

    with pytest.raises(error):
        work()


def test_restored_after_a_start_that_failed() -> None:
    model = build("llama")
    model.config._attn_implementation = "paged|eager"
    before = state()
    with pytest.raises(HookError, match="cannot be told"), nsf.capture(model, HOOK):
        pass
    assert state() == before
    model.config._attn_implementation = "sdpa"

    def refuse(*_: object) -> None:
        raise CaptureError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroscope_fast.passes.PassObserver.attach_last", refuse)
        with pytest.raises(CaptureError, match="no"), nsf.capture(model, HOOK):
            pass
    assert state() == before


def test_captures_within_captures() -> None:
    model, other = build("llama"), build("qwen3")
    with nsf.capture(model, HOOK) as outer:
        model(ids())
        with nsf.capture(model, HOOK) as inner, nsf.capture(other, HOOK) as beside:
            model(ids())
            other(ids())
        model(ids())
        other(ids())
    assert [len(each.result[each.hook_ids[0]]) for each in (outer, inner, beside)] == [3, 1, 1]
    assert torch.equal(outer.result[outer.hook_ids[0]][1], inner.result[inner.hook_ids[0]][0])


def test_the_first_may_end_before_the_second() -> None:
    model = build("llama")
    first, second = nsf.capture(model, HOOK), nsf.capture(model, HOOK)
    first.__enter__()
    second.__enter__()
    model(ids())
    first.__exit__(None, None, None)
    model(ids())
    second.__exit__(None, None, None)
    assert [len(each.result[each.hook_ids[0]]) for each in (first, second)] == [1, 2]


def test_threads() -> None:
    models = [build(name) for name in ("llama", "qwen3", "mistral")]
    counts: list[int] = []

    def work(model: torch.nn.Module) -> None:
        with torch.no_grad():
            for _ in range(5):
                with nsf.capture(model, HOOK) as cap:
                    for _ in range(3):
                        model(ids())
                counts.extend(len(cap.result[hook_id]) for hook_id in cap.hook_ids)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [3] * len(counts)
    assert len(counts) == 3 * 5 * 2


def test_a_copy_of_the_model_is_not_captured() -> None:
    model = build("llama")
    old = build("bloom")
    with nsf.capture(model, HOOK) as cap, nsf.capture(old, "transformer.h.*:attention_pattern") as returned:
        copy.deepcopy(model)(ids())
        copy.deepcopy(old)(ids())
        model(ids())
        old(ids())
    for each in (cap, returned):
        assert [len(each.result[hook_id]) for hook_id in each.hook_ids] == [1, 1]


def test_somebody_else_puts_a_function_before_ours() -> None:
    model = build("llama")
    seen: list[str] = []

    def wrap(inner: Any) -> Any:
        def get_interface(self: Any, name: str, default: Any) -> Any:
            seen.append(name)
            return inner(self, name, default)

        return get_interface

    original = vars(AttentionInterface)["get_interface"]
    with nsf.capture(model, HOOK) as first:
        theirs = wrap(vars(AttentionInterface)["get_interface"])
        AttentionInterface.get_interface = theirs
        model(ids())
    assert vars(AttentionInterface)["get_interface"] is theirs
    model(ids())
    with nsf.capture(model, HOOK) as second:
        model(ids())
    assert vars(AttentionInterface)["get_interface"] is theirs
    assert len(seen) == 3 * 2
    assert [len(each.result[each.hook_ids[0]]) for each in (first, second)] == [1, 1]
    AttentionInterface.get_interface = original


def test_an_older_transformers_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.AttentionInterface", dict)
        with pytest.raises(HookError, match=r"has no AttentionInterface\.get_interface") as caught:
            Listening({}).start()
    assert "\n" not in str(caught.value)
