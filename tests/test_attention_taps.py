"""What is taken from inside attention: tensors, chosen heads and rows, reductions, and how they are stored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from attention_architectures import build, padded
from neuroscope_fast.attention_modules import head_count
from neuroscope_fast.attention_taps import ComputedAttentionTap
from neuroscope_fast.errors import CaptureError, HookError, RunError
from neuroscope_fast.head_options import HEAD_COMPONENTS, PATTERN_REDUCTIONS
from neuroscope_fast.model_components import HeadPart
from neuroscope_fast.reader import RunIncompleteWarning
from torch import nn
from transformers.modeling_utils import AttentionInterface

GENERATE: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def pattern(hook_id: str, layer: str = "model.layers.0", **fields: Any) -> dict[str, Any]:
    return {"layer_name": layer, "component": "attention_pattern", "hook_id": hook_id, **fields}


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal but for the order in which numbers were added."""
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


class Spy:
    """Keeps what an attention function was given and gave."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.calls: list[dict[str, Any]] = []

    def __call__(self, module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        result = self.function(module, query, key, value, mask, **options)
        kept = {"query": query, "key": key, "value": value, "head_output": result[0]}
        self.calls.append({"module": module, **{name: tensor.clone() for name, tensor in kept.items()}})
        return result


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt2"])
def test_tensors_are_those_of_the_attention_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    spy = Spy(AttentionInterface._global_mapping["sdpa"])
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", spy)
    layer = "transformer.h.1" if name == "gpt2" else "model.layers.1"
    with nsf.capture(model, [f"{layer}:{component}:{component}" for component in HEAD_COMPONENTS[:4]]) as cap:
        model.generate(**padded((7, 3), "left"), **GENERATE)
    module = model.get_submodule(f"{layer}.attn" if name == "gpt2" else f"{layer}.self_attn")
    calls = [call for call in spy.calls if call["module"] is module]
    assert len(calls) == 5
    for component in HEAD_COMPONENTS[:4]:
        records = cap.result[component].records
        for record, stored, call in zip(records, cap.result[component], calls, strict=True):
            assert torch.equal(stored, call[component])
            if component in ("query", "head_output"):
                assert record.positions == (None if record.step == 0 else [6 + record.step])
            assert record.real_tokens == (None if record.step else [[0, 7], [4, 7]])
    assert cap.result["key"][4].shape[1:3] == (model.config.num_key_value_heads if name != "gpt2" else 4, 11)
    joined = cap.result["head_output"].cat()
    assert joined.shape[:3] == (2, 11, 4)
    with pytest.raises(RunError, match="each of its tensors is the whole cache; take the last"):
        cap.result["key"].cat()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "bloom"])
def test_reductions_are_those_of_the_full_pattern(name: str, side: str) -> None:
    model = build(name)
    layer = "transformer.h.1" if name == "bloom" else "model.layers.0"
    heads = [3, 0, 1]
    hooks = [pattern("all", layer), pattern("some", layer, heads=heads)]
    hooks += [
        pattern(each, layer, reduction=each, heads=[-1, 0, 1], top_k=3 if each == "top_k" else 8)
        for each in PATTERN_REDUCTIONS
    ]
    hooks += [pattern(f"last {each}", layer, reduction=each, positions="last") for each in PATTERN_REDUCTIONS]
    inputs = padded((7, 3), side)
    with nsf.capture(model, hooks) as cap:
        if side == "left":
            model.generate(**inputs, **GENERATE)
        else:
            model(**inputs)
    run = cap.result
    first_real = (inputs["attention_mask"] != 0).int().argmax(1)
    for step, (whole, record) in enumerate(zip(run["all"], run["all"].records, strict=True)):
        some = run["some"][step]
        close(some, whole[:, heads])
        assert run["some"].records[step].heads == heads
        expected = reductions(some, first_real, step)
        for each in PATTERN_REDUCTIONS:
            assert run[each].records[step].reduction == each
            close(run[each][step], expected[each])
            assert run[each].records[step].positions == record.positions
            assert run[each].records[step].real_tokens == record.real_tokens
        gone = max(7 + step - whole.shape[3], 0)  # keys that a windowed cache has let go: indices count them
        gathered = some.gather(-1, run["top_k"].indices[step].long() - gone)
        close(gathered, run["top_k"][step])
        last = [6, 2] if side == "right" else [whole.shape[2] - 1] * 2
        rows = torch.stack([each[:, [row]] for each, row in zip(whole, last, strict=True)])
        expected = reductions(rows, first_real, step, own=last, k=8)
        for each in PATTERN_REDUCTIONS:
            close(run[f"last {each}"][step], expected[each])
    assert len(run["all"]) == (5 if side == "left" else 1)


def reductions(
    whole: torch.Tensor, first_real: torch.Tensor, step: int, own: list[int] | None = None, k: int = 3
) -> dict[str, torch.Tensor]:
    """By their definitions, of a pattern [B, H, Q, K] whose keys are the whole sequence or its end."""
    batch, heads, queries, keys = whole.shape
    total = 7 + step
    gone = total - keys
    rows = torch.arange(total - queries, total) if own is None or step else None
    positions = [rows if rows is not None else torch.tensor([own[row]]) for row in range(batch)]  # type: ignore[index]
    sink, previous = torch.zeros(batch, heads, queries), torch.zeros(batch, heads, queries)
    for row in range(batch):
        if first_real[row] >= gone:
            sink[row] = whole[row, :, :, first_real[row] - gone]
        for index in range(queries):
            before = int(positions[row][index]) - 1 - gone
            if before >= 0:
                previous[row, :, index] = whole[row, :, index, before]
    return {
        "mean": whole.mean(1),
        "max": whole.amax(1),
        "entropy": torch.special.entr(whole).sum(-1),
        "sink": sink,
        "previous": previous,
        "top_k": whole.topk(min(k, keys)).values,
    }


def test_rows_are_chosen_before_anything_is_computed() -> None:
    model = build("llama")
    inputs = padded((7, 3), "right")
    hooks = [pattern("all"), pattern("last", positions="last"), pattern("two", positions=[5, -7])]
    hooks += [pattern("slice", positions="4:"), pattern("beyond", positions=[20])]
    hooks += [{"layer_name": "model.layers.0", "component": "head_output", "hook_id": "whole"}]
    norm = {"layer_name": "model.layers.0", "component": "head_output", "reduction": "head_norm"}
    hooks += [{**norm, "hook_id": "norm"}, {**norm, "hook_id": "norm of last", "positions": "last", "heads": [2]}]
    hooks += [
        {
            "layer_name": "model.layers.0",
            "component": "head_output",
            "hook_id": "out",
            "positions": "last",
            "heads": [3, 1],
        }
    ]
    with nsf.capture(model, hooks) as cap:
        model(**inputs)
    run = cap.result
    whole, output = run["all"][0], run["whole"][0]
    close(run["last"][0], torch.stack([whole[0, :, 6:], whole[1, :, 2:3]]))
    assert run["last"].records[0].positions == [[6], [2]]
    close(run["two"][0], whole[:, :, [5, 0]])
    assert run["two"].records[0].real_tokens == [[0, 2], [1, 2]]
    close(run["slice"][0], whole[:, :, 4:])
    assert len(run["beyond"]) == 0
    torch.testing.assert_close(run["norm"][0], output.norm(dim=-1))
    last = torch.stack([output[0, 6:], output[1, 2:3]])
    torch.testing.assert_close(run["norm of last"][0], last.norm(dim=-1)[..., [2]])
    assert torch.equal(run["out"][0], last[:, :, [3, 1]])
    assert run["out"].records[0].positions == [[6], [2]]


def test_scores_are_capped_and_masked() -> None:
    model = build("gemma2")
    inputs = padded((7, 3), "left")
    with nsf.capture(model, ["model.layers.0:attention_scores:s", "model.layers.0:attention_pattern:p"]) as cap:
        model(**inputs)
    scores, shown = cap.result["s"][0], cap.result["p"][0]
    finite = scores[torch.isfinite(scores)]
    assert finite.abs().max() <= model.config.attn_logit_softcapping
    real = inputs["attention_mask"] != 0
    rows = real[:, None, :, None].expand_as(scores)
    torch.testing.assert_close(scores.softmax(-1)[rows], shown[rows])
    assert torch.isneginf(scores[0, :, 6, :3]).all()  # outside of the window of 4
    assert not scores[~rows].any()


def test_sinks_take_probability() -> None:
    model = build("gpt_oss")
    with nsf.capture(model, "model.layers.*:attention_pattern") as cap:
        model(**architectures.inputs("gpt_oss"))
    for hook_id in cap.hook_ids:
        sums = cap.result[hook_id][0].sum(-1)
        assert (sums < 1).all()
        assert (sums > 0).all()


def test_on_disk_and_back(tmp_path: Path) -> None:
    model = build("llama")
    inputs = padded((7, 3), "left")
    hooks = [
        pattern("top", reduction="top_k", top_k=2, heads=[-1]),
        pattern("same", reduction="top_k", top_k=2, heads=[3]),
        pattern("coded", reduction="top_k", dtype="int8"),
        pattern("mean", reduction="mean", dtype="bfloat16", phase="decode"),
        {"layer_name": "model.layers.1", "component": "key", "heads": [1], "hook_id": "key"},
    ]
    options = {"ring_bytes": 1 << 16, "block_bytes": 1 << 12}
    with nsf.capture(model, hooks, out=tmp_path / "run", **options):
        model.generate(**inputs, **{**GENERATE, "max_new_tokens": 40, "min_new_tokens": 40})
        with pytest.warns(RunIncompleteWarning, match="is still being written"):
            early = nsf.open(tmp_path / "run")
    run = nsf.open(tmp_path / "run")
    assert run.verify() == []
    top = run["top"].records[1]
    assert (top.heads, top.reduction, top.shape) == ([3], "top_k", [2, 1, 1, 2])
    assert top.data is not None
    assert top.indices is not None
    assert (top.data.key, top.indices.key) == ("top/000001", "top/000001/indices")
    assert run["same"].records[1].indices == top.indices
    assert run["coded"].indices[0].dtype == torch.int32
    assert [record.step for record in run["mean"].records] == list(range(1, 40))
    assert early["top"].records
    assert set(map(str, early["top"].records)) <= set(map(str, run["top"].records))
    assert torch.equal(early["top"].indices[0], run["top"].indices[0])
    assert torch.equal(early["top"][0], run["top"][0])
    again = nsf.capture(model, tmp_path / "run" / "activation_capture.json")
    with again:
        model(**inputs)
    assert again.result["top"].records[0].heads == [3]
    close(again.result["top"][0], run["top"][0])
    assert torch.equal(again.result["top"].indices[0], run["top"].indices[0])
    assert again.result["key"][0].shape == (2, 1, 7, 12)
    with pytest.raises(RunError, match="holds no indices"):
        _ = run["mean"].indices


def test_records_that_find_no_room_are_dropped_whole(tmp_path: Path) -> None:
    """Weights without their keys, or keys without weights, are no record."""
    model = build("llama")
    hook = pattern("top", "model.layers.*", reduction="top_k", top_k=20)
    options: dict[str, Any] = {"ring_bytes": 3 << 12, "block_bytes": 1 << 12, "overflow": "drop"}
    with (
        warnings.catch_warnings(),
        nsf.capture(model, [hook], out=tmp_path / "run", **options) as cap,
    ):
        warnings.simplefilter("ignore")
        for _ in range(20):
            model(**architectures.inputs("llama", batch=2, length=24))
    run = nsf.open(tmp_path / "run")
    dropped = {(each.hook_id, each.step) for each in run.manifest.dropped}
    assert len(dropped) == len(run.manifest.dropped) > 0
    stored = {(record.hook_id, record.step) for record in run.records}
    assert not stored & dropped
    assert stored | dropped == {(hook_id, step) for hook_id in cap.hook_ids for step in range(20)}
    assert all(len(run[hook_id].indices) == len(run[hook_id]) for hook_id in run.hooks)
    assert run.verify() == []


@pytest.mark.parametrize(
    ("name", "hook", "words"),
    [
        ("llama", pattern("x", heads=[4]), "there is no head 4; the module has 4 (0 to 3)"),
        ("llama", {**pattern("x", heads=[2]), "component": "key"}, "there is no head 2; the module has 2 (0 to 1)"),
        ("llama", pattern("x", heads=[0, -4]), "heads names a head twice"),
        ("bloom", "transformer.h.0:query", "its attention does not go through transformers' AttentionInterface"),
        ("bloom", "transformer.h.0:query", "'attention_pattern' is at transformer.h.0, transformer.h.1"),
        ("mamba", "backbone.layers.0:attention_pattern", "has no 'attention_pattern', nor has any of"),
        ("t5", pattern("x", "decoder.block.0.layer.1", reduction="previous"), "none is the previous token"),
    ],
)
def test_refusals(name: str, hook: Any, words: str) -> None:
    with pytest.raises(HookError) as caught:
        nsf.capture(architectures.shared(name), hook)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_never_calls_its_attention_function_is_told_of() -> None:
    model = build("gpt2")
    model.config._attn_implementation = "eager"
    for layer in model.transformer.h:
        layer.attn.reorder_and_upcast_attn = True
    words = "the hooked modules never ran, or never called an attention function"
    with pytest.warns(nsf.errors.CaptureWarning, match=words), nsf.capture(model, "transformer.h.*:query") as cap:
        model(**architectures.inputs("gpt2"))
    assert cap.result.manifest.warnings[0].endswith("never called an attention function")


def test_a_model_of_the_older_style_under_another_attention() -> None:
    import transformers

    sizes = {**architectures._COMMON, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes)).eval()
    inputs = architectures.inputs("llama")

    def run() -> None:
        with nsf.capture(model, "transformer.h.*:attention_pattern"):
            model(**inputs)

    with pytest.raises(CaptureError, match="only under eager attention, and the module has returned none") as caught:
        run()
    assert "\n" not in str(caught.value)
    model.set_attn_implementation("eager")
    with warnings.catch_warnings(), nsf.capture(model, "transformer.h.*:attention_pattern") as cap:
        output = model(**inputs, output_attentions=True)
    for hook_id, attention in zip(cap.hook_ids, output.attentions, strict=True):
        torch.testing.assert_close(cap.result[hook_id][0], attention)


def test_what_is_returned_before_a_pattern_is_not_taken_for_one() -> None:
    """Position biases and caches have four axes, too."""
    from neuroscope_fast.attention_returned import _has_probabilities

    pattern = torch.rand(2, 3, 5, 7).softmax(-1)
    assert _has_probabilities(pattern, with_dropout=False)
    assert _has_probabilities(pattern.bfloat16(), with_dropout=False)
    for other in (torch.zeros(2, 3, 5, 7), torch.randn(2, 3, 5, 7), pattern * 2, pattern - 2 / 7):
        assert not _has_probabilities(other, with_dropout=False)
    assert _has_probabilities(torch.nn.functional.dropout(pattern, 0.1), with_dropout=True)
    assert not _has_probabilities(torch.zeros(2, 3, 5, 7), with_dropout=True)
    signed = pattern * torch.tensor([-1.0, 1, 1, 1, 1, 1, 1])
    for other in (torch.full((2, 3, 5, 7), 0.6), -pattern, signed):
        assert not _has_probabilities(other, with_dropout=True)


@pytest.mark.parametrize("shape", [(2, 4, 7, 7), (1, 1, 1, 63)])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_any_dropout_leaves_a_pattern_that_is_known_as_one(shape: tuple[int, ...], rate: float) -> None:
    """A head that looks at one token mostly loses nearly all of its row when dropout takes that one."""
    from neuroscope_fast.attention_returned import _has_probabilities

    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        peaked = (torch.randn(shape, generator=generator) * 4).softmax(-1)
        dropped = peaked * (torch.rand(shape, generator=generator) >= rate) / (1 - rate)
        assert _has_probabilities(dropped, with_dropout=True)


def test_training_is_not_touched() -> None:
    def gradients(hooked: bool) -> list[torch.Tensor]:
        model = build("llama").train()
        hooks = [f"model.layers.*:{component}" for component in HEAD_COMPONENTS]
        with torch.enable_grad():
            if hooked:
                with nsf.capture(model, hooks) as cap:
                    model(**architectures.inputs("llama"), labels=architectures.inputs("llama")["input_ids"])[
                        0
                    ].backward()
                assert {len(cap.result[hook_id]) for hook_id in cap.hook_ids} == {1}
            else:
                model(**architectures.inputs("llama"), labels=architectures.inputs("llama")["input_ids"])[0].backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("mistral", "eager"), ("gemma2", "eager")],
)
def test_the_first_token_of_a_static_cache(name: str, attention: str) -> None:
    """generate() gives a static cache's model a mask that does not say which tokens are padding."""
    inputs = padded((7, 3), "left")
    hooks = [pattern("all"), pattern("sink", reduction="sink"), pattern("previous", reduction="previous")]
    sinks = []
    for options in ({}, {"cache_implementation": "static"}):
        model = build(name)
        model.set_attn_implementation(attention)
        with nsf.capture(model, hooks) as cap:
            model.generate(**inputs, **GENERATE, **options)
        sinks.append(cap.result["sink"])
    assert len(sinks[0]) == len(sinks[1]) == 5
    for growing, static in zip(*sinks, strict=True):
        torch.testing.assert_close(static, growing, rtol=0, atol=1e-5)
    if name == "llama":
        assert all(bool((sink[1, :, -1] > 0.05).all()) for sink in sinks[1])


