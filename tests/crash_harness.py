"""Kills captures at random times and compares what can be recovered with what the model computed.

    python tests/crash_harness.py --trials 200 --seed 0

Each trial forks a process that captures a small model, ends it with SIGKILL, recovers the run in other processes, some
of which are killed too, and checks the promises of docs/reliability.md. The schedule is the seed's; when exactly a kill
arrives is the machine's. The last line is `N trials, M tensors whole, K lost`; a broken promise is a traceback that
names its trial.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import neuroscope_fast as nsf
import torch
from safetensors import safe_open
from torch import nn

HIDDEN, LAYERS, STEPS = 24, 3, 100_000
HOOKS = ["layers.*:residual"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.mix(x))


class Stack(nn.Module):
    """Layers on a residual stream, without anything around them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def given(step: int) -> torch.Tensor:
    """What the model reads in a step: of another length each time, so that records end anywhere in a block."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(1, 1 + step * 7 % 13, HIDDEN, generator=generator)


class Trial(NamedTuple):
    """What a seed makes of one trial."""

    options: dict[str, Any]
    kill_while_entering: bool
    kill_after: float  # seconds, from the entry of the capture or of its block
    kill_recoveries_after: list[float]


def trial_of(seed: int, number: int) -> Trial:
    chance = random.Random(f"{seed}/{number}")
    block = chance.choice([4096, 16384])
    options = {
        "durability": chance.choice(["close", "shard", "20KiB", "100KiB", "0.005s"]),
        "dtype": chance.choice([None, "bfloat16", "int8"]),
        "shard_bytes": chance.choice([3000, 50_000, 1 << 20]),
        "block_bytes": block,
        "ring_bytes": block * chance.choice([2, 5, 16]),
        "direct_io": chance.random() < 0.7,
    }
    after = chance.choice([0.004, 0.02, 0.08]) * chance.random() * 2
    recoveries = [chance.random() * 0.02 for _ in range(chance.choice([0, 0, 1, 3]))]
    return Trial(options, chance.random() < 0.1, after, recoveries)


def in_child(
    action: Callable[[], None], kill_after: float | None = None, once: Callable[[], bool] = lambda: True
) -> int:
    """Runs `action` in a forked process; its exit code, or minus the signal that ended it. The time until it is killed
    begins when `once` is true.
    """
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        limit = time.monotonic() + 60
        while not once() and time.monotonic() < limit:
            time.sleep(0.0005)
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def capture(model: nn.Module, folder: Path, options: dict[str, Any], shared: mmap.mmap) -> None:
    """Until it is killed. `shared` tells how many tensors are acknowledged, and before them whether it has begun."""
    with torch.inference_mode(), nsf.capture(model, HOOKS, out=folder, **options) as capturing:
        shared[:16] = struct.pack("<QQ", 1, 0)
        for step in range(STEPS):
            model(given(step))
            shared[:16] = struct.pack("<QQ", 1, capturing.stats.acknowledged)


def run_trial(model: nn.Module, folder: Path, trial: Trial) -> tuple[int, int]:
    """The number of tensors that are whole in the end, and of those that the journals name and that are lost."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    code = in_child(
        lambda: capture(model, folder, trial.options, shared),
        trial.kill_after,
        lambda: trial.kill_while_entering or shared[0] != 0,
    )
    assert code == -signal.SIGKILL, f"the capture ended by itself with {code}"
    _, acknowledged = struct.unpack("<QQ", shared[:16])
    if not (folder / "capture.json").exists():  # killed before it had begun
        return 0, 0
    for delay in trial.kill_recoveries_after:
        assert in_child(lambda: recover(folder), delay) in (0, -signal.SIGKILL)
    assert in_child(lambda: recover(folder)) == 0
    run = open_quietly(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    recover(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}, "a second recovery changed files"
    whole = check(model, folder, run, trial.options["dtype"])
    assert whole >= acknowledged, f"{acknowledged} tensors were acknowledged, {whole} are there"
    recovery = run.manifest.recovery
    assert recovery is not None
    assert recovery.acknowledged >= acknowledged, "the manifest acknowledges less"
    return whole, len(recovery.lost)


def recover(folder: Path) -> None:
    nsf.recover(folder)


def open_quietly(folder: Path) -> nsf.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nsf.RunIncompleteWarning)
        return nsf.open(folder)


def check(model: nn.Module, folder: Path, run: nsf.Run, dtype: str | None) -> int:
    """The promises, each of them. Gives the number of tensors in the shards."""
    assert run.status == "interrupted", run.status
    assert run.verify() == []
    left = [path.name for path in folder.iterdir() if path.suffix in (".partial", ".journal", ".tmp")]
    assert left == [], left
    tensors = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            tensors += sum(not key.startswith("__lost__") for key in file.keys())  # noqa: SIM118 - it is no dict
    counts = [len(run[f"layers.{layer}_residual"]) for layer in range(LAYERS)]
    # In the order of capture, without a gap, each once: a prefix of what the model computed.
    assert counts == sorted(counts, reverse=True), counts
    assert counts[0] - counts[-1] <= 1, counts
    with torch.inference_mode():
        for layer in range(LAYERS):
            hook_id = f"layers.{layer}_residual"
            assert [record.step for record in run[hook_id].records] == list(range(counts[layer]))
        for step in range(counts[0]):
            x = given(step)
            for layer in range(LAYERS):
                x = model.layers[layer](x)  # type: ignore[index, operator]
                if step < counts[layer]:
                    compare(run, f"layers.{layer}_residual", step, x, dtype)
    return tensors


def compare(run: nsf.Run, hook_id: str, step: int, expected: torch.Tensor, dtype: str | None) -> None:
    stored = run[hook_id][step]
    if dtype == "int8":
        scale = expected.abs().amax(-1, keepdim=True) / 127
        assert bool(((stored.float() - expected).abs() <= scale * 0.51 + 1e-6).all()), f"{hook_id} {step}"
    else:
        assert torch.equal(stored, expected.to(getattr(torch, dtype or "float32"))), f"{hook_id} {step}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads of torch would not be there in a forked process
    torch.manual_seed(0)
    model = Stack().eval()
    place = Path(tempfile.mkdtemp(prefix="nsf-crash-"))
    with torch.inference_mode(), nsf.capture(model, HOOKS):  # imports what a capture imports, once
        model(given(0))
    whole, lost = 0, 0
    try:
        for number in range(options.first, options.first + options.trials):
            trial = trial_of(options.seed, number)
            folder = place / "run"
            try:
                found = run_trial(model, folder, trial)
            except BaseException:
                print(f"trial {number} of seed {options.seed}: {trial}", file=sys.stderr)
                raise
            whole, lost = whole + found[0], lost + found[1]
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{options.trials} trials, {whole} tensors whole, {lost} lost")


if __name__ == "__main__":
    main()
