"""A run that was interrupted is continued, and holds the same bytes as one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.cli import main
from neuroscope_fast.manifest import MANIFEST_FILE, decode_manifest
from safetensors import safe_open
from torch import nn

PROMPTS = ["Recursion is", "The capital of France is", "A loop is", "The day after Monday is"]
HOOKS: list[Any] = [
    "model.layers.{0..2}:residual",
    {"layer_name": "model.layers.1", "component": "mlp", "dtype": "int8", "hook_id": "quantised"},
    {
        "layer_name": "model.layers.2.self_attn",
        "component": "attention_pattern",
        "reduction": "top_k",
        "top_k": 3,
        "hook_id": "keys",
    },
    "model.layers.0:residual:again",  # shares its tensors with the first
]
TOKENS = 6
# Many small shards, so that prompts end within them and between them.
SMALL: dict[str, Any] = {"shard_bytes": 40_000, "block_bytes": 8192, "ring_bytes": 64 * 8192, "durability": "16KiB"}

CHILD = """
import os, sys
import test_resume
ticks = 0
def tick(_):
    global ticks
    ticks += 1
    if ticks == int(sys.argv[2]):
        if sys.argv[3] == "kill":
            os.kill(os.getpid(), 9)
        raise RuntimeError
test_resume.capture(sys.argv[1], resume=True, progress=tick)
"""


def capture(out: str | Path, **options: Any) -> nsf.Run:
    torch.set_num_threads(1)
    return nsf.generate("demo", PROMPTS, HOOKS, out, max_new_tokens=TOKENS, **{**SMALL, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> nsf.Run:
    return capture(tmp_path_factory.mktemp("whole") / "run")


def assert_same(run: nsf.Run, whole: nsf.Run) -> None:
    assert list(run) == list(whole)
    for hook_id in whole:
        mine, theirs = run[hook_id], whole[hook_id]
        strip = {"data": None, "scale": None, "indices": None}
        assert [msgspec.structs.replace(each, **strip) for each in mine.records] == [
            msgspec.structs.replace(each, **strip) for each in theirs.records
        ]
        for index in range(len(theirs)):
            for one, other in zip(mine.raw(index), theirs.raw(index), strict=True):
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    assert torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))
    assert all(map(torch.equal, run["keys"].indices, whole["keys"].indices))
    assert run.prompts == whole.prompts
    for name in ("generated_text", "generations", "usage", "hook_configurations"):
        assert getattr(run.metadata, name) == getattr(whole.metadata, name)
    assert run.status == "complete"
    assert run.verify() == []


def stored_keys(folder: Path) -> list[str]:
    """Of all shards, those of no record too."""
    keys: list[str] = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            keys += shard.keys()
    return keys


def assert_once(folder: Path, whole: nsf.Run) -> None:
    assert whole.path is not None
    assert sorted(stored_keys(folder)) == sorted(stored_keys(whole.path))
    left = [path.name for path in folder.iterdir() if path.name.endswith((".partial", ".journal", ".tmp"))]
    assert left == []


def interrupt(folder: Path, tick: int, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(tick), how],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        timeout=120,
    )
    return done.returncode


@pytest.mark.parametrize("how", ["kill", "raise"])
@pytest.mark.parametrize("seed", range(2))
def test_an_interrupted_run_becomes_the_whole_one(tmp_path: Path, whole: nsf.Run, how: str, seed: int) -> None:
    folder = tmp_path / "run"
    ticks = random.Random(f"{how}{seed}")  # as text: the two kinds are interrupted at other places
    ends = {interrupt(folder, ticks.randrange(2, len(PROMPTS) * (TOKENS + 1)), how) for _ in range(2)}
    assert ends & {-signal.SIGKILL, 1}
    run = capture(folder, resume=True)
    assert_same(run, whole)
    assert_same(nsf.open(folder), whole)
    assert_once(folder, whole)
    manifest = decode_manifest((folder / MANIFEST_FILE).read_bytes())
    stored = sum(len(keys) for keys in manifest.checksums.by_shard().values())
    assert manifest.counters.records == manifest.counters.acknowledged == stored
    assert len(manifest.resumptions) == 2


class Stopped(BaseException):
    """Stands for the end of the process: nothing in the package catches it."""


def test_a_resumption_that_is_stopped_at_any_change_is_done_again(
    tmp_path: Path, whole: nsf.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert interrupt(folder, 2 * (TOKENS + 1) + 3, "kill") == -signal.SIGKILL
    replace, unlink = os.replace, Path.unlink
    left = 0

    def one_more() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped

    def stopping_replace(*arguments: Any) -> None:
        one_more()
        replace(*arguments)

    def stopping_unlink(self: Path, missing_ok: bool = False) -> None:
        one_more()
        unlink(self, missing_ok=missing_ok)

    stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping_replace)
        patch.setattr(Path, "unlink", stopping_unlink)
        for allowed in range(60):
            left = allowed
            try:
                capture(folder, resume=True)
            except Stopped:
                stops += 1
            else:
                break
    assert stops > 10
    assert_same(nsf.open(folder), whole)
    assert_once(folder, whole)


def test_a_capture_of_ones_own_goes_on_at_its_first_prompt(
    llama: nn.Module, tokens: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    inputs = [{"input_ids": tokens["input_ids"][:, :length]} for length in (7, 3, 5)]

    def run(out: Path, stop: int | None = None, **options: Any) -> nsf.Run:
        cap = nsf.capture(llama, "model.layers.*:residual", out, **options)
        with cap:
            for number, each in enumerate(inputs[cap.first_prompt :], start=cap.first_prompt):
                if number > cap.first_prompt:
                    cap.next_prompt()
                llama(**each)
                if number == stop:
                    raise ZeroDivisionError
        return cap.result

    expected = run(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", stop=1)
    assert_equal = [[tensor.tolist() for tensor in run(tmp_path / "run", resume=True)[each]] for each in expected]
    assert assert_equal == [[tensor.tolist() for tensor in expected[each]] for each in expected]
    again = run(tmp_path / "run", resume=True)  # there is nothing left to do
    assert [len(again[each]) for each in again] == [3, 3]
    assert again.metadata.usage == expected.metadata.usage
    assert again.status == "complete"
    # Of the last prompt nobody says that it is over but the end of the block.
    assert [entry.ended for entry in again.prompts] == [True, True, True]


def test_without_a_run_to_resume_it_is_begun(tmp_path: Path, whole: nsf.Run) -> None:
    run = capture(tmp_path / "run", resume=True)
    assert_same(run, whole)
    assert run.manifest.resumptions == []


def test_prompts_whose_bytes_did_not_reach_the_disk_are_captured_anew(tmp_path: Path, whole: nsf.Run) -> None:
    folder = tmp_path / "run"
    assert interrupt(folder, 3 * (TOKENS + 1) + 2, "kill") == -signal.SIGKILL
    for shard in folder.glob("*.partial"):  # as a power cut would leave them; their journals say more
        os.truncate(shard, shard.stat().st_size // 2)
    run = capture(folder, resume=True)
    assert run.manifest.resumptions[-1].first_prompt < 3
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": TOKENS + 1}, "max_new_tokens was 6 and is now 7"),
        ({"capture_dtype": "bfloat16"}, "the option dtype was None and is now 'bfloat16'"),
        ({"prompts": PROMPTS[:2]}, "prompts was 4 and is now 2"),
        ({"prompts": [*PROMPTS[:3], "Other"]}, "prompts_sha256 was"),
        ({"hooks": HOOKS[:2]}, "its hooks was 'model.layers.0_residual"),
        ({"hooks": [*HOOKS[:3], {"layer_name": "model.layers.0", "component": "residual", "hook_id": "again", "every": 2}]},  # noqa: E501
         "what its hooks ask for"),
        ({"analysis": "another"}, "the option analysis was None and is now 'another'"),
    ],
)  # fmt: skip
def test_a_run_of_another_kind_is_not_continued(
    tmp_path: Path, whole: nsf.Run, change: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "run"
    assert interrupt(folder, 10, "raise") == 1
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments: dict[str, Any] = {"prompts": PROMPTS, "hooks": HOOKS, "max_new_tokens": TOKENS, **SMALL, **change}
    prompts, hooks = arguments.pop("prompts"), arguments.pop("hooks")
    with pytest.raises(nsf.OptionError, match="cannot be resumed") as error:
        nsf.generate("demo", prompts, hooks, folder, resume=True, **arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert_same(capture(folder, resume=True), whole)


def test_what_cannot_be_resumed(tmp_path: Path, llama: nn.Module) -> None:
    with pytest.raises(nsf.OptionError, match="give out=DIR"):
        nsf.capture(llama, "model.layers.0:residual", resume=True)
    with pytest.raises(nsf.OptionError, match="either resumed or overwritten"):
        nsf.capture(llama, "model.layers.0:residual", tmp_path, resume=True, overwrite=True)
    folder = tmp_path / "run"
    interrupt(folder, 10, "raise")
    with pytest.raises(nsf.OptionError, match="without a seed"):
        capture(folder, resume=True, temperature=1.0)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["capture", "--model", "demo", "--prompt", "A loop is", "--prompt", "Recursion is"]
    arguments += ["--hook", "model.layers.0:residual", "--max-new-tokens", "3", "--out", str(tmp_path / "run")]
    for _ in range(2):
        assert main([*arguments, "--resume"]) == 0
    assert "8 records" in capsys.readouterr().out or len(nsf.open(tmp_path / "run").records) == 6


def test_a_trimmed_shard_keeps_what_stands_before_as_bytes(tmp_path: Path) -> None:
    import safetensors.torch
    from neuroscope_fast.shard_trim import trim_shard

    # A shard as a writer lays it out: its header has room, and fills a multiple of 4096 bytes.
    tensors = {f"h/{step:06d}": torch.full((3,), float(step)) for step in range(4)}
    written = safetensors.torch.save(tensors)
    size = int.from_bytes(written[:8], "little")
    header = b'{"__metadata__":{},' + written[8 : 8 + size].strip()[1:]
    shard = tmp_path / "activations-float32-00000.safetensors"
    shard.write_bytes((4088).to_bytes(8, "little") + header.ljust(4088) + written[8 + size :])
    trim_shard(tmp_path, shard.name, {"h/000001", "h/000002"})
    with safe_open(shard, "pt") as left:
        assert sorted(left.keys()) == ["__lost__/at-0", "h/000001", "h/000002"]
        assert left.get_tensor("h/000001").tolist() == [1.0] * 3
        assert left.get_tensor("h/000002").tolist() == [2.0] * 3
    assert shard.stat().st_size == 4096 + 3 * 12
    unchanged = shard.stat().st_mtime_ns
    trim_shard(tmp_path, shard.name, {"h/000001", "h/000002"})
    assert shard.stat().st_mtime_ns == unchanged
    trim_shard(tmp_path, shard.name, set())
    assert not shard.exists()