def test_a_decode_step_whose_prefill_nobody_has_seen() -> None:
    model = build("llama")
    inputs = padded((7, 3), "left")
    cache = model(**inputs, use_cache=True).past_key_values
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    token = {"input_ids": torch.tensor([[5], [6]]), "past_key_values": cache}
    four = (mask != 0)[:, None, None, :]
    with nsf.capture(model, [pattern("sink", reduction="sink")]), pytest.raises(CaptureError, match="seen its prefill"):
        model(**token, attention_mask=four)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_first_token_of_cross_attention(name: str) -> None:
    model = build(name)
    path = "decoder.block.1.layer.1" if name == "t5" else "model.decoder.layers.1.encoder_attn"
    inputs = padded((7, 3), "left")
    hooks = [pattern("all", path), pattern("sink", path, reduction="sink")]
    with nsf.capture(model, hooks) as cap:
        model.generate(**inputs, **{**GENERATE, "min_new_tokens": 3, "max_new_tokens": 3})
    assert len(cap.result["sink"]) == len(cap.result["all"]) > 1
    for whole, sink in zip(cap.result["all"], cap.result["sink"], strict=True):
        assert bool((whole[1, :, :, :4] == 0).all())
        close(sink, torch.stack([whole[0, :, :, 0], whole[1, :, :, 4]]))


