"""Taps that are called the short way: they take what torch's own calls of them would, and nobody else is disturbed."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.module_calls import CALL
from torch import nn

X = torch.arange(12.0).view(1, 3, 4)


class Block(nn.Module):
    """Adds `bias`; named arguments and a second output like a transformer's layer."""

    def __init__(self, bias: float = 1.0):
        super().__init__()
        self.bias = nn.Parameter(torch.full((4,), bias))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * scale + self.bias


class Net(nn.Module):
    def __init__(self, kind: Callable[[float], nn.Module] = Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList([kind(1.0), kind(10.0)])

        self.during: Callable[[], None] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, scale=2.0)
        during, self.during = self.during, None
        if during is not None:
            during()
        return x


def hooks(**more: Any) -> list[dict[str, Any]]:
    return [
        {"layer_name": f"layers.{n}", "component": "residual", "hook_id": f"h{n}", "capture_input": True, **more}
        for n in (0, 1)
    ]


def taken(run: nsf.Run) -> dict[str, list[tuple[int, int, list[float]]]]:
    """Of each hook and side which step, which call and which values, in the order of capture."""
    return {
        f"{hook} {name}": [
            (record.step, record.call, tensor.flatten().tolist())
            for record, tensor in zip(side.records, side, strict=True)
        ]
        for hook in run.hooks
        for name, side in (("in", run[hook].inputs), ("out", run[hook].outputs))
    }


def steps(run: nsf.Run, hook: str) -> tuple[list[int], list[int]]:
    """Of the hook's inputs and of its outputs."""
    return tuple([record.step for record in side.records] for side in (run[hook].inputs, run[hook].outputs))  # type: ignore[return-value]


