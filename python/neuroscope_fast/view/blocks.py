"""The numbers of one layer and one sequence as the page takes them.

A block is the length of its header as little-endian uint32, the header in JSON, and the numbers, little-endian:

    dtype    float32, float16 or bfloat16; uint8 for thumbnails
    shape    [H, Q, K]; [H, Q, k] of `top_k`, [H, Q] of reductions over the keys; [2, pictures, rows, columns]
    heads    the numbers of the H heads; empty where they are all in one
    queries  the position of each query
    indices  whether int32 keys of the same shape follow at the next multiple of 8 bytes, -1 where a slot is empty
    keys     how many keys the sequence has, of `top_k`

The header is padded with spaces, so that the numbers begin at a multiple of 8.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

import numpy as np

from ..analysis import sequences
from ..errors import RunError
from ..reader import Run

Array = np.ndarray[Any, Any]

PER_QUERY = ("entropy", "sink", "previous")
"""Reductions that leave one number for each head and query."""

_LARGEST_PICTURE = 24  # pixels on a side of a thumbnail
_NOT_FINITE, _NOTHING = 254, 255


class Weights(NamedTuple):
    """What one hook holds of one sequence. values: float32, shaped as a block; keys: int32, of `top_k` alone."""

    heads: list[int]
    queries: Array
    values: Array
    keys: Array | None
    dtype: str


def load(run: Run, hook_id: str, prompt: int, row: int) -> Weights:
    """The attention that a hook holds of one sequence, prefill and decode joined.

    Raises RunError where it holds none, or its shards are torn.
    """
    first = run[hook_id].outputs.records[0]
    if first.reduction == "top_k":
        listed = sequences.listed(run, hook_id, prompt, row)
        return Weights(listed.heads, listed.queries, listed.weights, listed.keys.astype(np.int32), first.dtype)
    if first.reduction in PER_QUERY:
        joined = sequences.join(run, hook_id, prompt, row)  # [T, H]
        values = np.ascontiguousarray(joined.values.T, np.float32)
        return Weights(sequences.heads_of(first), joined.positions, values, None, first.dtype)
    whole = sequences.pattern(run, hook_id, prompt, row)
    return Weights(whole.heads, whole.queries, whole.weights, None, first.dtype)


def block(weights: Weights, head: int | None = None) -> bytes:
    """All heads as a block, or one of them. Raises RunError for a head that is not stored."""
    heads, values, keys = weights.heads, weights.values, weights.keys
    if head is not None:
        if head not in heads:
            raise RunError(f"there is no head {head}; stored are {', '.join(map(str, heads)) or 'all heads in one'}")
        at = heads.index(head)
        heads, values = [head], values[at : at + 1]
        keys = None if keys is None else keys[at : at + 1]
    dtype, numbers = _narrowest(values, weights.dtype)
    header: dict[str, Any] = {"dtype": dtype, "shape": list(values.shape), "heads": heads}
    header["queries"] = weights.queries.tolist()
    if keys is None:
        return _packed(header, numbers)
    header |= {"indices": True, "keys": _length(weights)}
    padding = -len(numbers) % 8
    return _packed(header, numbers + b"\0" * padding + keys.astype("<i4").tobytes())


def thumbnails(weights: Weights) -> bytes:
    """A small picture of each head as a block of uint8 [2, pictures, rows, columns]: with the first key, then without.

    A pixel is the largest of the weights that it covers, as the square root of its share of the head's largest,
    0 … 253; 254 where there is one that is not finite, 255 where there is nothing (keys that come later than the
    query, weights that are not stored). Of reductions over the keys there is one picture, heads down, queries across.
    """
    shape = _picture_shape(weights)
    pictures = [_picture(cells, masked) for masked in (False, True) for cells in _matrices(weights)]
    data = np.stack(pictures) if pictures else np.zeros((0, *shape), np.uint8)
    header = {"dtype": "uint8", "shape": [2, len(pictures) // 2, *shape], "heads": weights.heads, "queries": []}
    return _packed(header, data.tobytes())


def _picture_shape(weights: Weights) -> tuple[int, int]:
    rows = weights.values.shape[0] if weights.values.ndim == 2 else len(weights.queries)
    columns = weights.values.shape[-1] if weights.keys is None else _length(weights)
    return min(rows, _LARGEST_PICTURE), min(columns, _LARGEST_PICTURE)


def _matrices(weights: Weights) -> list[Array]:
    """Each picture as float32 cells, -1 where nothing is to be seen, inf where a number is not finite."""
    found = np.where(np.isfinite(weights.values), weights.values, np.inf)
    if found.ndim == 2:
        return [found]
    if weights.keys is not None:
        return [_spread(*each, _length(weights)) for each in zip(found, weights.keys, strict=True)]
    later = np.arange(found.shape[2])[None] > weights.queries[:, None]
    return [np.where((cells == 0) & later, np.float32(-1), cells) for cells in found]


def _spread(values: Array, keys: Array, length: int) -> Array:
    """The listed weights [Q, k] of one head as a matrix [Q, length]."""
    cells = np.full((len(values), length), -1, np.float32)
    rows, slots = np.nonzero(keys >= 0)
    cells[rows, keys[rows, slots]] = values[rows, slots]
    return cells


def _picture(cells: Array, masked: bool) -> Array:
    height, width = (min(size, _LARGEST_PICTURE) for size in cells.shape)
    if not cells.size:
        return np.zeros((height, width), np.uint8)
    if masked:
        cells = cells.copy()
        cells[:, 0] = -1
    starts = [np.arange(size) * whole // size for size, whole in zip((height, width), cells.shape, strict=True)]
    pooled = np.maximum.reduceat(np.maximum.reduceat(cells, starts[0], axis=0), starts[1], axis=1)
    finite = pooled[np.isfinite(pooled)]
    top = finite.max(initial=0)
    share = np.clip(np.where(np.isfinite(pooled), pooled, 0) / (top if top > 0 else 1), 0, 1)
    levels = np.rint(253 * np.sqrt(share)).astype(np.uint8)
    levels[pooled == -1] = _NOTHING
    levels[np.isinf(pooled)] = _NOT_FINITE
    picture: Array = levels
    return picture


def _length(weights: Weights) -> int:
    """The positions that there are, as far as the queries tell."""
    return int(weights.queries.max(initial=-1)) + 1


def _narrowest(values: Array, dtype: str) -> tuple[str, bytes]:
    """The values in the dtype that they were stored in, where that loses nothing."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        if not (bits & 0xFFFF).any():
            return dtype, (bits >> 16).astype("<u2").tobytes()
    if dtype == "float16":
        half = values.astype("<f2")
        if np.array_equal(half.astype(np.float32), values, equal_nan=True):
            return dtype, half.tobytes()
    return "float32", values.astype("<f4").tobytes()


def _packed(header: dict[str, Any], numbers: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return struct.pack("<I", len(text)) + text + numbers
