"""Files of captured steps as one writes them by hand with safetensors or torch, made durable and read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Steps = list[list[torch.Tensor]]
"""What was captured: for each step its tensors, in the order of the hooked modules."""


def in_steps(flat: Sequence[torch.Tensor], hooks: int) -> Steps:
    return [list(flat[start : start + hooks]) for start in range(0, len(flat), hooks)]


def named(steps: Steps, first: int = 0) -> dict[str, torch.Tensor]:
    """The keys of a file; contiguous, which safetensors asks for."""
    return {
        f"{number:06d}/{hook:03d}": tensor.contiguous()
        for number, step in enumerate(steps, first)
        for hook, tensor in enumerate(step)
    }


def make_durable(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_back(folder: Path) -> Steps:
    """The steps in every file of a folder that `named` gave the keys of."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.iterdir()):
        found |= load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    steps: dict[str, list[torch.Tensor]] = {}
    for key in sorted(found):
        steps.setdefault(key.partition("/")[0], []).append(found[key])
    return list(steps.values())


def save_run(folder: Path, steps: Steps, save: Any = save_file, name: str = "activations.safetensors") -> None:
    folder.mkdir()
    save(named(steps), folder / name)
    make_durable(folder / name)
    make_durable(folder)
