"""neuroscope-fast: asynchronous activation capture for PyTorch and Hugging Face transformers.

Importing this package imports neither torch nor the native engine: both are loaded when a capture is made.
"""

from __future__ import annotations

from . import demo
from .capture import Capture, CaptureOptions, capture
from .errors import CaptureError, CaptureWarning, HookError, ModelError, NeuroscopeError, RunError
from .reader import Run, RunIncompleteWarning
from .reader import open_run as open
from .records import json_schema
from .report import render
from .spec import HookSpec, parse_hooks

__all__ = [
    "Capture",
    "CaptureError",
    "CaptureOptions",
    "CaptureWarning",
    "HookError",
    "HookSpec",
    "ModelError",
    "NeuroscopeError",
    "Run",
    "RunError",
    "RunIncompleteWarning",
    "capture",
    "demo",
    "json_schema",
    "open",
    "parse_hooks",
    "render",
]
