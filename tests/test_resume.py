"""A run that was interrupted is continued, and holds the same bytes as one that never was."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast import attention_taps, running_capture
from neuroscope_fast.cli import main
from neuroscope_fast.manifest import MANIFEST_FILE, decode_manifest, encode_manifest
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


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its second prompt, and closed."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    assert interrupt(folder, 10, "raise") == 1
    return folder


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
    tmp_path: Path, unfinished: Path, change: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unfinished, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments: dict[str, Any] = {"prompts": PROMPTS, "hooks": HOOKS, "max_new_tokens": TOKENS, **SMALL, **change}
    prompts, hooks = arguments.pop("prompts"), arguments.pop("hooks")
    with pytest.raises(nsf.OptionError, match="cannot be resumed") as error:
        nsf.generate("demo", prompts, hooks, folder, resume=True, **arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_resumed(tmp_path: Path, unfinished: Path, llama: nn.Module) -> None:
    with pytest.raises(nsf.OptionError, match="give out=DIR"):
        nsf.capture(llama, "model.layers.0:residual", resume=True)
    with pytest.raises(nsf.OptionError, match="either resumed or overwritten"):
        nsf.capture(llama, "model.layers.0:residual", tmp_path, resume=True, overwrite=True)
    with pytest.raises(nsf.OptionError, match="without a seed"):
        capture(unfinished, resume=True, temperature=1.0)


class Stack(nn.Module):
    """Two layers, captured in no time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


STACK_HOOKS: list[Any] = [{"layer_name": f"layers.{number}", "component": "residual"} for number in range(2)]


def run_stack(
    out: Path,
    prompts: int = 4,
    *,
    kill: tuple[int, int] | None = None,
    stop: tuple[int, int] | None = None,
    **options: Any,
) -> nsf.Run:
    """Three passes for each prompt; killed, or stopped, after one."""
    model = Stack().eval()
    cap = nsf.capture(model, STACK_HOOKS, out, **options)
    with cap:
        for number in range(cap.first_prompt, prompts):
            if number > cap.first_prompt:
                cap.next_prompt()
            for step in range(3):
                model(torch.full((1, 4, 16), 10.0 * number + step))
                if (number, step) == kill:
                    cap.sync()
                    os.kill(os.getpid(), signal.SIGKILL)
                if (number, step) == stop:
                    raise ZeroDivisionError
    return cap.result


def kill_stack(out: Path, kill: tuple[int, int], **options: Any) -> None:
    code = f"import test_resume, pathlib; test_resume.run_stack(pathlib.Path({str(out)!r}), kill={kill}, **{options})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(run: nsf.Run) -> dict[str, list[Any]]:
    return {each: [tensor.tolist() for tensor in run[each]] for each in run}


SYNCED = {"durability": "4KiB"}


@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (((0, 1), (0, 2)), {"dtype": "bfloat16"}),
        (((0, 1), (3, 1)), {"shard_bytes": 1024}),
        (((2, 1), (3, 1)), {"dtype": "int8"}),
    ],
)
def test_killed_twice(tmp_path: Path, kills: Any, options: dict[str, Any]) -> None:
    whole = run_stack(tmp_path / "whole", **options)
    folder = tmp_path / "run"
    kill_stack(folder, kills[0], **SYNCED, **options)
    kill_stack(folder, kills[1], **SYNCED, **options, resume=True)
    recovered = nsf.recover(folder)
    counters = recovered.manifest.counters
    stored = sum(len(keys) for keys in recovered.manifest.checksums.by_shard().values())
    assert counters.records == counters.acknowledged == stored
    assert len(recovered.records) == 2 * (3 * kills[1][0] + kills[1][1] + 1)
    assert not list(folder.glob("*.partial"))
    run = run_stack(folder, resume=True, **options)
    assert tensors(run) == tensors(whole)
    assert run.verify() == []
    assert run.manifest.recovery is not None
    assert run.manifest.recovery.lost == []


def test_a_shard_that_recovery_could_not_read_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_stack(folder, (3, 1), **SYNCED, shard_bytes=1024)
    (partial,) = folder.glob("*.partial")
    left = partial.read_bytes()
    Path(f"{str(partial).removesuffix('.partial')}.journal").write_bytes(b"garbage" * 10)
    run = run_stack(folder, resume=True, shard_bytes=1024)
    assert tensors(run) == tensors(run_stack(tmp_path / "whole"))
    assert partial.read_bytes() == left


