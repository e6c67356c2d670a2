"""What the engine writes of the records is what their structs would be written as, and a capture's result is what its
files say.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import msgspec
import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast import reader
from neuroscope_fast.manifest import INDEX_FILE, MANIFEST_FILE, decode_manifest, encode_index, encode_manifest
from neuroscope_fast.records import Record, decode_metadata, encode_metadata
from neuroscope_fast.report import render
from safetensors import safe_open
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:nothing was captured for never")

SMALL: dict[str, Any] = {"shard_bytes": 30_000, "block_bytes": 8192, "ring_bytes": 64 * 8192}
LAYER = "model.layers.1"
PATTERN = {"layer_name": f"{LAYER}.self_attn", "component": "attention_pattern"}
MLP = {"layer_name": f"{LAYER}.mlp", "component": "mlp"}
HOOKS: list[Any] = [
    "model.layers.*:residual",
    f"{LAYER}:residual:shares its tensors",
    {**MLP, "hook_id": "both", "capture_input": True},
    {**MLP, "hook_id": "int8", "capture_input": True, "dtype": "int8"},
    {**MLP, "hook_id": "input", "capture_input": True, "capture_output": False, "positions": [0, -1]},
    {**MLP, "hook_id": "last", "positions": "last", "phase": "decode", "every": 2},
    {**PATTERN, "hook_id": "keys", "reduction": "top_k", "top_k": 2},
    {**PATTERN, "hook_id": "int8 keys", "reduction": "top_k", "top_k": 2, "dtype": "int8"},
    {**PATTERN, "hook_id": "mean", "reduction": "mean", "heads": [0, 2]},
    {**PATTERN, "hook_id": "\"\\ <é&'\u00a0\u2028\ufeff\U0001f41f>", "heads": [1]},
]
IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])


def padded_prompts(out: Path | None, **options: Any) -> nsf.Run:
    """Several prompts: padding on either side, then one that is continued."""
    model = architectures.build("llama")
    with torch.no_grad(), nsf.capture(model, HOOKS, out, **options) as cap:
        for mask in ([[0, 0, 1, 1, 1], [1] * 5], [[1, 1, 1, 0, 0], [1] * 5], [[1, 0, 1, 1, 0], [0] * 5]):
            model(IDS, attention_mask=torch.tensor(mask))
            cap.next_prompt()
        model.generate(IDS[1:], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return cap.result


class Repeated(nn.Module):
    """Calls one module three times, and gives others what is no matrix of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mask, self.empty, self.scalar, self.never = (nn.Identity() for _ in range(4))

    def forward(self, x: torch.Tensor) -> None:
        for _ in range(3):
            x = self.linear(x)
        self.mask(x > 0)
        self.empty(x.long()[:0])
        self.scalar(x.sum())


def calls(out: Path | None, **options: Any) -> nsf.Run:
    torch.manual_seed(0)
    model, x = Repeated(), torch.ones(1, 2, 4)
    places = ("linear", "mask", "empty", "scalar", "never")
    hooks = [{"layer_name": name, "component": "mlp", "hook_id": name} for name in places]
    hooks += [{**hooks[3], "hook_id": "int8", "dtype": "int8"}]
    with torch.no_grad(), nsf.capture(model, hooks, out, analysis="x", description='several "calls"', **options) as cap:
        for _ in range(3):
            model(x)
            cap.next_prompt()
    return cap.result


def dropped(out: Path | None, **_: Any) -> nsf.Run:
    """What is larger than the ring is dropped."""
    torch.manual_seed(0)
    model = Repeated()
    place = {"layer_name": "linear", "component": "mlp"}
    hooks = [{**place, "hook_id": dtype, "dtype": dtype} for dtype in ("int8", "float16")]
    ring: dict[str, Any] = {"block_bytes": 8192, "ring_bytes": 8 * 8192, "overflow": "drop"}
    with torch.no_grad(), nsf.capture(model, hooks, out, **ring) as cap:
        for length in (1, 50_000):
            model(torch.ones(1, length, 4))
    assert cap.result.manifest.dropped
    return cap.result


def experts(out: Path | None, **options: Any) -> nsf.Run:
    model = architectures.build("mixtral")
    place = {"layer_name": "model.layers.0.mlp.experts", "component": "expert"}
    hooks = [
        {**place, "hook_id": "choice", "capture_input": True},
        {**place, "hook_id": "int8", "dtype": "int8"},
        {**place, "hook_id": "shared", "capture_input": True},
    ]
    with torch.no_grad(), nsf.capture(model, hooks, out, **options) as cap:
        model(**architectures.inputs("mixtral"))
        model(**architectures.inputs("mixtral", batch=2, length=3))
    return cap.result


def generated(out: Path | None, **options: Any) -> nsf.Run:
    prompts = ["Recursion is", "A loop is"]
    return nsf.generate("demo", prompts, HOOKS[:8], out, max_new_tokens=4, dtype="bfloat16", **options)


