"""The options `durability` and `on_error`, `Capture.sync`, and disks that are really full."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import pytest
import torch
from neuroscope_fast.durability import Durability, parse_durability, size_in_bytes
from tiny_models import llama as tiny_llama
from torch import nn

SMALL: dict[str, Any] = {"ring_bytes": 1 << 16, "block_bytes": 4096}
HOOKS = "layers.*:residual"


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mix(x))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Stack().eval().requires_grad_(False)


def hook_count(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("_compiled_call_impl" in vars(module))
        for module in model.modules()
    )


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("close", Durability(at_close=True)),
        ("shard", Durability()),
        ("64MiB", Durability(bytes=64 << 20)),
        ("1.5 kb", Durability(bytes=1500)),
        ("5s", Durability(seconds=5.0)),
        ("0.25s", Durability(seconds=0.25)),
    ],
)
def test_durability_is_read(text: str, meaning: Durability) -> None:
    assert parse_durability(text) == meaning


@pytest.mark.parametrize(
    "text",
    ["", "never", "64", "0MiB", "0s", "-1s", "1e3s", "5 minutes", "1" * 30 + "TiB", "99999999999s", "MiB", "5s,1MiB"],
)
def test_a_durability_that_there_is_not_is_refused_before_the_model_runs(text: str, model: nn.Module) -> None:
    with pytest.raises(nsf.OptionError, match=r"there is no durability .* such as '64MiB' or seconds such as '5s'"):
        nsf.capture(model, HOOKS, durability=text)


def test_sizes() -> None:
    assert [size_in_bytes(text) for text in ("1", "2k", "3 MB", "0.5KiB", "x", "")] == [
        1,
        2048,
        3_000_000,
        512,
        None,
        None,
    ]


@pytest.mark.parametrize("durability", ["close", "shard", "10KiB", "0.01s"])
def test_runs_are_the_same_whatever_the_durability(durability: str, model: nn.Module, tmp_path: Path) -> None:
    with nsf.capture(model, HOOKS, out=tmp_path / "run", durability=durability, shard_bytes=20_000, **SMALL) as capture:
        expected = [model(torch.full((1, 1 + i % 5, 32), i / 50)) for i in range(50)]
    run = capture.result
    assert run.status == "complete"
    assert run.verify() == []
    assert all(torch.equal(a, b) for a, b in zip(run["layers.2_residual"], expected, strict=True))
    assert run.manifest.options["durability"] == durability
    assert run.stats.acknowledged == run.stats.records == 150
    assert run.manifest.recovery is None


def test_sync_returns_when_everything_is_acknowledged(model: nn.Module, tmp_path: Path) -> None:
    with nsf.capture(model, HOOKS, out=tmp_path / "run", durability="close", **SMALL) as capture:
        for count in range(1, 5):
            model(torch.ones(1, 2, 32))
            capture.sync()
            assert capture.stats.acknowledged == 3 * count
    with nsf.capture(model, HOOKS) as capture:
        model(torch.ones(1, 2, 32))
        capture.sync()  # there is nothing to make durable
        assert capture.stats.acknowledged == 0
    with pytest.raises(nsf.CaptureError):
        nsf.capture(model, HOOKS, out=tmp_path / "other").sync()


def test_seconds_pass_while_the_model_rests(model: nn.Module, tmp_path: Path) -> None:
    with nsf.capture(model, HOOKS, out=tmp_path / "run", durability="0.01s", **SMALL) as capture:
        model(torch.ones(1, 2, 32))
        limit = time.monotonic() + 60
        while capture.stats.acknowledged < 3 and time.monotonic() < limit:
            time.sleep(0.005)
        assert capture.stats.acknowledged == 3


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def test_the_threads_end_with_the_block(model: nn.Module, tmp_path: Path) -> None:
    with nsf.capture(model, HOOKS, out=tmp_path / "first", **SMALL):
        model(torch.ones(1, 2, 32))
    before = thread_count()
    with nsf.capture(model, HOOKS, out=tmp_path / "run", durability="0.01s", **SMALL) as capture:
        model(torch.ones(1, 2, 32))
        capture.sync()  # what the beginning had to make durable is, and the thread that did it is gone
        assert thread_count() == before + 3
    assert thread_count() == before
    assert capture.result.status == "complete"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(line, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(model: nn.Module, steps: int = 400) -> list[torch.Tensor]:
    return [model(torch.full((1, 16, 32), i / steps)) for i in range(steps)]


def test_a_full_disk_is_one_exception_that_names_file_and_errno(model: nn.Module, full_disk: Path) -> None:
    out = full_disk / "run"
    with (
        pytest.raises(
            nsf.CaptureError, match=r"activations-float32-\d+\.safetensors.*No space left on device \(errno 28\)"
        ),
        nsf.capture(model, HOOKS, out=out, durability="50KiB", shard_bytes=200_000, **SMALL) as capture,
    ):
        fill(model)
    assert hook_count(model) == 0
    run = capture.result
    assert run.status == "failed"
    check_prefix(model, run)
    assert len(run.records) >= run.stats.acknowledged > 0


def check_prefix(model: nn.Module, run: nsf.Run) -> None:
    """What is there is what the model computed, from its first step on."""
    assert run.verify() == []
    steps = [record.step for record in run["layers.2_residual"].records]
    assert steps == list(range(len(steps)))
    assert len(steps) > 10
    for step, stored in enumerate(run["layers.2_residual"]):
        assert torch.equal(stored, model(torch.full((1, 16, 32), step / 400)))


def test_detached_from_a_full_disk_the_model_goes_on(model: nn.Module, full_disk: Path) -> None:
    expected = fill(model)
    with (
        pytest.warns(nsf.CaptureWarning) as caught,
        nsf.capture(model, HOOKS, out=full_disk / "run", on_error="detach", durability="50KiB", **SMALL) as capture,
    ):
        outputs = fill(model)
    said = [str(each.message) for each in caught if "model goes on without it" in str(each.message)]
    assert len(said) == 1
    assert "No space left on device (errno 28)" in said[0]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert hook_count(model) == 0
    run = capture.result
    assert run.status == "failed"
    assert "No space left" in (run.manifest.cause or "")
    assert len(run.records) >= run.stats.acknowledged > 0


def test_a_capture_that_fails_only_at_its_end_warns_too(model: nn.Module, full_disk: Path) -> None:
    (full_disk / "ballast").write_bytes(b"x" * (820 << 10))
    capture = nsf.capture(model, HOOKS, out=full_disk / "run", on_error="detach", ring_bytes=16 << 20)
    with pytest.warns(nsf.CaptureWarning, match="the capture is not whole: .*No space left"), capture:
        fill(model, 50)  # all of it is in the ring until the block ends
    assert capture.result.status == "failed"


@pytest.mark.parametrize("hook", ["model.layers.0:residual", "model.layers.0.self_attn:query"])
def test_detach_is_for_every_kind_of_tap(hook: str, full_disk: Path) -> None:
    llama = tiny_llama()
    tokens = torch.arange(60).reshape(1, 60) % 50

    def run() -> torch.Tensor:
        with torch.no_grad():
            return [llama(tokens).logits for _ in range(600)][-1]

    expected = run()
    capture = nsf.capture(llama, hook, out=full_disk / "run", on_error="detach", durability="50KiB", **SMALL)
    with pytest.warns(nsf.CaptureWarning, match="model goes on without it.*No space left"), capture:
        logits = run()
    assert torch.equal(logits, expected)


class Changes(nn.Module):
    """Gives something that cannot be captured from its third call on."""

    calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        return x * 2 if self.calls < 3 else "nothing"


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Changes()

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


def test_detach_where_a_module_gives_nothing_that_can_be_stored() -> None:
    model = Root()
    with (
        pytest.warns(
            nsf.CaptureWarning, match=r"goes on without it: .*no tensor in the module's output, which is a str"
        ),
        nsf.capture(model, "body:mlp:x", on_error="detach") as capture,
    ):
        outputs = [model(torch.ones(1, 2, 4)) for _ in range(5)]
    assert outputs[2:] == ["nothing"] * 3
    assert capture.result.status == "failed"
    assert len(capture.result["x"]) == 2


class Frozen:
    """A file system of its own that can be made to take nothing: a write to it waits until it is thawed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(self.folder)], check=True)

    def thaw(self) -> None:
        subprocess.run(["fsfreeze", "--unfreeze", str(self.folder)], check=True)


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[Frozen]:
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)
    lines = [["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(place)]]
    if os.geteuid() != 0 or shutil.which("fsfreeze") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("no file system can be frozen here")
    if any(subprocess.run(line, capture_output=True, check=False).returncode != 0 for line in lines):
        pytest.skip("no file system can be mounted here")
    frozen = Frozen(place)
    yield frozen
    subprocess.run(["fsfreeze", "--unfreeze", str(place)], capture_output=True, check=False)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("on_error", ["raise", "detach"])
def test_a_disk_that_does_not_answer_is_given_up(
    model: nn.Module, freezable: Frozen, tmp_path: Path, on_error: str
) -> None:
    expected = fill(model)
    out = freezable.folder / "run"
    capture = nsf.capture(
        model, HOOKS, out=out, durability="50KiB", shard_bytes=200_000, patience=0.5, on_error=on_error, **SMALL
    )
    said = f"nothing could be written for 0.5 s: the disk or the network under {out} does not answer"

    def run() -> list[torch.Tensor]:
        with capture:
            model(torch.ones(1, 16, 32))
            capture.sync()
            freezable.freeze()
            return fill(model)

    begun = time.monotonic()
    try:
        if on_error == "raise":
            with pytest.raises(nsf.CaptureError, match=said):
                run()
        else:
            with pytest.warns(nsf.CaptureWarning, match=said):
                assert all(map(torch.equal, run(), expected))
        assert time.monotonic() - begun < 30
        assert hook_count(model) == 0
        with pytest.raises(nsf.CaptureError, match=f"the capture has no result: {said}"):
            _ = capture.result
        assert all(map(torch.equal, fill(model), expected))  # the model goes on
    finally:
        freezable.thaw()
    # The writer, which the process still has, comes to its end.
    deadline = time.monotonic() + 30
    while list(out.glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(nsf.RunError, match="another process is writing"):
        nsf.recover(out)
    run_again = nsf.recover(
        shutil.copytree(out, tmp_path / "copy")
    )  # as another process could, once this one has ended
    assert len(run_again.records) >= 3
    assert run_again.verify() == []


def test_where_the_memory_for_a_pattern_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch raises in a tap is no error of the model's."""
    from neuroscope_fast import attention_taps

    compute, calls = attention_taps.attention_pattern, 0

    def full(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        return compute(*arguments, **options)

    llama = tiny_llama()
    tokens = torch.arange(6).reshape(1, 6)
    with torch.no_grad():
        expected = llama(tokens).logits
        monkeypatch.setattr(attention_taps, "attention_pattern", full)
        hook = "model.layers.0.self_attn:attention_pattern:x"
        said = "self_attn.*: CUDA out of memory. Tried to allocate"
        with pytest.warns(nsf.CaptureWarning, match=said), nsf.capture(llama, hook, on_error="detach") as capture:
            logits = [llama(tokens).logits for _ in range(4)]
        assert all(torch.equal(each, expected) for each in logits)
        assert len(capture.result["x"]) == 2
        with nsf.capture(llama, hook), pytest.raises(nsf.CaptureError, match=said):
            llama(tokens)


def test_raise_is_the_default() -> None:
    model = Root()
    with nsf.capture(model, "body:mlp:x"):
        model(torch.ones(1, 2, 4))
        model(torch.ones(1, 2, 4))
        with pytest.raises(nsf.CaptureError, match="no tensor in the module's output"):
            model(torch.ones(1, 2, 4))


def test_where_warnings_are_errors_detaching_raises_once() -> None:
    model = Root()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with nsf.capture(model, "body:mlp:x", on_error="detach"):
            model(torch.ones(1, 2, 4))
            model(torch.ones(1, 2, 4))
            with pytest.raises(nsf.CaptureWarning):
                model(torch.ones(1, 2, 4))
            assert model(torch.ones(1, 2, 4)) == "nothing"
    assert hook_count(model) == 0


def test_files_have_the_users_umask(model: nn.Module, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with nsf.capture(model, HOOKS, out=tmp_path / "run", durability="1KiB") as capture:
            model(torch.ones(1, 2, 32))
            capture.sync()
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    finally:
        os.umask(before)
    modes |= {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert set(modes.values()) == {0o640}, modes
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o750


def test_each_capture_says_that_it_detaches() -> None:
    """Whatever a filter has seen before at the same line of torch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            model = Root()
            with nsf.capture(model, "body:mlp:x", on_error="detach"):
                for _ in range(4):
                    model(torch.ones(1, 2, 4))
    assert len([each for each in caught if "goes on without it" in str(each.message)]) == 2


@pytest.mark.parametrize("overflow", ["drop", "fail", "block"])
@pytest.mark.parametrize("durability", ["64KiB", "1KiB"])
def test_durability_fills_no_ring_with_empty_blocks(durability: str, overflow: str, tmp_path: Path) -> None:
    model = Stack().eval().requires_grad_(False)
    with nsf.capture(model, HOOKS, out=tmp_path / "run", durability=durability, overflow=overflow) as capture:
        for _ in range(300):
            model(torch.ones(1, 4, 32))
    assert capture.result.stats.drops == 0
    assert capture.result.stats.stalls == 0
    assert capture.result.stats.records == 900


def test_more_axes_than_a_run_can_hold_are_refused_before_anything_is_stored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Identity())
    place = {"layer_name": "0", "component": "mlp"}
    with nsf.capture(model, [place], out=tmp_path / "run") as capture:
        model(torch.ones((1,) * 64))
        with pytest.raises(nsf.CaptureError, match="it has 65 axes; a run holds tensors of up to 64"):
            model(torch.ones((1,) * 65))
    assert [len(record.shape) for record in capture.result.records] == [64]
    assert capture.result.verify() == []


def test_a_forked_child_is_told_and_does_not_wait(model: nn.Module, tmp_path: Path) -> None:
    with nsf.capture(model, HOOKS, out=tmp_path / "run", durability="0.001s", **SMALL) as capture:
        for _ in range(20):
            model(torch.ones(1, 2, 32))
            child = os.fork()
            if child == 0:
                try:
                    capture.stats  # noqa: B018
                except nsf.CaptureError:
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert capture.result.stats.records == 60