@pytest.mark.parametrize("stop", [None, (2, 1)])
@pytest.mark.parametrize("wrong", [{"block_bytes": 100}, {"store_readout": True}])
def test_a_resumption_that_does_not_begin_changes_nothing(tmp_path: Path, stop: Any, wrong: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError) if stop else contextlib.nullcontext():
        run_stack(folder, stop=stop)
    before = contents(folder)
    with pytest.raises((nsf.OptionError, nsf.ModelError)):
        run_stack(folder, resume=True, **wrong)
    assert contents(folder) == before


def test_a_complete_run_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = tensors(run_stack(folder))
    prompts = (folder / "prompts.jsonl").read_bytes()
    (folder / "prompts.jsonl").write_bytes(prompts.replace(b'"records":6', b'"records":7'))  # as threads would count
    assert tensors(run_stack(folder, resume=True)) == whole
    (folder / "prompts.jsonl").unlink()  # as an earlier version left it
    before = contents(folder)
    with pytest.raises(nsf.OptionError, match="does not tell of all of it"):
        run_stack(folder, resume=True)
    assert contents(folder) == before


def test_a_manifest_without_checksums_takes_nothing_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run_stack(folder, stop=(2, 1))
    manifest = decode_manifest((folder / MANIFEST_FILE).read_bytes())
    checksums = manifest.checksums.by_shard()
    for keys in checksums.values():
        del keys["layers.0_residual/000000"]
        keys["layers.0_residual/000009"] = 0
    manifest.checksums = manifest.checksums.of(checksums)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    before = contents(folder)
    with pytest.raises(nsf.RunError, match="has no checksum for layers"):
        run_stack(folder, resume=True)
    assert contents(folder) == before


def test_what_a_detached_capture_did_not_see_is_captured(llama: nn.Module, tmp_path: Path) -> None:
    hooks = ["model.layers.0.self_attn:attention_scores", "model.layers.0:residual"]

    def run(**options: Any) -> nsf.Run:
        cap = nsf.capture(llama, hooks, tmp_path / "run", on_error="detach", **options)
        with cap:
            for number in range(cap.first_prompt, 4):
                if number > cap.first_prompt:
                    cap.next_prompt()
                for _ in range(2):
                    llama(torch.arange(5 + number)[None])
        return cap.result

    calls = 0

    def fails_once(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of memory")
        return attention_scores(*arguments, **named)

    attention_scores = attention_taps.attention_scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_taps, "attention_scores", fails_once)
        with pytest.warns(nsf.CaptureWarning, match="out of memory"):
            failed = run()
    assert failed.status == "failed"
    again = run(resume=True)
    assert again.manifest.resumptions[0].first_prompt == 1
    assert [len(again[each]) for each in again] == [8, 8]


def test_a_run_that_another_process_left_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    kill_stack(folder, (2, 1), **SYNCED)
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(running_capture, "recover_run", lambda _: None)  # it was recovered before
        with pytest.raises(nsf.RunError, match="resume it again"):
            run_stack(folder, resume=True)
    assert contents(folder) == before
    assert run_stack(folder, resume=True).manifest.resumptions[0].first_prompt == 2


def test_drops_of_before_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run_stack(folder, stop=(2, 1), overflow="drop")
    path = folder / "prompts.jsonl"  # as a capture that was killed: what found no room is in no manifest
    path.write_bytes(path.read_bytes().replace(b'"records":6', b'"records":6,"drops":5', 1))
    run = run_stack(folder, resume=True, overflow="drop")
    assert run.manifest.counters.drops == 5
    assert "records dropped because the ring was full: 5" in run.manifest.warnings


def test_killed_as_the_readout_is_written(tmp_path: Path) -> None:
    code = f"""
import os
import neuroscope_fast as nsf
from neuroscope_fast.models import load_model
from neuroscope_fast.run_directory import RunDirectory
write = RunDirectory.write
def dying(self, files):
    write(self, files)
    if "readout.safetensors" in files:
        os.kill(os.getpid(), 9)
RunDirectory.write = dying
hooks, out = "model.layers.0:residual", {str(tmp_path / "run")!r}
nsf.generate("demo", "A loop is", hooks, out, max_new_tokens=2, store_readout=True)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    run = nsf.generate(
        "demo", "A loop is", "model.layers.0:residual", tmp_path / "run", max_new_tokens=2, store_readout=True,
        resume=True,
    )  # fmt: skip
    assert run.verify() == []


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
