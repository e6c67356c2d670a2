"""neuroscope-fast: asynchronous activation capture for PyTorch and Hugging Face transformers.

Importing this package imports neither torch nor the native engine: both are loaded when a capture is made.
"""

from __future__ import annotations

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
    "capture",
    "demo",
    "generate",
    "json_schema",
    "open",
    "parse_hooks",
    "recover",
    "render",
]
