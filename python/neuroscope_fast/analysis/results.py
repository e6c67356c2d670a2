"""Results as JSON."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np


def encode(result: msgspec.Struct) -> bytes:
    """A result as JSON, indented by two: arrays as nested lists, and null for every number that is none."""
    built = msgspec.to_builtins(result, enc_hook=_builtin, str_keys=True)
    return msgspec.json.format(msgspec.json.encode(_finite(built)), indent=2) + b"\n"


def _builtin(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"a {type(value).__name__} has no form in JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
