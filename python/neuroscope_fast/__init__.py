"""neuroscope-fast: asynchronous activation capture for PyTorch and Hugging Face transformers.

Importing this package imports neither torch nor the native engine: both are loaded when a capture is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import demo
from .capture import Capture, capture
from .errors import CaptureError, CaptureWarning, HookError, ModelError, NeuroscopeError, OptionError, RunError
from .generate import GenerationProgress, generate
from .options import CaptureOptions
from .reader import Run, RunIncompleteWarning
from .reader import open_run as open
from .records import json_schema
from .repair import recover_run as recover
from .report import render
from .spec import HookSpec, parse_hooks

if TYPE_CHECKING:
    from . import analysis, plots, view

__all__ = [
    "Capture",
    "CaptureError",
    "CaptureOptions",
    "CaptureWarning",
    "GenerationProgress",
    "HookError",
    "HookSpec",
    "ModelError",
    "NeuroscopeError",
    "OptionError",
    "Run",
    "RunError",
    "RunIncompleteWarning",
    "__version__",
    "analysis",
    "capture",
    "demo",
    "generate",
    "json_schema",
    "open",
    "parse_hooks",
    "plots",
    "recover",
    "render",
    "view",
]


def __getattr__(name: str) -> Any:
    if name in ("analysis", "plots", "view"):  # imported when they are first used: they need NumPy, torch, matplotlib
        import importlib

        return importlib.import_module(f".{name}", __name__)
    if name == "__version__":
        from .environment import package_version

        return package_version("neuroscope-fast")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
