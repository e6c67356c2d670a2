"""Steps, positions and padding however a model is run: interrupted, wrapped, cached, in parts, in training."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from conftest import hook_state
from neuroscope_fast.pass_inputs import UNKNOWN_OFFSET, padding
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, StaticCache

IDS = torch.tensor([[0, 0, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8]])
LEFT = (IDS != 0).long()
RESIDUAL = {"layer_name": "model.layers.0", "component": "residual", "hook_id": "x"}


def labels(cap: nsf.Capture, hook_id: str = "x") -> list[tuple[Any, ...]]:
    return [(r.step, r.call, tuple(r.shape[:2]), r.positions, r.real_tokens) for r in cap.result[hook_id].records]


def test_an_interrupt_inside_a_forward_ends_its_step(llama: nn.Module) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with nsf.capture(llama, RESIDUAL) as cap:
        llama(IDS)
        handle = llama.get_submodule("model.layers.1").register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llama(IDS)
        handle.remove()
        llama(IDS[:, :3])
        llama(IDS, attention_mask=LEFT)
    assert labels(cap) == [
        (0, 0, (2, 6), None, None),
        (1, 0, (2, 6), None, None),
        (2, 0, (2, 3), None, None),
        (3, 0, (2, 6), None, [[2, 6], [0, 6]]),
    ]


def test_an_interrupted_decode_step_is_over(llama: nn.Module) -> None:
    """The same cache goes on, in the root or in the inner model called directly: no part of the interrupted step."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = DynamicCache(config=llama.config)
    with nsf.capture(llama, {**RESIDUAL, "positions": [0, 6, 7]}) as cap:
        llama(IDS, past_key_values=cache)
        for go_on in (llama, llama.get_submodule("model")):
            handle = llama.get_submodule("model.layers.0").register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                llama(IDS[:, :1], past_key_values=cache)  # before a token has come into the cache
            handle.remove()
            go_on(IDS[:, :1], past_key_values=cache)
    assert [(r.step, r.call, r.positions) for r in cap.result["x"].records] == [(0, 0, [0]), (2, 0, [6]), (4, 0, [7])]


def test_a_decode_step_that_reads_a_padded_prompt_too(llama: nn.Module) -> None:
    """As contrastive decoding does: the first pass of the block goes on with a cache, and holds a prefill."""

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama

        def forward(self, input_ids: torch.Tensor, past_key_values: Any) -> Any:
            self.inner(IDS, attention_mask=LEFT)
            return self.inner(input_ids, past_key_values=past_key_values)

    cache = DynamicCache(config=llama.config)
    llama(IDS, past_key_values=cache)
    model = Contrast()
    with nsf.capture(model, {**RESIDUAL, "layer_name": "inner.model.layers.0"}) as cap:
        model(IDS[:, :1], cache)
    assert [(r.step, r.call, r.shape[1]) for r in cap.result["x"].records] == [(0, 0, 6), (0, 1, 1)]


