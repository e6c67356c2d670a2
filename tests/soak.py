"""Captures of random kinds and sizes that fail in random ways, one after the other in one process.

    python tests/soak.py --seconds 1200 --seed 0

What the process holds in the end (resident memory, descriptors, threads, hooks) is compared with what it held after the
first captures; every run that was left is opened, verified and compared with the model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import pickle
import random
import resource
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuroscope_fast as nsf
import torch
from crash_harness import HOOKS, LAYERS, Stack, compare, given
from torch import nn

WARM_UP = 40  # captures, until every kind of them has been seen and what is cached for ever is there
MIB = 1 << 20


class Broken(Exception):
    """What the user's own code raises in a block."""


def held() -> dict[str, int]:
    """Of this process: pages are MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * resource.getpagesize() // MIB,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def hook_count(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("_compiled_call_impl" in vars(module))
        for module in model.modules()
    )


def run_model(model: nn.Module, steps: int) -> None:
    for step in range(steps):
        model(given(step))


def raises(model: nn.Module, steps: int) -> None:
    run_model(model, steps)
    raise Broken


def interrupted(model: nn.Module, steps: int) -> None:
    run_model(model, steps)
    raise KeyboardInterrupt


def in_two_threads(model: nn.Module, steps: int) -> None:
    threads = [threading.Thread(target=run_model, args=(model, steps)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def with_copies(model: nn.Module, steps: int) -> None:
    run_model(copy.deepcopy(model), 2)  # a copy is not the model that is captured
    run_model(model, steps)


def forked(model: nn.Module, steps: int) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    run_model(model, steps)


def on_a_full_disk(model: nn.Module, steps: int) -> None:
    """A limit on the size of files stands in for the disk's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, before[1]))
    try:
        run_model(model, steps * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WAYS: list[Callable[[nn.Module, int], None]] = [
    run_model,
    raises,
    interrupted,
    in_two_threads,
    with_copies,
    forked,
    on_a_full_disk,
]


def one(model: nn.Module, folder: Path, chance: random.Random) -> str:
    """One capture, and what is found of it."""
    way = chance.choice(WAYS)
    dtype = chance.choice([None, "bfloat16", "int8"])
    block = chance.choice([4096, 65536])
    options: dict[str, Any] = {
        "dtype": dtype,
        "block_bytes": block,
        "ring_bytes": block * chance.choice([1, 3, 40]),
        "shard_bytes": chance.choice([5000, 1 << 20]),
        "overflow": chance.choice(["block", "block", "drop", "fail"]),
        "durability": chance.choice(["close", "shard", "20KiB", "0.002s"]),
        "on_error": chance.choice(["raise", "detach"]),
    }
    out = folder if chance.random() < 0.8 else None
    capture = nsf.capture(model, HOOKS, out=out, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nsf.CaptureWarning)
        try:
            with torch.inference_mode(), capture:
                way(model, chance.randrange(1, 30))
        except (Broken, KeyboardInterrupt, nsf.CaptureError):
            pass
    assert hook_count(model) == 0, "a hook has stayed"
    check(model, capture.result, dtype, ordered=way is not in_two_threads)
    if out is not None and chance.random() < 0.2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nsf.RunIncompleteWarning)
            check(model, nsf.recover(out), dtype, ordered=way is not in_two_threads)
    shutil.rmtree(folder, ignore_errors=True)
    return way.__name__


def check(model: nn.Module, run: nsf.Run, dtype: str | None, *, ordered: bool) -> None:
    """Nothing is there twice, and what is there is right. Of two threads nobody knows who had which step."""
    assert run.verify() == []
    for layer in range(LAYERS):
        hook_id = f"layers.{layer}_residual"
        steps = [record.step for record in run[hook_id].records]
        assert len(steps) == len(set(steps)), (hook_id, steps)
        assert not ordered or steps == sorted(steps), (hook_id, steps)
        for index, step in enumerate(steps if ordered else []):
            x = given(step)
            with torch.inference_mode():
                for each in list(model.layers)[: layer + 1]:  # type: ignore[arg-type]
                    x = each(x)
            compare(run, hook_id, index, x, dtype)


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """What was done, and what the process held before and after."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Stack().eval().requires_grad_(False)
    weights = pickle.dumps(model.state_dict())
    chance = random.Random(seed)
    place = Path(tempfile.mkdtemp(prefix="nsf-soak-"))
    done: dict[str, int] = {}
    begin: dict[str, int] = {}
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or sum(done.values()) < 2 * WARM_UP:
            if sum(done.values()) == WARM_UP:
                begin = held()
            way = one(model, place / "run", chance)
            done[way] = done.get(way, 0) + 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert pickle.dumps(model.state_dict()) == weights
    return {"captures": done, "begin": begin, "end": held()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = soak(options.seconds, options.seed)
    print(json.dumps(found))
    begin, end = found["begin"], found["end"]
    assert end["descriptors"] <= begin["descriptors"], "descriptors have stayed open"
    assert end["threads"] <= begin["threads"], "threads have stayed"
    assert end["resident"] <= begin["resident"] + 24, "memory has stayed"


if __name__ == "__main__":
    main()