def test_dropout_of_returned_patterns_is_kept() -> None:
    """What a module returns is stored, whatever its rows add up to."""
    model = build("bloom")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = nn.Dropout(0.3)
    model.train()
    layer = "transformer.h.1"
    returned: list[torch.Tensor] = []
    module = model.get_submodule(f"{layer}.self_attention")
    module.register_forward_hook(lambda _module, _args, output: returned.append(output[1].detach().clone()))
    with torch.no_grad(), nsf.capture(model, [pattern("all", layer), pattern("mean", layer, reduction="mean")]) as cap:
        model(**padded((7, 3), "left"))
    [whole] = returned
    assert float((whole.sum(-1) - 1).abs().max()) > 0.1
    expected = whole.clone()
    expected[1, :, :4] = 0
    close(cap.result["all"][0], expected)
    close(cap.result["mean"][0], expected.mean(1))


class LikeLongformer(nn.Module):
    """Returns [batch, tokens, heads, keys], or a pattern of fewer columns than tokens."""

    num_heads = 4

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.rand(self.shape).softmax(-1)


@pytest.mark.parametrize("shape", [(2, 6, 4, 6), (2, 4, 6, 5), (2, 3, 6, 6), (1, 4, 6, 6)])
def test_a_returned_tensor_of_another_layout_is_refused(shape: tuple[int, ...]) -> None:
    from types import SimpleNamespace

    from neuroscope_fast.attention_returned import returned_pattern_hook

    module = LikeLongformer(shape)
    wanted = SimpleNamespace(offset=0, real=b"", wanted=[(0, None)], store=lambda *_: pytest.fail("it was stored"))
    tap = ComputedAttentionTap(
        "attention_pattern",
        HeadPart(),
        "hook 'x'",
        SimpleNamespace(begin=lambda *_: wanted),  # type: ignore[arg-type]
        {},
        lambda: None,
        lambda: None,
    )
    module.register_forward_hook(returned_pattern_hook(module, [tap], lambda _: False))
    with pytest.raises(CaptureError, match=r"hook 'x': what the module has returned"):
        module(torch.zeros(2, 6, 8))