def resumed(out: Path | None, **options: Any) -> nsf.Run:
    steps = 0

    def stop(_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise InterruptedError

    options = {"max_new_tokens": 4, **SMALL, **options}
    with contextlib.suppress(InterruptedError):
        nsf.generate("demo", ["A loop is", "Recursion is"], HOOKS[:8], out, progress=stop, **options)
    run = nsf.generate("demo", ["A loop is", "Recursion is"], HOOKS[:8], out, resume=True, **options)
    assert [each.first_prompt for each in run.manifest.resumptions] == [1]
    return run


Capture = Callable[..., nsf.Run]
IN_MEMORY: list[Capture] = [padded_prompts, calls, dropped, experts, generated]


@pytest.fixture(params=[*IN_MEMORY, resumed], ids=lambda capture: capture.__name__)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> nsf.Run:
    capture: Capture = request.param
    return capture(tmp_path / "run", **SMALL)


def folder(run: nsf.Run) -> Path:
    assert run.path is not None
    return run.path


def test_the_files_are_those_that_the_structs_would_give(run: nsf.Run) -> None:
    data = (folder(run) / run.manifest.metadata_file).read_bytes()
    metadata = decode_metadata(data)
    assert encode_metadata(metadata) == data
    assert list(metadata.activations) == list(run.manifest.hooks)
    report = folder(run) / run.manifest.metadata_file.replace(".json", "_format.md")
    assert render(data) == report.read_text(encoding="utf-8")
    manifest = (folder(run) / MANIFEST_FILE).read_bytes()
    assert encode_manifest(decode_manifest(manifest)) == manifest
    checksums = run.manifest.checksums
    assert type(checksums).of(checksums.by_shard()) == checksums


def test_index_and_checksums_name_every_stored_tensor(run: nsf.Run) -> None:
    stored: dict[str, str] = {}
    for path in folder(run).glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            stored |= dict.fromkeys(shard.keys(), path.name)
    index = (folder(run) / INDEX_FILE).read_bytes()
    weight_map = msgspec.json.decode(index)["weight_map"]
    assert weight_map == stored
    sizes = [path.stat().st_size for path in folder(run).glob("*.safetensors")]
    total_size = msgspec.json.decode(index)["metadata"]["total_size"]
    assert 0 < total_size < sum(sizes)
    assert encode_index(weight_map, total_size) == index
    by_shard = run.manifest.checksums.by_shard()
    assert {key: file for file, keys in by_shard.items() for key in keys} == stored
    for file, keys in by_shard.items():  # in the order of capture, both
        assert list(keys) == [key for key in weight_map if weight_map[key] == file]
    refs = [ref for record in run.records for ref in (record.data, record.scale, record.indices) if ref is not None]
    assert all(stored[ref.key] == ref.file for ref in refs)
    assert run.verify() == []


def assert_same(one: nsf.Run, other: nsf.Run, same: Callable[[Record], Record] = lambda record: record) -> None:
    assert one.hooks == other.hooks
    for hook_id in one:
        sides = [(each[hook_id].inputs, each[hook_id].outputs) for each in (one, other)]
        for mine, theirs in zip(*sides, strict=True):
            assert list(map(same, mine.records)) == list(map(same, theirs.records))
            for index in range(len(mine)):
                for a, b in zip(mine.raw(index), theirs.raw(index), strict=True):
                    assert (a is None) == (b is None)
                    if a is not None and b is not None:
                        assert a.dtype == b.dtype
                        assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
        assert indices(one[hook_id]) == indices(other[hook_id])


def indices(activations: reader.Activations) -> list[Any] | None:
    try:
        return [tensor.tolist() for tensor in activations.outputs.indices]
    except nsf.RunError:
        return None


def test_the_result_is_what_the_files_say(run: nsf.Run) -> None:
    opened = nsf.open(folder(run))
    assert run.metadata == opened.metadata
    assert run.records == opened.records
    assert_same(run, opened)


@pytest.mark.parametrize("capture", IN_MEMORY, ids=lambda capture: capture.__name__)
def test_memory_holds_what_the_disk_does(capture: Capture, tmp_path: Path) -> None:
    in_memory = capture(None)
    gc.collect()  # the capture, and with it the engine, is gone
    nowhere = {"data": None, "scale": None, "indices": None}
    assert_same(in_memory, capture(tmp_path / "run"), lambda record: msgspec.structs.replace(record, **nowhere))


@pytest.mark.parametrize("through", [lambda run: pickle.loads(pickle.dumps(run)), copy.deepcopy])
@pytest.mark.parametrize("capture", IN_MEMORY, ids=lambda capture: capture.__name__)
def test_a_result_can_be_copied_and_sent(
    capture: Capture, through: Callable[[nsf.Run], nsf.Run], tmp_path: Path
) -> None:
    for out in (None, tmp_path / "run"):
        run = capture(out)
        assert_same(through(run), run)
        assert_same(through(run), run)  # its tensors have been looked at


def test_records_become_structs_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def decode(raw: msgspec.Raw, name: str) -> list[Record]:
        asked.append(bytes(raw))
        return real(raw, name)

    real = reader.decode_records
    monkeypatch.setattr(reader, "decode_records", decode)
    for out in (None, tmp_path / "run"):
        run = calls(out)
        assert run.hooks == ["linear", "mask", "empty", "scalar", "never", "int8"]
        assert asked == []
        assert len(run["linear"]) == 9
        assert len(run["linear"]) == 9
        assert len(asked) == 1
        asked.clear()


def test_a_tensor_in_memory_is_the_same_each_time() -> None:
    run = calls(None)
    assert run["linear"][0] is run["linear"][0]
    assert run["empty"][0].shape == (0, 2, 4)
    with pytest.raises(nsf.RunError, match="holds no indices"):
        _ = run["linear"].indices
