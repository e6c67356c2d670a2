"""Norms of a readout, applied to rows of the residual stream in float64, and their scales, to be frozen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..readout import Norm

Array = np.ndarray[Any, Any]


def apply_norm(norm: Norm, values: Array) -> Array:
    """The norm of `values` [T, D], computed in float64."""
    rows, scale = frozen(norm, values)
    with np.errstate(invalid="ignore"):  # what is not finite has no norm
        result: Array = rows * scale[:, None] * weight_of(norm, rows.shape[1])
    bias = bias_of(norm)
    return result if bias is None else result + bias


def frozen(norm: Norm, values: Array) -> tuple[Array, Array]:
    """The rows as the norm scales them (centred, if it does that) and its scale for each, float64 [T, D] and [T]."""
    rows = values.astype(np.float64)
    if norm.kind == "layer":
        with np.errstate(invalid="ignore"):
            rows = rows - rows.mean(1, keepdims=True)
    scale: Array = 1.0 / np.sqrt(np.square(rows).mean(1) + norm.eps)
    return rows, scale


def weight_of(norm: Norm, size: int) -> Array:
    """[D], float64; ones where it has none."""
    return np.ones(size) if norm.weight is None else as_array(norm.weight)


def bias_of(norm: Norm) -> Array | None:
    """[D], float64."""
    return None if norm.bias is None else as_array(norm.bias)


def as_array(tensor: Any) -> Array:
    """A small weight as float64."""
    array: Array = tensor.detach().cpu().double().numpy()
    return array
