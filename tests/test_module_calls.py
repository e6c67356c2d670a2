"""Taps in the calls of modules: that they take what hooks would, once, and leave every other user of a module alone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast import module_calls
from neuroscope_fast.module_calls import CALL, can_tap_call
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


def by_hooks(model: nn.Module, work: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same capture with hooks throughout."""
    with monkeypatch.context() as patch:
        patch.setattr("neuroscope_fast.attachment.can_tap_call", lambda _: False)
        with nsf.capture(model, hooks()) as cap:
            assert model.layers[0]._forward_hooks
            work(model)
    return taken(cap.result)


def in_calls(model: nn.Module) -> list[bool]:
    return [type(vars(layer).get(CALL)).__name__ == "TappedCall" for layer in model.layers]


def untouched(model: nn.Module) -> bool:
    return all(
        CALL not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks
        for module in model.modules()
    )


def test_the_taps_are_no_hooks_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    before = [list(vars(module)) for module in model.modules()]
    expected = by_hooks(model, lambda net: net(X), monkeypatch)
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [True, True]
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)
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

    expected = by_hooks(Net(), work, monkeypatch)
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        work(model)
    assert taken(cap.result) == expected
    assert [values for _, _, values in expected["h0 out"]] == [(X * 2 + 1).flatten().tolist()] * 3
    assert untouched(model)


def test_hooks_that_were_there_before_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    handles = [model.layers[0].register_forward_hook(double), model.layers[1].register_forward_pre_hook(add_three)]
    expected = by_hooks(model, lambda net: net(X), monkeypatch)
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [False, False]
        model(X)
    assert taken(cap.result) == expected
    assert expected["h0 out"] == [(0, 0, ((X * 2 + 1) * 2).flatten().tolist())]
    assert expected["h1 in"] == [(0, 0, ((X * 2 + 1) * 2 + 3).flatten().tolist())]
    for handle in handles:
        handle.remove()
    assert untouched(model)


def test_a_hook_put_on_by_the_module_itself_while_it_runs() -> None:
    class Hooks(Block):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            self.register_forward_hook(double)
            return super().forward(x, scale)

    bare, model = Net(Hooks), Net(Hooks)
    expected = [bare(X) for _ in range(3)]
    with nsf.capture(model, hooks()) as cap:
        found = [model(X) for _ in range(3)]
    assert all(map(torch.equal, found, expected))  # the first time torch does not look for a hook any more
    assert steps(cap.result, "h0") == ([0, 1, 2], [0, 1, 2])
    assert all(torch.equal(tensor, X * 2 + 1) for tensor in cap.result["h0"])


def test_a_module_that_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Again(Block):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return super().forward(self(x, scale=scale - 1) if scale > -1 else x)

    expected = by_hooks(Net(Again), lambda net: net(X), monkeypatch)
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
def test_modules_that_are_called_or_copied_in_their_own_way_get_hooks(
    kind: type[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net(kind)
    expected = by_hooks(model, lambda net: net(X), monkeypatch)
    with nsf.capture(model, hooks()) as cap:
        assert in_calls(model) == [False, False]
        model(X)
    assert taken(cap.result) == expected


def test_scripted_modules_get_hooks() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(Block())
    assert not can_tap_call(scripted)


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


def test_a_torch_that_asks_no_more_gets_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    module_calls._torch_asks_for_the_call.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", nn.Module._call_impl)
        assert not can_tap_call(Block())
    module_calls._torch_asks_for_the_call.cache_clear()
    assert can_tap_call(Block())


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


def test_a_replica_computes_with_its_own_weights() -> None:
    """As torch.nn.DataParallel makes them: with all attributes of the module."""
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        replica = model.layers[0]._replicate_for_data_parallel()
        replica._parameters = {"bias": torch.full((4,), 100.0)}
        assert vars(replica)[CALL] is vars(model.layers[0])[CALL]
        found: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: found.append(replica(X)))
        thread.start()
        thread.join()
        assert torch.equal(found[0], X + 100)
        assert torch.equal(replica(X), X + 100)
        model(X)
    assert steps(cap.result, "h0") == ([0], [0])


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


def test_compiled_in_the_block_with_the_compiler_off() -> None:
    model = Net()
    with nsf.capture(model, hooks()) as cap:
        model(X)
        with torch.compiler.set_stance("force_eager"):
            model.layers[0].compile(backend="eager")
            model(X)
        model(X)
    assert steps(cap.result, "h0") == steps(cap.result, "h1") == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("stance", ["default", "force_eager"])
def test_compiled_in_the_block_and_called_alone_is_an_error(stance: Any, tmp_path: Path) -> None:
    """Rather that than a run that lacks something and does not say so."""
    model = Net()
    cap = nsf.capture(model, hooks(), out=tmp_path / "run")
    cap.__enter__()
    model(X)
    with torch.compiler.set_stance(stance), torch.no_grad():
        model.layers[0].compile(backend="eager")
        model.layers[0](X)
    with pytest.raises(nsf.CaptureError, match=r"^layers\.0: compiled in the block by Module\.compile\(\), and then"):
        cap.__exit__(None, None, None)
    assert cap.result.status == "failed"
    assert steps(cap.result, "h0") == steps(cap.result, "h1") == ([0], [0])


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

    for _ in range(30):  # once made hooks, taps stay hooks
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


def test_a_lost_model_is_collected() -> None:
    model = Net()
    cap = nsf.capture(model, hooks())
    cap.__enter__()
    model(X)
    kept = weakref.ref(model.layers[0])
    del model, cap
    gc.collect()
    assert kept() is None
