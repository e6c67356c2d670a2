"""The device of the GPU tests, and what becomes of them without one.

NSF_GPU_TESTS_ON=cpu runs those that can be run on the CPU, with tiny sizes: so the tests themselves can be tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from gpu_models import SHAPES, TINY, Shape, build
from torch import nn

ON = os.environ.get("NSF_GPU_TESTS_ON", "cuda")


def missing() -> str | None:
    """Why these tests cannot run here; None where they can."""
    if ON == "cuda" and not torch.cuda.is_available():
        return f"there is no GPU: torch {torch.__version__} finds no CUDA device"
    return None


@pytest.hookimpl(trylast=True)  # after pytest has left out what -m does not choose
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = missing()
    if reason is None:
        return
    chosen = [item for item in items if item.get_closest_marker("gpu") is not None]
    if chosen and len(chosen) == len(items) and config.option.markexpr:
        raise pytest.UsageError(f"-m {config.option.markexpr} chooses nothing but GPU tests, and {reason}")
    for item in chosen:
        item.add_marker(pytest.mark.skip(reason=reason), append=False)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests put their tensors."""
    return torch.device("cuda", 0) if ON == "cuda" else torch.device(ON)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for tests of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("looks at what only a CUDA device has")
    return device


@pytest.fixture(scope="session")
def shape() -> Shape:
    """The sizes of `model`."""
    return SHAPES["llama 1b"] if ON == "cuda" else TINY


@pytest.fixture(scope="session")
def model(shape: Shape, device: torch.device) -> nn.Module:
    """A Llama with random weights in bfloat16."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return build(shape, device)


@pytest.fixture(autouse=True)
def _device_alive(device: torch.device) -> Iterator[None]:
    """The device still answers after each test: an error that comes late is that of the test which caused it."""
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
