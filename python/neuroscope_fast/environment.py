"""What a capture runs in: versions, the model's own facts, and how this torch rounds float8."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from typing import TYPE_CHECKING

from .manifest import ModelInfo

if TYPE_CHECKING:
    from torch import nn

_PACKAGES = ("torch", "transformers", "triton", "safetensors", "msgspec", "numpy")


def package_version(name: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions that a run's numbers depend on."""
    return dict(_versions())


@functools.cache  # reading the packages' files takes longer than the rest of a capture's start
def _versions() -> dict[str, str | None]:
    found = {name: package_version(name) for name in _PACKAGES}
    return {
        "neuroscope_fast": package_version("neuroscope-fast"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **found,
    }


def model_info(model: nn.Module) -> ModelInfo:
    """What the manifest says of a model. Reads its configuration and its first parameter, not its weights."""
    config = getattr(model, "config", None)
    parameter = next(model.parameters(), None)
    return ModelInfo(
        class_name=type(model).__name__,
        model_type=_text(getattr(config, "model_type", None)),
        name_or_path=_text(getattr(config, "_name_or_path", None)),
        revision=_text(getattr(config, "_commit_hash", None)),
        dtype=None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        device=None if parameter is None else str(parameter.device),
    )


def _text(value: object) -> str | None:
    return str(value) if value else None


@functools.cache
def float8_rules() -> tuple[bool, bool]:
    """Whether this torch's casts to float8_e4m3fn and float8_e5m2 saturate (else: NaN, and infinity).

    torch changed its mind between versions; a capture's cast agrees with the torch that it runs beside.
    """
    import torch

    beyond = torch.tensor([1e6])
    return tuple(  # type: ignore[return-value]
        bool(torch.isfinite(beyond.to(dtype).float()).all()) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    )
