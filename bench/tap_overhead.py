"""What one captured tensor costs on the critical path, against a no-op hook and a cloning hook.

A chain of 72 modules that do nothing passes a small tensor along; each round times the variants one after the other
in a random order, and the figures are medians over rounds and the ratios of those. Run: python bench/tap_overhead.py
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import neuroscope_fast as nsf
import torch
from torch import nn

HOOKS = 72


class Chain(nn.Module):
    """HOOKS modules in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(HOOKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class PlainHooks(AbstractContextManager[None]):
    """A Python forward hook on every layer."""

    def __init__(self, model: Chain, hook: Callable[..., None]):
        self._model, self._hook = model, hook

    def __enter__(self) -> None:
        self._handles = [layer.register_forward_hook(self._hook) for layer in self._model.layers]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def seconds_a_pass(model: Chain, x: torch.Tensor, passes: int) -> float:
    start = time.perf_counter()
    for _ in range(passes):
        model(x)
    return (time.perf_counter() - start) / passes


def measure(width: int, passes: int, rounds: int) -> dict[str, Any]:
    model, x = Chain(), torch.randn(1, 1, width)
    kept: list[torch.Tensor] = []

    def clone(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        kept.append(output.clone())

    def nothing(*_: object) -> None:
        return None

    def capture_to(folder: str | None) -> AbstractContextManager[Any]:
        return nsf.capture(model, "layers.*:mlp", out=folder)

    times: dict[str, list[float]] = {name: [] for name in ("bare", "no-op", "clone", "memory", "disk")}
    for _ in range(rounds):
        kept.clear()
        with tempfile.TemporaryDirectory() as folder:
            variants: list[tuple[str, Callable[[], AbstractContextManager[Any]]]] = [
                ("bare", nullcontext),
                ("no-op", lambda: PlainHooks(model, nothing)),
                ("clone", lambda: PlainHooks(model, clone)),
                ("memory", lambda: capture_to(None)),
                ("disk", lambda folder=folder: capture_to(f"{folder}/run")),
            ]
            random.shuffle(variants)
            for name, make in variants:
                with make():
                    seconds_a_pass(model, x, 3)
                    times[name].append(seconds_a_pass(model, x, passes))
    medians = {name: statistics.median(values) for name, values in times.items()}
    cost = {name: (value - medians["bare"]) / HOOKS * 1e6 for name, value in medians.items() if name != "bare"}
    return {
        "width": width,
        "microseconds_a_tensor": {name: round(value, 3) for name, value in cost.items()},
        "disk_to_no_op": round(cost["disk"] / cost["no-op"], 2),
        "disk_to_clone": round(cost["disk"] / cost["clone"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for width in (64, 1024):
            print(json.dumps(measure(width, options.passes, options.rounds)))


if __name__ == "__main__":
    main()