class Chunked(nn.Module):
    """Reads its tokens two by two, and returns no cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, cache_params: Any) -> torch.Tensor:
        parts = [self.inner(part, cache_params=cache_params, use_cache=True).logits for part in input_ids.split(2, 1)]
        return torch.cat(parts, 1)


def test_inner_passes_are_counted_for_a_cache_that_does_not_count() -> None:
    """Six tokens, four in two inner passes of one, then one: its position is 10."""
    mamba = architectures.build("mamba")
    model = Chunked(mamba)
    hook = {"layer_name": "inner.backbone.layers.0", "component": "residual", "hook_id": "x", "positions": [10]}
    with nsf.capture(model, hook) as cap:
        cache = mamba(IDS[1:], use_cache=True).cache_params
        model(IDS[1:, :4], cache)
        mamba(IDS[1:, :1], cache_params=cache, use_cache=True)
    assert [(r.step, r.positions) for r in cap.result["x"].records] == [(2, [10])]


def test_an_interrupted_pass_keeps_nothing_alive(llama: nn.Module) -> None:
    """The frames of whoever called it, with a cache that may fill a GPU, and the cache itself."""

    class Large:
        pass

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def user() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        local, cache = Large(), DynamicCache(config=llama.config)
        handle = llama.get_submodule("model.layers.1").register_forward_pre_hook(interrupt)
        try:
            llama(IDS, past_key_values=cache)
        except KeyboardInterrupt:
            pass
        finally:
            handle.remove()
        return weakref.ref(local), weakref.ref(cache)

    with nsf.capture(llama, RESIDUAL):
        left = user()
        gc.collect()
        assert [each() for each in left] == [None, None]


def test_a_capture_that_is_dropped_is_freed_at_once(llama: nn.Module) -> None:
    """Its tensors too: they may be gigabytes, and the cyclic collector may not come for long."""
    gc.collect()
    gc.disable()
    try:
        with nsf.capture(llama, RESIDUAL) as cap:
            llama(IDS)
            (hook,) = llama._forward_pre_hooks.values()
            observer = weakref.ref(hook.__self__._observer)
            copied = copy.deepcopy(llama)  # with the hooks
            del hook
        assert observer() is not None
        del cap
        assert observer() is None
        copied(IDS)
    finally:
        gc.enable()


class Again(nn.Module):
    """Its first pass holds a second one of itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, *, again: bool = True) -> Any:
        if again:
            self(input_ids, past_key_values, again=False)
        return self.inner(input_ids, past_key_values=past_key_values)


def test_a_model_that_calls_itself(llama: nn.Module) -> None:
    cache = DynamicCache(config=llama.config)
    model = Again(llama)
    with nsf.capture(model, {**RESIDUAL, "layer_name": "inner.model.layers.0"}) as cap:
        model(IDS, cache)
        model(IDS[:, :1], cache)
        model(IDS[:, :1], cache)
    assert [(r.step, r.call) for r in cap.result["x"].records] == [(step, call) for step in range(3) for call in (0, 1)]


