"""Shared fixtures: a tiny model with the proof that a test left no hook on it, and what holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it: no test waits for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it: on two busy cores two threads are slower

import architectures
import pytest
import torch
from hypothesis import settings
from torch import nn

# Machines are shared and slow at times: no test may fail for the time that it took.
settings.register_profile("neuroscope", deadline=None)
settings.load_profile("neuroscope")


def hook_state(model: nn.Module) -> dict[str, list[Any]]:
    """Every hook on every module, by its dictionary."""
    names = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_backward_hooks",
    )
    found = {
        f"{path}.{name}": list(getattr(module, name).items())
        for path, module in model.named_modules()
        for name in names
    }
    calls = {
        f"{path}.call": [type(vars(module).get("_compiled_call_impl")).__name__ == "TappedCall"]
        for path, module in model.named_modules()
    }
    return found | calls


@pytest.fixture
def llama() -> Iterator[nn.Module]:
    """A tiny Llama; fails the test that leaves another set of hooks on it."""
    model = architectures.build("llama")
    before = hook_state(model)
    yield model
    assert hook_state(model) == before


@pytest.fixture
def tokens() -> dict[str, torch.Tensor]:
    """Token ids [2, 7]."""
    return {"input_ids": architectures.inputs("llama", batch=2, length=7)["input_ids"]}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