def by_torch(model: nn.Module, work: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same capture with torch calling the taps."""
    with monkeypatch.context() as patch:
        patch.setattr("neuroscope_fast.attachment.can_tap_call", lambda *_: False)
        with nsf.capture(model, hooks()) as cap:
            assert in_calls(model) == [False, False]
            work(model)
    return taken(cap.result)


def in_calls(model: nn.Module) -> list[bool]:
    return [type(vars(layer).get(CALL)).__name__ == "TappedCall" for layer in model.layers]


def untouched(model: nn.Module) -> bool:
    return all(
        CALL not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks
        for module in model.modules()
    )


def test_the_taps_are_hooks_that_torch_does_not_look_after(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    before = [list(vars(module)) for module in model.modules()]
    expected = by_torch(model, lambda net: net(X), monkeypatch)
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [True, True]
        assert all(len(layer._forward_hooks) == len(layer._forward_pre_hooks) == 1 for layer in model.layers)
        out = model(X)
    assert torch.equal(out, model(X))
    assert taken(cap.result) == expected
    assert expected["h0 in"] == [(0, 0, X.flatten().tolist())]
    assert expected["h0 out"] == [(0, 0, (X * 2 + 1).flatten().tolist())]
    assert [list(vars(module)) for module in model.modules()] == before


def double(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def add_three(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0] + 3,)


def test_hooks_that_come_in_the_block_are_behind_the_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: nn.Module) -> None:
        model(X)
        handles = [model.layers[0].register_forward_hook(double), model.layers[1].register_forward_pre_hook(add_three)]
        assert torch.equal(model(X), ((X * 2 + 1) * 2 + 3) * 2 + 10)
        for handle in handles:
            handle.remove()
        model(X)

    expected = by_torch(Net(), work, monkeypatch)
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        work(model)
    assert taken(cap.result) == expected
    assert [values for _, _, values in expected["h0 out"]] == [(X * 2 + 1).flatten().tolist()] * 3
    assert untouched(model)


def test_hooks_that_were_there_before_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    handles = [model.layers[0].register_forward_hook(double), model.layers[1].register_forward_pre_hook(add_three)]
    expected = by_torch(model, lambda net: net(X), monkeypatch)
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [False, False]
        model(X)
    assert taken(cap.result) == expected
    assert expected["h0 out"] == [(0, 0, ((X * 2 + 1) * 2).flatten().tolist())]
    assert expected["h1 in"] == [(0, 0, ((X * 2 + 1) * 2 + 3).flatten().tolist())]
    for handle in handles:
        handle.remove()
    assert untouched(model)


@pytest.mark.parametrize("prepend", [False, True])
def test_hooks_stand_in_the_order_that_was_asked_for(prepend: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: nn.Module) -> None:
        model.layers[0].register_forward_hook(double, prepend=prepend)
        model.layers[1].register_forward_pre_hook(add_three, prepend=prepend)
        model(X)

    expected = by_torch(Net(), work, monkeypatch)
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        work(model)
    assert taken(cap.result) == expected
    assert expected["h0 out"][0][2] == ((X * 2 + 1) * (2 if prepend else 1)).flatten().tolist()


def test_hooks_of_all_modules_and_hooks_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: nn.Module) -> None:
        handles = [
            nn.modules.module.register_module_forward_pre_hook(
                lambda module, inputs: (inputs[0] + 100,) if isinstance(module, Block) else None
            ),
            nn.modules.module.register_module_forward_hook(
                lambda module, _inputs, output: output * 3 if isinstance(module, Block) else None
            ),
        ]
        model(X)
        for handle in handles:
            handle.remove()
        seen: list[object] = []
        model.layers[0].register_full_backward_hook(lambda *found: seen.append(found))
        with torch.enable_grad():
            model(X.clone().requires_grad_()).sum().backward()
        assert len(seen) == 1

    expected = by_torch(Net(), work, monkeypatch)
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        work(model)
    assert taken(cap.result) == expected
    assert expected["h0 in"][0][2] == (X + 100).flatten().tolist()


@pytest.mark.parametrize("again", [False, True])
def test_a_hook_put_on_by_the_module_itself_while_it_runs(again: bool) -> None:
    """The model's results are those of the bare one: torch, too, does not look for hooks once a module runs."""

    class Hooks(Block):
        calls = 0

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            self.calls += 1
            if self.calls == 1:
                self.register_forward_hook(double)
                if again:
                    return self(x, scale=scale)
            return super().forward(x, scale)

    bare, model = Net(Hooks), Net(Hooks)
    expected = [bare(X) for _ in range(3)]
    with nsf.capture(model, hooks()) as cap:
        found = [model(X) for _ in range(3)]
    assert all(map(torch.equal, found, expected))
    wanted = [0, 0, 1, 2] if again else [0, 1, 2]
    assert steps(cap.result, "h0") == steps(cap.result, "h1") == (wanted, wanted)


def test_a_module_that_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Again(Block):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return super().forward(self(x, scale=scale - 1) if scale > -1 else x)

    expected = by_torch(Net(Again), lambda net: net(X), monkeypatch)
    model = Net(Again)
    with nsf.capture(model, hooks()) as cap:
        model(X)
    assert taken(cap.result) == expected
    assert [call for _, call, _ in expected["h0 out"]] == [0, 1, 2, 3]


class Own(RuntimeError):
    pass


def test_an_exception_of_the_module_passes_through() -> None:
    class Raises(Block):
        fails = True

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            if self.fails:
                raise Own("mine")
            return super().forward(x, scale)

    model = Net(Raises)
    with nsf.capture(model, hooks()) as cap:
        with pytest.raises(Own, match="mine"):
            model(X)
        Raises.fails = False
        model(X)
    assert steps(cap.result, "h0") == ([0, 1], [1])


def test_an_error_of_a_tap_is_raised_by_the_call() -> None:
    class NoTensor(Block):
        def forward(self, _x: torch.Tensor) -> Any:  # type: ignore[override]
            return "text"

    model = Net(NoTensor)
    with nsf.capture(model, hooks()[:1]), pytest.raises(nsf.CaptureError, match="no tensor in the module's output"):
        model.layers[0](X)
    assert untouched(model)


class OwnCall(Block):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call_impl(*args, **kwargs)


class OwnState(Block):
    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


@pytest.mark.parametrize("kind", [OwnCall, OwnState])
def test_modules_that_are_called_or_copied_in_their_own_way(kind: type[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(kind)
    expected = by_torch(model, lambda net: net(X), monkeypatch)
    with nsf.capture(model, hooks()) as cap:
        model(X)
        twin = copy.copy(model.layers[0])
        twin._parameters = {"bias": torch.full((4,), 100.0)}
        assert torch.equal(twin(X), X + 100)
    assert taken(cap.result) == expected


def test_an_encoder_layer_of_torch_that_looks_for_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hooks on its parts it computes all at once, and does not call them."""
    x = torch.randn(1, 3, 8)

    def captured() -> Any:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        places = [{"layer_name": name, "component": "mlp", "hook_id": name} for name in ("linear1", "linear2")]
        with torch.no_grad(), nsf.capture(layer, places) as cap:
            for _ in range(3):
                layer(x)
        return taken(cap.result)

    found = captured()
    with monkeypatch.context() as patch:
        patch.setattr("neuroscope_fast.attachment.can_tap_call", lambda *_: False)
        assert captured() == found
    assert [step for step, _, _ in found["linear1 out"]] == [0, 1, 2]


def test_layers_of_transformers_are_tapped_in_their_call() -> None:
    layers = pytest.importorskip("transformers.modeling_layers")

    class Layer(layers.GradientCheckpointingLayer):
        def __init__(self, bias: float) -> None:
            super().__init__()
            self.bias = bias

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x * scale + self.bias

    model = Net(Layer)
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [True, True]
        model(X)
    assert torch.equal(cap.result["h1"][0], (X * 2 + 1) * 2 + 10)


@pytest.mark.parametrize("when", ["before", "in"])
def test_a_torch_that_does_not_ask(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_torch(Net(), lambda net: net(X), monkeypatch)
    model = Net()
    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(nn.Module, "__call__", nn.Module._call_impl)
        with nsf.capture(model, hooks()) as cap:
            assert in_calls(model) == [when == "in"] * 2
            if when == "in":
                patch.setattr(nn.Module, "__call__", nn.Module._call_impl)
            model(X)
    assert taken(cap.result) == expected
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [True, True]
        model(X)
    assert taken(cap.result) == expected


def test_a_torch_that_looks_at_more_than_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks_at_more(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._something_new or known(self, *args, **kwargs)

    known = nn.Module._call_impl
    model = Net()
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "_something_new", None, raising=False)
        patch.setattr(nn.Module, "_call_impl", looks_at_more)
        with nsf.capture(model, hooks()) as cap:
            assert in_calls(model) == [False, False]
            model(X)
    assert steps(cap.result, "h0") == ([0], [0])


def test_the_dict_of_hooks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: nn.Module) -> None:
        model(X)
        model.layers[0]._forward_hooks = OrderedDict()
        model(X)
        model.layers[0].register_forward_hook(double)
        model(X)

    expected = by_torch(Net(), work, monkeypatch)
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        work(model)
    assert taken(cap.result) == expected
    assert CALL not in vars(model.layers[0])


@pytest.mark.parametrize("inside_a_pass", [False, True])
def test_copies_are_models_of_their_own(inside_a_pass: bool) -> None:
    """However they are made, they compute with their own weights, and are not captured."""
    model = Net()
    made: list[nn.Module] = []

    def make() -> None:
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        made.extend(
            [
                copy.deepcopy(model).layers[0],
                copy.copy(model.layers[0]),
                pickle.loads(pickle.dumps(model)).layers[0],
                torch.load(stored, weights_only=False).layers[0],
            ]
        )
        for layer in made:
            assert CALL not in vars(layer)
            layer._parameters = {"bias": torch.full((4,), 100.0)}
            assert torch.equal(layer(X), X + 100)

    with nsf.capture(model, hooks()) as cap:
        if inside_a_pass:
            model.during = make
        else:
            make()
        model(X)
    assert len(made) == 4
    assert steps(cap.result, "h0") == ([0], [0])


class Converted(Block):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x, scale) + 1000


@pytest.mark.parametrize("kind", [Block, Converted])
@pytest.mark.parametrize("place", ["in a pass", "outside", "in a thread", "afterwards", "after the compiler"])
def test_a_module_with_the_attributes_of_another_is_itself(kind: type[Block], place: str) -> None:
    """As torch.nn.DataParallel makes replicas, and as layers are converted."""
    model, results = Net(), []

    def twin() -> nn.Module:
        found = kind.__new__(kind)
        found.__dict__ = vars(model.layers[0]).copy()
        found._parameters = {"bias": torch.full((4,), 100.0)}
        assert vars(found)[CALL] is vars(model.layers[0])[CALL]
        return found

    def call() -> None:
        copied = twin()
        results.extend([copied(X), copied(X)])

    with nsf.capture(model, hooks()) as cap:
        if place == "in a pass":
            model.during = call
        elif place == "outside":
            call()
        elif place == "in a thread":
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        else:
            kept = twin()
        model(X)
        if place == "after the compiler":
            torch.compile(lambda: X + 1, backend="eager")()
            assert in_calls(model) == [False, False]
            results.append(kept(X))
    if place == "afterwards":
        results.append(kept(X))
    assert results
    assert all(torch.equal(result, X + (100 if kind is Block else 1100)) for result in results)
    assert steps(cap.result, "h0") == steps(cap.result, "h1") == ([0], [0])


def test_a_call_kept_beyond_the_block_captures_nothing() -> None:
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        kept = vars(model.layers[0])[CALL]
        model(X)
    assert torch.equal(kept(X), X + 1)
    assert steps(cap.result, "h0") == ([0], [0])


def test_the_block_ends_while_a_module_runs() -> None:
    running, ended = threading.Event(), threading.Event()

    class Waits(Block):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            running.set()
            assert ended.wait(30)
            return super().forward(x, scale)

    model, found = Net(Waits), []
    thread = threading.Thread(target=lambda: found.append(model(X)))
    with nsf.capture(model, hooks()[:1]) as cap:
        thread.start()
        assert running.wait(30)
    ended.set()
    thread.join()
    assert torch.equal(found[0], (X * 2 + 1) * 2 + 10)
    assert steps(cap.result, "h0") == ([0], [])
    assert untouched(model)


def test_captures_within_each_other_in_any_order() -> None:
    model = Net()
    outer, inner = nsf.capture(model, hooks()), nsf.capture(model, hooks())
    outer.__enter__()
    model(X)
    inner.__enter__()
    model(X)
    outer.__exit__(None, None, None)
    model(X)
    inner.__exit__(None, None, None)
    assert [steps(each.result, "h0") for each in (outer, inner)] == [([0, 1], [0, 1])] * 2
    assert taken(outer.result) == taken(inner.result)
    assert untouched(model)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_the_block_by_the_module_itself(backend: str) -> None:
    model = Net()
    with torch.no_grad(), nsf.capture(model, hooks()) as cap:
        model(X)
        model.layers[0].compile(backend=backend)
        model(X)
        model(X)
    assert steps(cap.result, "h0") == steps(cap.result, "h1") == ([0, 1, 2], [0, 1, 2])
    model.layers[0].__dict__.pop(CALL)  # the compiled code: the user's
    assert untouched(model)


@pytest.mark.parametrize("stance", ["default", "force_eager"])
@pytest.mark.parametrize("alone", [False, True])
def test_compiled_in_the_block_and_called(stance: Any, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: nn.Module) -> None:
        with torch.no_grad():
            model(X)
            with torch.compiler.set_stance(stance):
                model.layers[0].compile(backend="eager")
                model.layers[0](X) if alone else model(X)
            model(X)
            model.layers[1].compile(backend="eager")  # and never called

    expected = by_torch(Net(), work, monkeypatch)
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        work(model)
    assert taken(cap.result) == expected
    assert [step for step, _, _ in expected["h0 out"]] == [0, 1, 2]


def test_the_compiler_is_reset_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: nn.Module) -> None:
        with torch.no_grad():
            model(X)
            torch.compiler.reset()
            compiled = torch.compile(model, backend="eager")
            compiled(X)
            compiled(X)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it cannot trace a tap
        expected = by_torch(Net(), work, monkeypatch)
        model = Net()
        with nsf.capture(model, hooks()) as cap:
            work(model)
    assert taken(cap.result) == expected
    assert steps(cap.result, "h0") == steps(cap.result, "h1") == ([0, 1, 2], [0, 1, 2])


def test_hooks_come_and_go_in_another_thread() -> None:
    """Each call is captured once, whatever the other thread does meanwhile."""
    model, stop = Net(), threading.Event()

    def nothing(*_: object) -> None:
        return None

    def disturb() -> None:
        while not stop.is_set():
            for layer in model.layers:
                layer.register_forward_hook(nothing).remove()
                layer.register_forward_pre_hook(nothing).remove()

    for _ in range(10):
        stop.clear()
        with nsf.capture(model, hooks()) as cap:
            thread = threading.Thread(target=disturb)
            thread.start()
            try:
                for _ in range(20):
                    model(X)
            finally:
                stop.set()
                thread.join()
        for hook in ("h0", "h1"):
            assert steps(cap.result, hook) == (list(range(20)), list(range(20)))
    assert untouched(model)


@pytest.mark.parametrize("ended", [False, True])
def test_a_lost_model_is_collected(ended: bool) -> None:
    model = Net()
    cap = nsf.capture(model, hooks())
    cap.__enter__()
    model(X)
    if ended:
        cap.__exit__(None, None, None)
        ending: Any = cap
    kept = weakref.ref(model.layers[0])
    del model, cap
    gc.collect()
    assert kept() is None
    assert not ended or len(ending.result["h0"].records) == 1  # the capture is kept, and the model is not