@pytest.mark.parametrize(("positions", "kept"), [("all", [5, 6, 7]), ("last", [5, 6, 7]), ([0], []), ([5, 7], [5, 7])])
def test_logits_of_a_generation_say_which_positions_they_are(llama: nn.Module, positions: Any, kept: list[int]) -> None:
    hook = {"layer_name": "lm_head", "component": "logits", "hook_id": "x", "positions": positions}
    with nsf.capture(llama, hook) as cap:
        llama.generate(IDS[1:], max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert [p for record in cap.result["x"].records for p in record.positions] == kept


def test_last_logits_of_a_padded_batch(llama: nn.Module) -> None:
    right = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    hooks = [{"layer_name": "lm_head", "component": "logits", "hook_id": "x", "positions": "last"}]
    with nsf.capture(llama, hooks) as cap:
        logits = llama(IDS, attention_mask=right, logits_to_keep=2).logits
    (record,) = cap.result["x"].records
    assert record.positions == [[4], [5]]
    assert torch.equal(cap.result["x"][0][:, 0], torch.stack([logits[0, 0], logits[1, 1]]))


class Wrapper(nn.Module):
    """As adapters wrap a model: generate() calls the inner model, and the root's forward never runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.generate = inner.generate

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("through_root", [False, True])
def test_a_wrapped_model(llama: nn.Module, through_root: bool) -> None:
    wrapped = Wrapper(llama)
    hook = {"layer_name": "inner.model.layers.0", "component": "residual"}
    hooks = [
        {**hook, "hook_id": "x"},
        {**hook, "hook_id": "prefill", "phase": "prefill"},
        {**hook, "hook_id": "decode", "phase": "decode"},
        {**hook, "hook_id": "some", "positions": [0, 7]},
    ]
    with nsf.capture(wrapped, hooks) as cap:
        if through_root:
            wrapped(IDS, LEFT)
        else:
            wrapped.generate(IDS, attention_mask=LEFT, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    prefill = (0, 0, (2, 6), None, [[2, 6], [0, 6]])
    if through_root:
        assert labels(cap) == [prefill]
        return
    assert labels(cap) == [prefill, (1, 0, (2, 1), [6], None), (2, 0, (2, 1), [7], None)]
    assert [label[0] for label in labels(cap, "prefill")] == [0]
    assert [label[0] for label in labels(cap, "decode")] == [1, 2]
    assert [record.positions for record in cap.result["some"].records] == [[0], [7]]
    assert cap.result.metadata.usage.prompt_tokens == 10


def test_the_inner_model_called_directly(llama: nn.Module) -> None:
    with nsf.capture(llama, RESIDUAL) as cap:
        llama.get_submodule("model")(IDS, attention_mask=LEFT)
        llama(IDS)
        llama.get_submodule("model")(IDS)
    assert [(step, call, real) for step, call, _, _, real in labels(cap)] == [
        (0, 0, [[2, 6], [0, 6]]),
        (1, 0, None),
        (2, 0, None),
    ]


def test_recomputed_checkpoints_are_no_steps() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.body, x, use_reentrant=True)

    model = Checkpointed()
    with torch.enable_grad(), nsf.capture(model, "body:mlp:x") as cap:
        for _ in range(2):
            model(torch.randn(1, 3, 4, requires_grad=True)).sum().backward()
    assert [(r.step, r.call) for r in cap.result["x"].records] == [(0, 0), (1, 0)]


def test_an_outer_capture_outlives_many_inner_ones(llama: nn.Module) -> None:
    with nsf.capture(llama, RESIDUAL) as outer:
        for _ in range(70):
            with nsf.capture(llama, RESIDUAL):
                llama(IDS[:1, :2])
    assert [(r.step, r.call) for r in outer.result["x"].records] == [(step, 0) for step in range(70)]


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_padding_with_every_cache(llama: nn.Module, implementation: str) -> None:
    with nsf.capture(llama, RESIDUAL) as cap:
        llama.generate(
            IDS,
            attention_mask=LEFT,
            max_new_tokens=3,
            min_new_tokens=3,
            cache_implementation=implementation,
            pad_token_id=0,
            disable_compile=True,
        )
    assert labels(cap) == [
        (0, 0, (2, 6), None, [[2, 6], [0, 6]]),
        (1, 0, (2, 1), [6], None),
        (2, 0, (2, 1), [7], None),
    ]
    assert cap.result.metadata.usage.total_tokens == 14


def test_a_mask_as_wide_as_a_static_cache(llama: nn.Module) -> None:
    cache = StaticCache(config=llama.config, max_cache_len=16)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[:, :6] = LEFT
    with nsf.capture(llama, RESIDUAL) as cap:
        llama(IDS, attention_mask=mask, past_key_values=cache)
    assert labels(cap) == [(0, 0, (2, 6), None, [[2, 6], [0, 6]])]


def test_prefill_in_chunks_and_a_kept_cache(llama: nn.Module) -> None:
    cache = DynamicCache(config=llama.config)
    llama(IDS[1:, :2], past_key_values=cache)
    with nsf.capture(llama, [RESIDUAL, {**RESIDUAL, "hook_id": "decode", "phase": "decode"}]) as cap:
        llama(IDS[1:, 2:5], past_key_values=cache)
        llama(IDS[1:, 5:], past_key_values=cache)
    assert labels(cap) == [(0, 0, (1, 3), [2, 3, 4], None), (1, 0, (1, 1), [5], None)]
    assert [label[0] for label in labels(cap, "decode")] == [1]


def test_a_state_space_cache_of_its_own_making() -> None:
    model = architectures.build("mamba")
    with nsf.capture(model, "backbone.layers.0:residual:x") as cap:
        cache = model(IDS[1:], use_cache=True).cache_params
        for _ in range(2):
            model(IDS[1:, :1], cache_params=cache, use_cache=True)
    assert [record.positions for record in cap.result["x"].records] == [None, [6], [7]]


def test_a_cache_of_unknown_length() -> None:
    model = architectures.build("mamba")
    cache = model(IDS[1:], use_cache=True).cache_params
    hook = {"layer_name": "backbone.layers.0", "component": "residual"}
    hooks = [{**hook, "hook_id": "x"}, {**hook, "hook_id": "decode", "phase": "decode"}]
    with nsf.capture(model, hooks) as cap:
        model(IDS[1:, :1], cache_params=cache, use_cache=True)
    assert [record.positions for record in cap.result["x"].records] == [[]]
    assert len(cap.result["decode"]) == 1
    with (
        pytest.raises(nsf.CaptureError, match="does not say how many tokens it holds"),
        nsf.capture(model, {**hook, "positions": [0]}),
    ):
        model(IDS[1:, :1], cache_params=cache, use_cache=True)


def test_what_is_not_known_is_not_guessed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity()

        def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
            return self.body(x[0])

    for options in ({"phase": "decode"}, {"positions": [0]}):
        model = Odd()
        with (
            pytest.raises(nsf.CaptureError, match="nothing is known of this forward pass"),
            nsf.capture(model, {"layer_name": "body", "component": "mlp", **options}),
        ):
            model([torch.randn(1, 3, 4)])


def test_a_position_under_two_numbers_is_stored_once(llama: nn.Module) -> None:
    with nsf.capture(llama, {**RESIDUAL, "positions": [-1, 5]}) as cap:
        llama(IDS)
    assert labels(cap) == [(0, 0, (2, 1), [5], None)]


def test_the_tokens_of_an_encoder_count() -> None:
    model = architectures.build("t5")
    with nsf.capture(model, "encoder.block.0:residual:x") as cap:
        model.generate(IDS, attention_mask=LEFT, max_new_tokens=2, min_new_tokens=2)
    assert cap.result.metadata.usage.prompt_tokens == 10 + 2  # and the decoder's start token of each row


def test_nothing_keeps_the_model_alive(tokens: dict[str, torch.Tensor]) -> None:
    model = architectures.build("llama")
    with nsf.capture(model, RESIDUAL) as cap:
        model(**tokens)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(cap.result["x"]) == 1


def test_a_start_that_fails_leaves_nothing(tmp_path: Any) -> None:
    model = architectures.build("llama")
    before = hook_state(model)
    cap = nsf.capture(model, ["model.layers.0:mlp", "model.layers.1:mlp"], out=tmp_path / "run")
    del model.model.layers[1]
    with pytest.raises(AttributeError), cap:
        pass
    assert hook_state(model) == {key: hooks for key, hooks in before.items() if not key.startswith("model.layers.1")}
    assert list((tmp_path / "run").iterdir()) == []
    with nsf.capture(model, "model.layers.0:mlp", out=tmp_path / "run"):
        model(IDS)


def test_a_relative_folder_and_a_change_of_folder(
    llama: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with nsf.capture(llama, RESIDUAL, out="run") as cap:
        llama(IDS)
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert cap.result["x"][0].shape == (2, 6, architectures.HIDDEN)
    assert nsf.open(tmp_path / "run").status == "complete"


def test_an_encoder_that_was_run_on_its_own_is_a_step_of_its_own() -> None:
    model = architectures.build("t5")
    with nsf.capture(model, "encoder.block.0:residual:x") as cap:
        model.get_encoder()(IDS[:, :4])
        model(input_ids=IDS, decoder_input_ids=IDS[:, :2])
    assert [(step, call, shape) for step, call, shape, _, _ in labels(cap)] == [(0, 0, (2, 4)), (1, 0, (2, 6))]


def test_the_padding_of_a_pass_behind_an_unknown_cache() -> None:
    """Generation appends to the mask, so the pass's own columns are its last."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert padding(mask, 2, 6, 0) == bytes([0, 0, 1, 1, 1, 1] + [1] * 6)
    assert padding(mask, 2, 1, UNKNOWN_OFFSET) == b""
    assert padding(mask, 2, 5, UNKNOWN_OFFSET) == bytes([0, 1, 1, 1, 1] + [1] * 5)
    assert padding(mask, 2, 7, UNKNOWN_OFFSET) == b""
