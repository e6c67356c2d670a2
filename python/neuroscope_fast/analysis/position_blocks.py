"""What a hook captured as rows, one for each position of each sequence, in blocks of a fixed number of rows.

However the run was cut into records (a prefill of 500 tokens, then decode steps of one), the blocks are the same, and
no more than one of them is in memory: records are read a piece at a time from the mapped shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..activations import Activations
from ..errors import RunError
from ..reader import Run
from ..records import Record
from .run_index import index_of, padding_of, real_of
from .sequences import rows as batch_rows

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 20  # values
_MOST_ROWS = 4096
_POSITION_BITS = 32
_WITH_POSITIONS = ("neuron", "mlp", "moe", "residual", "attention", "layernorm", "embedding", "logits", "head_output")


class Block(NamedTuple):
    """values: [n, width], float32 (float64 of float64 activations); overwritten when the next block is asked for. keys:
    int64 [n], which position of which sequence a row is of, as `PositionBlocks.place` reads it.
    """

    values: Array
    keys: Array


class Place(NamedTuple):
    """One position of one sequence, padding left out. -1: the run does not say which. `restarted`: a sequence that
    began in the midst of a prompt, whose tokens are not those of the prompt.
    """

    prompt: int
    row: int
    position: int
    restarted: bool


def sequence_of(key: Any) -> Any:
    """Of a key, or an array of keys: a number for the sequence, counted from 0 in the order of appearance."""
    return key >> _POSITION_BITS


def position_of(key: Any) -> Any:
    """Of a key, or an array of keys: the position in its sequence; -1 where that is not known."""
    return (key & ((1 << _POSITION_BITS) - 1)) - 1


class _Batch:
    """The sequences that one prompt runs through at the moment."""

    def __init__(self, rows: int, first_sequence: int):
        self.rows = rows
        self.first_sequence = first_sequence
        self.last = np.full(rows, -1)  # of each row the last position read, padding counted


class PositionBlocks:
    """Goes over one hook: `for block in PositionBlocks(run, hook_id)`; as often as is wanted, each time the same.

    The first `skip_first` positions of each sequence are left out, and padding. The axes behind rows and positions
    (one; two of `head_output`) become one. A module that is called several times in a pass gives the rows of each call.
    Raises RunError for components whose records are of other axes, and where one has another width than the first.
    """

    def __init__(self, run: Run, hook_id: str, skip_first: int = 0):
        self.hook_id = hook_id
        self.skip_first = skip_first
        self._run = run
        self._activations: Activations = run[hook_id].outputs
        records = self._activations.records
        if not records:
            raise RunError(f"{hook_id} holds no outputs")
        self._first = records[0]
        if self._first.component not in _WITH_POSITIONS or self._first.reduction is not None:
            kind = self._first.reduction or self._first.component
            raise RunError(f"{hook_id} holds {kind}, which has no neurons: choose a hook of neuron or mlp")
        if self._first.dtype == "complex64":
            raise RunError(f"{hook_id} holds complex numbers, which activate nothing")
        self._inner = 2 if self._first.component == "head_output" else 1
        self.width = _width(self._first, self._inner)
        self._sequences: list[tuple[int, int, bool]] = []

    def place(self, key: int) -> Place:
        """What a key of a block that has been read means."""
        prompt, row, restarted = self._sequences[sequence_of(key)]
        return Place(prompt, row, int(position_of(key)), restarted)

    def places(self, keys: Array) -> tuple[Array, Array, Array]:
        """Prompts, rows and positions of keys in an array of any shape; -1 for keys that are negative."""
        table = np.array([(prompt, row) for prompt, row, _ in self._sequences] or [(-1, -1)], np.int64)
        found = table[np.where(keys < 0, 0, sequence_of(keys))]
        found[keys < 0] = -1
        return found[..., 0], found[..., 1], np.where(keys < 0, -1, position_of(keys))

    def __iter__(self) -> Iterator[Block]:
        self._sequences = []
        wide = self._first.dtype == "float64"
        most = min(max(_BLOCK // max(self.width, 1), 16), _MOST_ROWS)
        values = np.empty((most, self.width), np.float64 if wide else np.float32)
        keys = np.empty(most, np.int64)
        filled = 0
        for piece_keys, piece in self._pieces(most):
            taken = 0
            while taken < len(piece):
                count = min(most - filled, len(piece) - taken)
                values[filled : filled + count] = piece[taken : taken + count]
                keys[filled : filled + count] = piece_keys[taken : taken + count]
                filled += count
                taken += count
                if filled == most:
                    yield Block(values, keys)
                    filled = 0
        if filled:
            yield Block(values[:filled], keys[:filled])

    def _pieces(self, most: int) -> Iterator[tuple[Array, Array]]:
        """Keys and values of up to `most` positions of one row of one record."""
        batches: dict[tuple[int, int], _Batch] = {}
        for number, record in enumerate(self._activations.records):
            if _width(record, self._inner) != self.width:
                raise RunError(f"{self.hook_id} holds records of different widths: {self._first.shape}, {record.shape}")
            stored, scale = self._activations.raw(number)
            flat = len(record.shape) == self._inner + 1
            batch, positions = self._begin(record, batches, flat)
            length = positions.shape[1]
            if flat:
                stored = stored.reshape(batch.rows, length, *stored.shape[1:])
                scale = scale if scale is None else scale.reshape(batch.rows, length)
            for row in range(batch.rows):
                keep = real_of(record, row, length)
                told = self._within(record, row, positions[row][keep], batch)
                kept = (told >= self.skip_first) | (told < 0)
                keep, told = keep[kept], told[kept]
                keys = (batch.first_sequence + row << _POSITION_BITS) + told + 1
                for start in range(0, len(keep), most):
                    part = keep[start : start + most]
                    yield keys[start : start + most], _values(stored[row], None if scale is None else scale[row], part)

    def _begin(self, record: Record, batches: dict[tuple[int, int], _Batch], flat: bool) -> tuple[_Batch, Array]:
        """The sequences that a record is of, and its positions [rows, length], padding counted, -1 where unknown."""
        key = (record.prompt, record.call)
        before = batches.get(key)
        rows = self._rows(record, before) if flat else record.shape[0]
        length = record.shape[0] // max(rows, 1) if flat else record.shape[1]
        given: Any = record.positions
        if given is None:
            positions = np.broadcast_to(np.arange(length), (rows, length))
        elif len(given) == 0 and length > 0:
            positions = np.full((rows, length), -1)
        else:
            positions = np.asarray(given, np.int64)
            positions = np.broadcast_to(positions, (rows, positions.shape[-1]))
        if positions.shape != (rows, length):
            raise RunError(f"{self.hook_id}, step {record.step}: it is not known which positions its tensor is of")
        first, last = positions.min(axis=1, initial=np.iinfo(np.int64).max), positions.max(axis=1, initial=-1)
        if before is None or before.rows != rows or bool(((first >= 0) & (first <= before.last)).any()):
            batches[key] = _Batch(rows, len(self._sequences))
            self._sequences += [(record.prompt, row, before is not None) for row in range(rows)]
        np.maximum(batches[key].last, last, out=batches[key].last)
        return batches[key], positions

    def _rows(self, record: Record, before: _Batch | None) -> int:
        """The rows of the batch where a module flattens [rows, positions] into one axis."""
        if record.real_tokens is not None:
            rows = len(record.real_tokens)
        elif before is not None:
            rows = before.rows
        else:
            rows = batch_rows(self._run, record.prompt)
        return rows if rows and record.shape[0] % rows == 0 else 1

    def _within(self, record: Record, row: int, positions: Array, batch: _Batch) -> Array:
        """Positions counted from the first real token of the sequence."""
        if self._sequences[batch.first_sequence][2]:
            padding = padding_of(record, row) if record.positions is None else np.arange(0)
        else:
            padding = index_of(self._run).padding(self.hook_id, record.prompt, row)
        if len(padding) == 0:
            return positions
        return np.where(positions < 0, -1, positions - np.searchsorted(padding, positions))


def _width(record: Record, inner: int) -> int:
    if len(record.shape) not in (inner + 1, inner + 2):
        raise RunError(f"{record.hook_id} holds tensors of shape {record.shape}, not of rows, positions and neurons")
    width = 1
    for size in record.shape[-inner:]:
        width *= size
    return width


def _values(stored: torch.Tensor, scale: torch.Tensor | None, chosen: Array) -> Array:
    """The chosen positions of one row as [n, width] in float32, or float64 if they are."""
    import torch

    first, last = int(chosen[0]), int(chosen[-1]) + 1
    part = stored[first:last] if last - first == len(chosen) else stored[torch.from_numpy(chosen)]
    if part.dtype not in (torch.float32, torch.float64):
        part = part.to(torch.float32)
    if scale is not None:
        factors = scale[first:last] if last - first == len(chosen) else scale[torch.from_numpy(chosen)]
        part = part * factors.unsqueeze(-1)
    array: Array = part.reshape(len(chosen), -1).numpy()
    return array
