"""`nsf.capture` as a whole: what it stores, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import architectures
import msgspec
import neuroscope_fast as nsf
import pytest
import torch
from conftest import hook_state
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

RESIDUALS = "model.layers.*:residual"


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "capture.json").read_bytes())


def test_files_of_a_run(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with nsf.capture(llama, RESIDUALS, out=tmp_path / "run", dtype="bfloat16") as cap:
        llama(**tokens)
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert names == {
        "activation_capture.json",
        "activation_capture_format.md",
        "activations-bfloat16-00000.safetensors",
        "activations.safetensors.index.json",
        "capture.json",
        "prompts.jsonl",
    }
    index = json.loads((tmp_path / "run/activations.safetensors.index.json").read_bytes())
    assert set(index["weight_map"]) == {"model.layers.0_residual/000000", "model.layers.1_residual/000000"}
    for key, file in index["weight_map"].items():
        with safe_open(tmp_path / "run" / file, "pt") as shard:
            hook_id = key.split("/")[0]
            assert torch.equal(shard.get_tensor(key), cap.result[hook_id][0])
    assert manifest(tmp_path / "run")["status"] == "complete"
    report = (tmp_path / "run/activation_capture_format.md").read_text()
    assert "unknown" not in report
    assert nsf.render((tmp_path / "run/activation_capture.json").read_bytes()) == report


def test_memory_and_disk_hold_the_same(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    hooks = [
        RESIDUALS,
        {"layer_name": "model.layers.0.mlp", "component": "mlp", "dtype": "int8", "capture_input": True},
        {"layer_name": "model.layers.1", "component": "neuron", "dtype": "float8_e4m3fn", "positions": [0, -1]},
    ]
    with (
        nsf.capture(llama, hooks, out=tmp_path / "run") as on_disk,
        nsf.capture(llama, hooks) as in_memory,
    ):
        llama(**tokens)
    disk, memory = on_disk.result, in_memory.result
    assert disk.hooks == memory.hooks
    for hook_id in disk.hooks:
        for side in ("inputs", "outputs"):
            a, b = getattr(disk[hook_id], side), getattr(memory[hook_id], side)
            assert len(a) == len(b)
            for one, other in zip(a, b, strict=True):
                assert torch.equal(one, other)
    stripped = [msgspec.structs.replace(record, data=None, scale=None) for record in disk.records]
    assert stripped == memory.records


def test_int8_is_given_back_as_values(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    exact_hook = {"layer_name": "model.layers.0", "component": "residual", "hook_id": "exact"}
    with nsf.capture(llama, [exact_hook, {**exact_hook, "hook_id": "small", "dtype": "int8"}]) as cap:
        llama(**tokens)
    exact, small = cap.result["exact"][0], cap.result["small"][0]
    codes, scale = cap.result["small"].raw(0)
    assert (codes.dtype, scale.shape) == (torch.int8, exact.shape[:-1])
    assert small.dtype == torch.float32
    assert bool(((small - exact).abs() <= scale[..., None] * 0.5001).all())


def test_one_place_under_two_ids_is_stored_once(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    hooks = ["model.layers.0:residual:a", "model.layers.0:residual:b", "model.layers.0.mlp:mlp:c"]
    with nsf.capture(llama, hooks, out=tmp_path / "run") as cap:
        llama(**tokens)
    run = cap.result
    assert run.stats.records == 2
    assert run["a"].records[0].data == run["b"].records[0].data
    assert torch.equal(run["a"][0], run["b"][0])
    assert run["b"].records[0].hook_id == "b"
    with nsf.capture(llama, [hooks[0], {**vars_of(hooks[1]), "dtype": "float16"}]) as cap:
        llama(**tokens)
    assert cap.result.stats.records == 2
    assert cap.result["b"][0].dtype == torch.float16


def vars_of(short: str) -> dict[str, Any]:
    layer, component, hook_id = short.split(":")
    return {"layer_name": layer, "component": component, "hook_id": hook_id}


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom("broke\nhere"), KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_a_block_left_by_an_exception_keeps_what_was_captured(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path, error: BaseException
) -> None:
    def run() -> None:
        with nsf.capture(llama, RESIDUALS, out=tmp_path / "run"):
            llama(**tokens)
            raise error

    with pytest.raises(type(error)):
        run()
    stored = manifest(tmp_path / "run")
    assert stored["status"] == "interrupted"
    assert stored["cause"].startswith(type(error).__name__)
    with pytest.warns(nsf.RunIncompleteWarning, match="interrupted"):
        reopened = nsf.open(tmp_path / "run")
    assert len(reopened.records) == 2
    assert reopened.verify() == []


def test_a_forward_that_raises_ends_its_step(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    def fail(*_: Any) -> None:
        raise Boom

    with nsf.capture(llama, RESIDUALS) as cap:
        llama(**tokens)
        handle = llama.get_submodule("model.layers.1").register_forward_pre_hook(fail)
        with pytest.raises(Boom):
            llama(**tokens)
        handle.remove()
        llama(**tokens)
    steps = {hook_id: [r.step for r in cap.result[hook_id].records] for hook_id in cap.hook_ids}
    assert steps == {"model.layers.0_residual": [0, 1, 2], "model.layers.1_residual": [0, 2]}


def test_nested_and_repeated_captures(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    before = hook_state(llama)
    with nsf.capture(llama, RESIDUALS) as outer:
        llama(**tokens)
        with nsf.capture(llama, "model.layers.0:residual") as inner:
            llama(**tokens)
        llama(**tokens)
    assert hook_state(llama) == before
    assert [len(cap.result.records) for cap in (outer, inner)] == [6, 1]
    assert inner.result["model.layers.0_residual"].records[0].step == 0


def test_a_users_own_hooks_stay(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    calls: list[str] = []
    layer = llama.get_submodule("model.layers.0")
    handle = layer.register_forward_hook(lambda *_: calls.append("output"))
    before = hook_state(llama)
    with nsf.capture(llama, RESIDUALS):
        llama(**tokens)
    assert hook_state(llama) == before
    llama(**tokens)
    handle.remove()
    assert calls == ["output", "output"]


def test_threads_run_forwards_at_once(llama: nn.Module, tmp_path: Path) -> None:
    inputs = [torch.full((1, length), length) for length in range(2, 10)]
    with nsf.capture(llama, "model.layers.0:residual:x") as alone:
        for x in inputs:
            llama(x)
    wanted = {tensor.shape[1]: tensor for tensor in alone.result["x"]}

    def work(x: torch.Tensor) -> None:
        with torch.no_grad():
            for _ in range(5):
                llama(x)

    hooks = ["model.layers.0:residual", "model.layers.1:mlp"]
    with nsf.capture(llama, hooks, out=tmp_path / "run", ring_bytes=16384, block_bytes=4096) as cap:
        threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = nsf.open(tmp_path / "run")
    assert run.verify() == []
    residual, mlp = run["model.layers.0_residual"], run["model.layers.1_mlp"]
    assert sorted(r.step for r in residual.records) == sorted(r.step for r in mlp.records) == list(range(40))
    lengths = {r.step: r.shape[1] for r in mlp.records}
    for record, tensor in zip(residual.records, residual, strict=True):
        assert lengths[record.step] == record.shape[1]
        assert torch.equal(tensor, wanted[record.shape[1]])
    assert cap.result.stats.drops == 0


@pytest.mark.parametrize("out", [True, False], ids=["disk", "memory"])
def test_a_tensor_larger_than_the_ring_comes_out_whole(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path, out: bool
) -> None:
    want = llama(**tokens).logits
    with nsf.capture(
        llama, "lm_head:logits", out=tmp_path / "run" if out else None, ring_bytes=4096, block_bytes=4096
    ) as cap:
        llama(**tokens)
    assert want.nbytes > 4096
    assert torch.equal(cap.result["lm_head_logits"][0], want)
    assert cap.result.stats.peak_ring_bytes == 4096


def test_drop_counts_and_lists(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    hooks = ["lm_head:logits", "model.layers.0:residual"]
    options = {"ring_bytes": 4096, "block_bytes": 4096, "overflow": "drop"}
    with nsf.capture(llama, hooks, out=tmp_path / "run", **options) as cap:
        llama(**tokens)
    assert cap.result.stats.drops == 1
    assert manifest(tmp_path / "run")["dropped"] == [
        {"hook_id": "lm_head_logits", "step": 0, "prompt": 0, "call": 0, "is_input": False}
    ]
    assert [r.hook_id for r in cap.result.records] == ["model.layers.0_residual"]
    assert manifest(tmp_path / "run")["warnings"] == [
        "hook 'lm_head_logits' captured nothing",
        "records dropped because the ring was full: 1",
    ]


def test_fail_raises_at_the_tap(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    options = {"ring_bytes": 4096, "block_bytes": 4096, "overflow": "fail"}
    with (
        pytest.raises(nsf.CaptureError, match="the ring is full"),
        nsf.capture(llama, "lm_head:logits", **options),
    ):
        llama(**tokens)


def test_shards_roll_over_by_size(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    options = {"shard_bytes": 10_000, "ring_bytes": 8192, "block_bytes": 4096}
    with nsf.capture(llama, [RESIDUALS, "lm_head:logits"], out=tmp_path / "run", **options) as cap:
        for _ in range(7):
            llama(**tokens)
    shards = sorted((tmp_path / "run").glob("*.safetensors"))
    assert len(shards) > 3
    stored = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
    assert len(stored) == 21
    for record in cap.result.records:
        assert record.data is not None
        assert record.data.key in stored
    assert cap.result.verify() == []


def test_a_long_decode_ends_in_few_shards(tmp_path: Path) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    model, x = Tiny(), torch.randn(1, 1, 8)
    with nsf.capture(model, "body:mlp:x", out=tmp_path / "run") as cap:
        for _ in range(5000):
            model(x)
    shards = list((tmp_path / "run").glob("*.safetensors"))
    assert len(shards) <= 4
    assert len(cap.result["x"]) == 5000
    assert cap.result["x"].cat().shape == (1, 5000, 8)


def test_module_called_twice_in_a_forward() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(self.body(x))

    model, x = Twice(), torch.randn(1, 3, 4)
    with nsf.capture(model, "body:mlp:x") as cap:
        model(x)
        model(x)
    assert [(r.step, r.call) for r in cap.result["x"].records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.equal(cap.result["x"].where(step=0, call=1)[0], model(x))


def test_prompts_count_their_own_steps(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    with nsf.capture(llama, "model.layers.0:residual:x") as cap:
        for _ in range(2):
            cap.next_prompt()
            llama(**tokens)
            llama(**tokens)
    assert [(r.prompt, r.step) for r in cap.result["x"].records] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_modules_run_outside_the_root_are_steps_of_their_own(llama: nn.Module) -> None:
    layer = llama.get_submodule("model.layers.0.mlp")
    with nsf.capture(llama, "model.layers.0.mlp:mlp:x") as cap:
        for _ in range(3):
            layer(torch.randn(1, 2, architectures.HIDDEN))
    assert [(r.step, r.call) for r in cap.result["x"].records] == [(0, 0), (1, 0), (2, 0)]


def test_usage_counts_tokens_that_the_model_read(llama: nn.Module) -> None:
    ids = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]])
    mask = (ids != 0).long()
    with nsf.capture(llama, "model.layers.0:residual:x") as cap:
        llama.generate(ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    usage = cap.result.metadata.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 4, 10)


def test_analysis_names_the_files(llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with nsf.capture(llama, RESIDUALS, out=tmp_path, analysis="information_flow", description="Follow it") as cap:
        llama(**tokens)
        cap.add_generation("a prompt", "a text", prompt_tokens=3, completion_tokens=2)
    stored = json.loads((tmp_path / "circuit_analysis_information_flow.json").read_bytes())
    assert list(stored) == [
        "timestamp",
        "demo_type",
        "analysis_name",
        "analysis_description",
        "hooks_used",
        "generated_text",
        "activations",
        "usage",
        "hook_configurations",
    ]
    assert stored["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert stored["generated_text"] == "a text"
    record = stored["activations"]["model.layers.0_residual"][0]
    assert list(record)[:6] == ["hook_id", "layer_name", "component", "shape", "dtype", "is_input"]
    assert stored["hooks_used"] == 2


@pytest.mark.parametrize("way", ["pickle", "torch"])
def test_a_hooked_model_can_be_stored_and_loaded(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path, way: str
) -> None:
    hooks = ["model.layers.0:mlp:x", {"layer_name": "model.layers.1", "component": "mlp", "capture_input": True}]
    with nsf.capture(llama, [*hooks, "model.layers.0.self_attn:attention_pattern"]) as cap:
        if way == "pickle":
            stored = pickle.dumps(llama)
            twin = pickle.loads(stored)
        else:
            torch.save(llama, tmp_path / "model.pt")
            twin = torch.load(tmp_path / "model.pt", weights_only=False)
        expected = llama(**tokens).logits
        assert torch.equal(twin(**tokens).logits, expected)
    assert [record.step for record in cap.result["x"].records] == [0]
    assert torch.equal(twin(**tokens).logits, expected)
    # In another process, and again from there.
    (tmp_path / "twice").write_bytes(pickle.dumps(pickle.loads(pickle.dumps(twin))))
    (tmp_path / "ids").write_bytes(pickle.dumps((tokens, expected)))
    script = (
        "import pickle, sys, torch\n"
        "model, (tokens, expected) = (pickle.load(open(name, 'rb')) for name in sys.argv[1:])\n"
        "assert torch.equal(model(**tokens).logits, expected)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "twice", tmp_path / "ids"],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_copy_of_a_hooked_model_can_be_made(llama: nn.Module, tokens: dict[str, torch.Tensor]) -> None:
    with nsf.capture(llama, "model.layers.0:mlp:x") as cap:
        twin = copy.deepcopy(llama)
        twin(**tokens)
        llama(**tokens)
    assert [record.step for record in cap.result["x"].records] == [0]  # what the copy does is no step of the model
    twin(**tokens)  # it still has the taps, which do nothing now
