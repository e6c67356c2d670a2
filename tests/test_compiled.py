"""Models of torch.compile: the same records as without it, and the same results as without hooks."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import architectures
import neuroscope_fast as nsf
import pytest
import torch
from conftest import hook_state
from neuroscope_fast import compiled_operators
from neuroscope_fast.pass_hooks import PassHooks
from torch import nn
from torch._dynamo import aot_compile
from torch._dynamo.callback import callback_handler
from transformers import DynamicCache, PreTrainedModel, StaticCache

# Inductor imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

IDS = torch.tensor([[0, 0, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8]])
LEFT = (IDS != 0).long()
LLAMA_HOOKS = [
    {"layer_name": "model.layers.*", "component": "residual", "hook_id": "x", "capture_input": True},
    {"layer_name": "lm_head", "component": "logits", "hook_id": "logits"},
    {
        "layer_name": "model.layers.1",
        "component": "attention",
        "hook_id": "some",
        "positions": [0, 7],
        "dtype": "bfloat16",
    },
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """No code of another test; the limit on compiling one function again and again counts from 0."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden_states + torch.tanh(self.mlp(self.norm(hidden_states))), None


class Tiny(nn.Module):
    """Two layers with outputs that are tuples; the same norm runs twice."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[:, -input_ids.shape[1] :, None]
        for layer in self.layers:
            x = layer(hidden_states=self.norm(x))[0]
        return {"logits": self.head(x)}


TINY_HOOKS = [
    {"layer_name": "layers.*", "component": "residual", "hook_id": "x", "capture_input": True},
    {"layer_name": "norm", "component": "layernorm", "hook_id": "norm"},
    {"layer_name": "head", "component": "logits", "hook_id": "logits"},
    {"layer_name": "layers.1.mlp", "component": "mlp", "hook_id": "last", "positions": "last", "dtype": "bfloat16"},
    {"layer_name": "layers.0.mlp", "component": "mlp", "hook_id": "every", "every": 2},
]


@pytest.fixture
def tiny() -> Iterator[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny().eval()
    before = hook_state(model)
    yield model
    assert hook_state(model) == before


def records(cap: nsf.Capture) -> list[Any]:
    return [(hook_id, record) for hook_id in cap.hook_ids for record in cap.result[hook_id].records]


def tensors(cap: nsf.Capture) -> list[torch.Tensor]:
    return [tensor for hook_id in cap.hook_ids for tensor in cap.result[hook_id]]


def same_records(one: nsf.Capture, other: nsf.Capture) -> bool:
    return records(one) == records(other) and one.result.metadata.usage == other.result.metadata.usage


def some_passes(call: Callable[..., Any]) -> list[torch.Tensor]:
    """Passes of several lengths: the second is compiled with the length left open, and the third runs that."""
    right = torch.tensor([[1, 1, 1], [1, 1, 0]])
    calls = [(IDS, LEFT), (IDS[:, 1:4], right), (IDS[:, :5], LEFT[:, :5])]
    return [call(ids, attention_mask=mask)["logits"].clone() for ids, mask in calls]


def equal(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(ones) == len(others) and all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def in_place(model: nn.Module, **options: Any) -> Callable[..., Any]:
    model.compile(**options)
    return model


def by_function(model: nn.Module, **options: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return torch.compile(call, **options)  # type: ignore[no-any-return]


COMPILED = {"wrapped": torch.compile, "in place": in_place, "by a function": by_function}


@pytest.mark.parametrize(
    ("way", "backend"),
    [
        *((way, "eager") for way in COMPILED),
        ("by a function", "aot_eager"),
    ],
)
def test_records_and_results(tiny: nn.Module, way: str, backend: str) -> None:
    with nsf.capture(tiny, TINY_HOOKS) as eager:
        some_passes(tiny)
    compiled = COMPILED[way](tiny, fullgraph=True, backend=backend)
    bare = some_passes(compiled)  # warm: code without taps is there
    with nsf.capture(tiny, TINY_HOOKS) as cap:
        captured = some_passes(compiled)
    assert equal(captured, bare)
    assert same_records(cap, eager)
    assert equal(list(cap.result["logits"]), captured)
    assert equal(tensors(cap), tensors(eager))


def test_inductor(tiny: nn.Module) -> None:
    with nsf.capture(tiny, TINY_HOOKS) as eager:
        tiny(IDS, attention_mask=LEFT)
    compiled = by_function(tiny, fullgraph=True)
    bare = compiled(IDS, attention_mask=LEFT)["logits"]
    with nsf.capture(tiny, TINY_HOOKS) as cap:
        captured = compiled(IDS, attention_mask=LEFT)["logits"]
    assert torch.equal(captured, bare)
    assert same_records(cap, eager)
    assert torch.equal(cap.result["logits"][0], captured)
    for one, other in zip(tensors(cap), tensors(eager), strict=True):
        torch.testing.assert_close(one, other, atol=1e-2 if one.dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


def graphs_of(model: nn.Module) -> tuple[Callable[..., Any], list[str]]:
    """The model compiled by a backend that notes the code of every graph."""
    graphs: list[str] = []

    def note(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph.code)
        return graph.forward

    return by_function(model, fullgraph=True, backend=note), graphs


def test_no_code_outlives_a_change_of_hooks(tiny: nn.Module) -> None:
    compiled, graphs = graphs_of(tiny)
    compiled(IDS)
    with nsf.capture(tiny, TINY_HOOKS) as first:
        compiled(IDS)
        compiled(IDS)
    with nsf.capture(tiny, "layers.0:residual") as second:
        compiled(IDS)
    compiled(IDS)
    calls = [code.count("neuroscope_fast") for code in graphs]
    assert calls == [0, 11, 3, 0]  # a begin and an end, and a call of each tap each time that its module runs
    assert [record.step for record in first.result["logits"].records] == [0, 1]
    assert len(second.result.records) == 1
    assert compiled_operators.receivers == {}


def test_what_watches_the_compiler_goes_on_watching(tiny: nn.Module) -> None:
    seen: list[object] = []
    callback_handler.register_start_callback(seen.append)
    compiled, _ = graphs_of(tiny)
    with nsf.capture(tiny, "layers.0:residual"):
        compiled(IDS)
    compiled(IDS)
    assert len(seen) == 2
    assert callback_handler.start_callbacks == [seen.append]


def test_hooks_of_passes_are_plain_until_the_compiler_starts(tiny: nn.Module) -> None:
    """torch.compiler.disable, which the others need, takes several microseconds a call."""
    with nsf.capture(tiny, TINY_HOOKS) as cap:
        (before,), (after,) = tiny._forward_pre_hooks.values(), tiny._forward_hooks.values()
        assert isinstance(before.__self__, PassHooks)
        assert isinstance(after.__self__, PassHooks)
        compiled = torch.compile(tiny, backend="eager")
        compiled(IDS)
        assert list(tiny._forward_pre_hooks.values()) != [before]
        assert list(tiny._forward_hooks.values()) != [after]
    assert not tiny._forward_pre_hooks
    assert not tiny._forward_hooks
    assert [record.step for record in cap.result["logits"].records] == [0]


def test_compiled_in_the_block(tiny: nn.Module) -> None:
    hook = "layers.0:residual:x"
    with nsf.capture(tiny, hook) as cap:
        tiny(IDS)
        (native,) = tiny.get_submodule("layers.0")._forward_hooks.values()
        assert isinstance(native, types.BuiltinFunctionType)
        compiled = by_function(tiny, fullgraph=True, backend="eager")
        compiled(IDS[:, :4])
        tiny(IDS[:, :3])
    assert [(r.step, r.shape) for r in cap.result["x"].records] == [(0, [2, 6, 8]), (1, [2, 4, 8]), (2, [2, 3, 8])]


def test_the_wrapper_itself_is_captured(tiny: nn.Module) -> None:
    hook = {"layer_name": "layers.*", "component": "residual", "hook_id": "x", "positions": "last"}
    with nsf.capture(tiny, hook) as eager:
        tiny(IDS, attention_mask=LEFT)
    compiled = torch.compile(tiny, fullgraph=True, backend="eager")
    with nsf.capture(compiled, hook) as cap:
        compiled(IDS, attention_mask=LEFT)
    assert equal(tensors(cap), tensors(eager))
    assert [r.positions for _, r in records(cap)] == [r.positions for _, r in records(eager)]
    assert cap.result.metadata.usage == eager.result.metadata.usage


def test_compiled_submodules(tiny: nn.Module) -> None:
    with nsf.capture(tiny, TINY_HOOKS) as eager:
        some_passes(tiny)
    layers = list(tiny.get_submodule("layers").children())
    layers[0].forward = torch.compile(layers[0].forward, fullgraph=True, backend="eager")
    layers[1].compile(fullgraph=True, backend="eager")
    some_passes(tiny)
    with nsf.capture(tiny, TINY_HOOKS) as cap:
        some_passes(tiny)
    assert same_records(cap, eager)
    assert equal(tensors(cap), tensors(eager))


def test_a_graph_break_between_the_taps(tiny: nn.Module) -> None:
    norm = tiny.get_submodule("norm")
    norm.forward = torch.compiler.disable(norm.forward)  # type: ignore[no-untyped-call]
    with nsf.capture(tiny, TINY_HOOKS) as eager:
        some_passes(tiny)
    compiled = by_function(tiny, backend="eager")
    some_passes(compiled)
    with nsf.capture(tiny, TINY_HOOKS) as cap:
        some_passes(compiled)
    assert same_records(cap, eager)
    assert equal(tensors(cap), tensors(eager))


def test_gradients_are_not_touched(tiny: nn.Module) -> None:
    def step(call: Callable[..., Any]) -> list[torch.Tensor]:
        tiny.zero_grad()
        call(IDS, attention_mask=LEFT)["logits"].square().sum().backward()
        return [parameter.grad.clone() for parameter in tiny.parameters() if parameter.grad is not None]

    tiny.train()
    compiled = by_function(tiny, fullgraph=True, backend="aot_eager")
    with torch.enable_grad():
        bare = step(compiled)
        with nsf.capture(tiny, TINY_HOOKS) as cap:
            assert equal(step(compiled), bare)
            assert equal(step(compiled), bare)
    assert [(r.step, r.call) for r in cap.result["norm"].records] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_inference_mode_around_the_block(tiny: nn.Module) -> None:
    compiled = by_function(tiny, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        cap = nsf.capture(tiny, "layers.0:residual:x")
        cap.__enter__()
        compiled(IDS)
    compiled(IDS)
    cap.__exit__(None, None, None)
    assert [r.step for r in cap.result["x"].records] == [0, 1]


def test_a_full_ring_fails_with_the_error_of_a_capture(tiny: nn.Module) -> None:
    compiled = by_function(tiny, fullgraph=True, backend="aot_eager")
    long = IDS.repeat(1, 50)
    with (
        pytest.raises(nsf.CaptureError, match="the ring is full"),
        nsf.capture(tiny, "layers.0:residual", ring_bytes=4096, block_bytes=4096, overflow="fail"),
    ):
        compiled(long)
    assert compiled(long)["logits"].shape == (2, 300, 11)


def test_an_exception_ends_the_pass(tiny: nn.Module) -> None:
    class Fails(Exception):
        pass

    @torch.library.custom_op("neuroscope_fast_tests::fail_once", mutates_args=("x",))
    def fail_once(x: torch.Tensor) -> None:
        assert x.dim() == 3
        if failing:
            failing.pop()
            raise Fails

    fail_once.register_fake(lambda x: None)  # noqa: ARG005 - torch looks at the name
    norm = tiny.get_submodule("layers.1.norm")
    norm.register_forward_pre_hook(lambda _, args: torch.ops.neuroscope_fast_tests.fail_once(args[0]))
    failing = [1]
    compiled = by_function(tiny, fullgraph=True, backend="eager")
    try:
        with nsf.capture(tiny, "layers.*:residual") as cap:
            with pytest.raises(Fails):
                compiled(IDS)
            compiled(IDS)
            tiny.get_submodule("layers.0")(torch.randn(1, 2, 8))
    finally:
        norm._forward_pre_hooks.clear()
    assert [r.step for r in cap.result["layers.0_residual"].records] == [0, 1, 2]
    assert [r.step for r in cap.result["layers.1_residual"].records] == [1]


def test_an_output_without_a_tensor_says_so() -> None:
    class Nothing(nn.Module):
        def forward(self, _: torch.Tensor) -> dict[str, int]:
            return {"a": 1}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Nothing()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.body(x)
            return x + 1

    model = Model()
    compiled = by_function(model, fullgraph=True, backend="aot_eager")
    with (
        pytest.raises(nsf.CaptureError, match="no tensor in the module's output, which is a dict"),
        nsf.capture(model, "body:mlp"),
    ):
        compiled(torch.ones(2, 3))


def test_a_cache_that_does_not_count_leaves_positions_unknown(tiny: nn.Module) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny

        def forward(self, input_ids: torch.Tensor, state: list[torch.Tensor] | None = None) -> Any:
            return self.inner(input_ids), state

    model = Cached()
    compiled = by_function(model, fullgraph=True, backend="eager")
    with nsf.capture(model, "inner.layers.0:residual:x") as cap:
        compiled(IDS, state=[torch.ones(2)])
        compiled(IDS, state=None)
    assert [r.positions for r in cap.result["x"].records] == [[], None]


def test_captures_within_captures_and_a_copy(tiny: nn.Module) -> None:
    compiled = by_function(tiny, fullgraph=True, backend="eager")
    with nsf.capture(tiny, "layers.0:residual:x") as outer:
        compiled(IDS)
        with nsf.capture(tiny, "layers.1:residual:x") as inner:
            compiled(IDS)
        compiled(IDS)
        outer.next_prompt()
        compiled(IDS)
        by_function(copy.deepcopy(tiny), fullgraph=True, backend="eager")(IDS)
    assert [(r.prompt, r.step) for r in outer.result["x"].records] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [r.step for r in inner.result["x"].records] == [0]


def test_compiled_ahead_of_time_is_refused(tiny: nn.Module) -> None:
    forward = torch.compile(tiny.forward, fullgraph=True, backend="inductor")
    ahead: Any = aot_compile.AOTCompiledFunction.__new__(aot_compile.AOTCompiledFunction)
    assert callable(forward)
    tiny.get_submodule("layers.1").__dict__["forward"] = ahead
    with pytest.raises(nsf.HookError, match=r"layers\.1 was compiled ahead of time"):
        nsf.capture(tiny, "layers.*:residual")
    nsf.capture(tiny, "layers.0:residual")


def cached_passes(call: Callable[..., Any], model: PreTrainedModel) -> list[torch.Tensor]:
    """A padded prefill and two decoded tokens with a cache that grows, then with one that does not."""
    logits = []
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
        mask = LEFT
        for ids in (IDS, IDS[:, :1], IDS[:, 1:2]):
            logits.append(call(ids, attention_mask=mask, past_key_values=cache).logits.clone())
            mask = torch.cat([mask, mask[:, -1:]], 1)
    return logits


def test_prefill_and_decode(llama: PreTrainedModel) -> None:
    with nsf.capture(llama, LLAMA_HOOKS) as eager:
        cached_passes(llama, llama)
    compiled = by_function(llama, fullgraph=True, backend="eager")
    with nsf.capture(llama, LLAMA_HOOKS) as cap:
        captured = cached_passes(compiled, llama)
    assert same_records(cap, eager)
    assert equal(list(cap.result["logits"]), captured)


def test_generate(llama: PreTrainedModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"attention_mask": LEFT, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with nsf.capture(llama, LLAMA_HOOKS) as eager:
        llama.generate(IDS, **options)
    llama.forward = torch.compile(llama.forward, fullgraph=True, backend="eager")
    bare = llama.generate(IDS, **options)
    with nsf.capture(llama, LLAMA_HOOKS, out=tmp_path / "run") as cap:
        assert torch.equal(llama.generate(IDS, **options), bare)
    run = nsf.open(tmp_path / "run")
    assert run.verify() == []
    for hook_id in cap.hook_ids:
        told = [(r.step, r.shape, r.positions, r.real_tokens) for r in run[hook_id].records]
        assert told == [(r.step, r.shape, r.positions, r.real_tokens) for r in eager.result[hook_id].records]


def test_an_encoder_and_a_decoder() -> None:
    model = architectures.build("t5")
    hooks = ["encoder.block.0:residual:e", "decoder.block.0:residual:d"]
    call = {"input_ids": IDS, "attention_mask": LEFT, "decoder_input_ids": IDS[:, :3]}
    with nsf.capture(model, hooks) as eager:
        model(**call)
    compiled = by_function(model, fullgraph=True, backend="eager")
    try:
        compiled(**call)
    except torch._dynamo.exc.Unsupported as error:  # transformers 5.17's T5 copies its configuration in forward()
        pytest.skip(f"torch {torch.__version__} cannot compile this T5 as one graph: {str(error).splitlines()[0]}")
    with nsf.capture(model, hooks) as cap:
        compiled(**call)
    assert same_records(cap, eager)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_attention_ends_the_graph(llama: PreTrainedModel, fullgraph: bool) -> None:
    hooks = [f"model.layers.*:{component}" for component in ("query", "attention_pattern", "residual")]
    inputs = {"input_ids": IDS, "attention_mask": LEFT}
    bare = llama(**inputs).logits
    with nsf.capture(llama, hooks) as plain:
        llama(**inputs)
    compiled = torch.compile(llama, backend="eager", fullgraph=fullgraph)
    with nsf.capture(llama, hooks) as cap:
        if fullgraph:
            with pytest.raises(torch._dynamo.exc.Unsupported, match="neuroscope-fast captures this attention"):
                compiled(**inputs)
            llama(**inputs)
        else:
            assert torch.equal(compiled(**inputs).logits, bare)
    for hook_id in cap.hook_ids:
        (stored,), (expected,) = cap.result[hook_id], plain.result[hook_id]
        assert torch.equal(stored, expected)
        if not fullgraph:  # a pass that ended in an error was a step, too
            assert cap.result[hook_id].records == plain.result[hook_id].records
    assert torch.equal(compiled(**inputs).logits, bare)


def test_what_torch_compile_returned_can_be_named(tiny: nn.Module) -> None:
    """Its modules have the names of the model that it was given."""
    with nsf.capture(tiny, TINY_HOOKS) as eager:
        some_passes(tiny)
    compiled = torch.compile(tiny, backend="eager")
    with nsf.capture(compiled, TINY_HOOKS) as cap:
        some_passes(compiled)
    assert cap.hook_ids == eager.hook_ids
    assert same_records(cap, eager)
    assert equal(tensors(cap), tensors(eager))