@pytest.mark.parametrize("component", ["head_output", "attention_pattern"])
def test_a_function_that_joins_its_heads_is_refused(component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(*args: Any, **options: Any) -> Any:
        output, rest = original(*args, **options)
        return output.flatten(2), rest

    original = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", joined)
    model = build("llama")
    hook = {"layer_name": "model.layers.0", "component": component, "heads": [0]}
    with pytest.raises(CaptureError, match=r"not \[batch, queries, heads"), nsf.capture(model, [hook]):
        model(**architectures.inputs("llama"))


def test_results_are_float32_whatever_the_default_is() -> None:
    model = build("llama")
    hooks = [pattern("all"), {"layer_name": "model.layers.0", "component": "attention_scores", "hook_id": "scores"}]
    hooks += [pattern(each, reduction=each) for each in PATTERN_REDUCTIONS]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with nsf.capture(model, hooks) as cap:
            model(**architectures.inputs("llama"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {record.dtype for record in cap.result.records} == {"float32"}


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_scores_need_a_dtype_with_infinity(dtype: str) -> None:
    with pytest.raises(HookError, match=f"-inf where a key is hidden, which {dtype} cannot"):
        nsf.capture(build("llama"), "model.layers.0:attention_scores", dtype=dtype)


def test_attention_is_looked_at_again_where_dropout_hid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def sharper(module: nn.Module, query: torch.Tensor, *args: Any, **options: Any) -> Any:
        return original(module, query * 3, *args, **options)

    original = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sharper)
    model = build("llama")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    with nsf.capture(model, [pattern("all")]):
        model.train()(**architectures.inputs("llama"))
        with pytest.raises(CaptureError, match="is not what its query, key and mask say"):
            model.eval()(**architectures.inputs("llama"))


def test_heads_of_gated_attention() -> None:
    """Its query projection gives a gate as well."""

    class Gated(nn.Module):
        head_dim = 8
        num_attention_heads = 4

        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(16, 4 * 8 * 2)

    assert head_count(Gated(), "query") == 4
