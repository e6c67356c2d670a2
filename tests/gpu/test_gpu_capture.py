"""Captures of a Llama on a GPU: the bits that plain hooks clone, and a model that computes what it computes without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from conftest import hook_state
from gpu_models import GreedyDecoding, Shape, tokens
from test_conformance import same_bits
from torch import nn

from gpu.captures import Clones, assert_equal_clones

pytestmark = pytest.mark.gpu

HOOKS = [
    {"layer_name": "model.layers.*", "component": "residual", "hook_id": "residual", "capture_input": True},
    "model.layers.*:attention",
    "model.layers.*:mlp",
    "lm_head:logits",
]


def decode(model: nn.Module, ids: torch.Tensor, steps: int) -> torch.Tensor:
    return GreedyDecoding(model, ids, lambda: None).run(steps)


def stored_bytes(run: nsf.Run) -> int:
    return sum(torch.Size(each.shape).numel() * getattr(torch, each.dtype).itemsize for each in run.records)


@pytest.mark.parametrize("sink", ["memory", "disk"])
def test_prefill_and_decode(model: nn.Module, shape: Shape, device: torch.device, tmp_path: Path, sink: str) -> None:
    ids = tokens(shape, shape.prefill, device)
    bare = decode(model, ids, shape.steps)
    before = hook_state(model)
    out = tmp_path / "run" if sink == "disk" else None
    with Clones(model, HOOKS) as clones, nsf.capture(model, HOOKS, out=out) as cap:
        captured = decode(model, ids, shape.steps)
    assert hook_state(model) == before
    assert torch.equal(bare, captured)
    assert_equal_clones(cap.result, clones)
    if out is not None:
        reopened = nsf.open(out)
        assert reopened.verify() == []
        assert_equal_clones(reopened, clones)


def test_generate_is_not_perturbed(model: nn.Module, shape: Shape, device: torch.device) -> None:
    ids = tokens(shape, shape.prompt, device)
    options: dict[str, Any] = {"max_new_tokens": shape.steps, "min_new_tokens": shape.steps, "do_sample": False}
    options |= {"pad_token_id": 0, "output_logits": True, "return_dict_in_generate": True}
    options["attention_mask"] = torch.ones_like(ids)
    before = hook_state(model)
    bare = model.generate(ids, **options)
    with nsf.capture(model, HOOKS, dtype="float8_e4m3fn") as cap:
        captured = model.generate(ids, **options)
    assert hook_state(model) == before
    assert torch.equal(bare.sequences, captured.sequences)
    for one, other in zip(bare.logits, captured.logits, strict=True):
        assert same_bits(one, other)
    assert [record.step for record in cap.result["lm_head_logits"].records] == list(range(shape.steps))
    usage = cap.result.metadata.usage
    assert usage.prompt_tokens == shape.prompt
    assert usage.total_tokens == shape.prompt + shape.steps - 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_casts_of_a_model(model: nn.Module, shape: Shape, device: torch.device, dtype: str) -> None:
    hooks = ["model.layers.*:residual", "model.layers.0:mlp"]
    with Clones(model, hooks) as clones, nsf.capture(model, hooks, dtype=dtype) as cap:
        decode(model, tokens(shape, shape.prompt, device), 3)
    assert_equal_clones(cap.result, clones, like=lambda tensor: tensor.to(getattr(torch, dtype)))


LEFT = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
RIGHT = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("mask", "real", "last"),
    [(LEFT, [[2, 5], [0, 5]], [4, 4]), (RIGHT, [[0, 3], [0, 5]], [2, 4])],
    ids=["left", "right"],
)
def test_padded_batches(
    model: nn.Module, device: torch.device, mask: list[list[int]], real: list[list[int]], last: list[int]
) -> None:
    where = {"layer_name": "model.layers.1", "component": "residual"}
    hooks = [
        {**where, "hook_id": "all"},
        {**where, "hook_id": "last", "positions": "last"},
        {**where, "hook_id": "some", "positions": [0, 3], "dtype": "float32"},
    ]
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]], device=device)
    with Clones(model, hooks[:1]) as clones, nsf.capture(model, hooks) as cap:
        model(ids, attention_mask=torch.tensor(mask, device=device))
    whole = clones.tensors["all", False][0].cpu()
    (everything,), (final,), (some,) = (cap.result[name].records for name in ("all", "last", "some"))
    assert everything.real_tokens == real
    assert same_bits(cap.result["all"][0], whole)
    assert final.positions == ([last[0]] if last[0] == last[1] else [[last[0]], [last[1]]])
    assert same_bits(cap.result["last"][0], torch.stack([whole[row, last[row]] for row in range(2)])[:, None])
    assert some.positions == [0, 3]
    assert same_bits(cap.result["some"][0], whole[:, [0, 3]].float())


def test_positions_of_a_generation(model: nn.Module, shape: Shape, device: torch.device) -> None:
    where = {"layer_name": "model.layers.0", "component": "residual"}
    chosen: dict[str, Any] = {"last": "last", "list": [0, -1], "slice": "1::3", "far": [2, shape.prompt + 1, 10**6]}
    hooks = [{**where, "hook_id": "all"}, *({**where, "hook_id": k, "positions": v} for k, v in chosen.items())]
    with nsf.capture(model, hooks) as cap:
        decode(model, tokens(shape, shape.prompt, device), 4)
    whole = cap.result["all"].cat()
    total = shape.prompt + 4
    assert whole.shape[1] == total
    kept = {
        "last": list(range(shape.prompt - 1, total)),
        "list": [0, *range(shape.prompt - 1, total)],
        "slice": list(range(1, total, 3)),
        "far": [2, shape.prompt + 1],
    }
    for hook_id, positions in kept.items():
        stored = cap.result[hook_id]
        assert [each for record in stored.records for each in record.positions] == positions
        assert same_bits(stored.cat(), whole[:, positions])


def test_what_the_manifest_says_of_the_device(
    model: nn.Module, shape: Shape, cuda: torch.device, tmp_path: Path
) -> None:
    block = 1 << 20
    options = {"block_bytes": block, "staging_bytes": 64 * block, "ring_bytes": 128 * block}
    hooks = ["model.layers.*:residual", "model.layers.*:mlp"]
    with nsf.capture(model, hooks, out=tmp_path / "run", **options) as cap:
        decode(model, tokens(shape, 16, cuda), shape.steps)
    run = nsf.open(tmp_path / "run")
    (found,) = run.manifest.devices
    assert found.device == "cuda:0"
    assert found.name == torch.cuda.get_device_name(cuda)
    assert re.fullmatch(r"\d+\.\d+", found.driver)
    assert 0 < found.peak_staging_bytes <= found.staging_bytes <= options["staging_bytes"]
    assert run.stats.pinned_bytes == options["ring_bytes"]
    assert run.stats.tap_seconds > 0
    assert run.manifest.warnings == []
    assert found.dtoh_bytes == stored_bytes(run) == stored_bytes(cap.result)
    assert found.dtoh_seconds > 0
    passes, blocks = shape.steps + 1, found.dtoh_bytes // block + 1
    assert passes <= found.dtoh_copies <= passes + blocks


def test_a_second_capture_right_behind_the_first(model: nn.Module, shape: Shape, device: torch.device) -> None:
    ids = tokens(shape, shape.prompt, device)
    for hooks in (HOOKS, HOOKS[1:2], HOOKS):
        with Clones(model, hooks) as clones, nsf.capture(model, hooks) as cap:
            decode(model, ids, 2)
        assert_equal_clones(cap.result, clones)
