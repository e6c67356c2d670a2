"""Attention logits and probabilities in plain torch, block by block.

A block is some query rows of some heads of one batch row, with the keys from the first to the last that any of these
rows sees: what lies beyond the diagonal, outside of the window or in the padding is not computed. One block exists at a
time, its logits and its probabilities, in buffers that the next one uses again, so that the work takes `WORK_BYTES` at
most, whatever the lengths and the number of heads; beyond a million keys, some buffers of the length of one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels.attention_call import AttentionCall, Selection

WORK_BYTES = 64 << 20
_BLOCK_BYTES = 2 << 20  # of logits: they stay in a core's cache between the passes over them
_LARGE_BLOCK_BYTES = 8 << 20  # where 2 MiB are fewer than 16 rows, since each block reads all keys
_MAX_ROWS = 256
_HELD_BYTES = 16 << 20  # converted keys that are kept from block to block
_PIECE_BYTES = 4 << 20  # converted keys that are not
_HIDDEN = float("-inf")

Index = slice | Tensor  # of query rows


class Block(NamedTuple):
    """Masked logits of one batch row. The slices say where they stand in a result [B, h, n, K]."""

    batch: int
    heads: slice
    rows: slice
    keys: slice  # may be empty
    logits: Tensor  # [heads, rows, keys], overwritten by the next block
    blind: Tensor | None  # [heads, rows] bool: rows that see no key; None: there are none


def pattern_blocks(call: AttentionCall, selection: Selection) -> Iterator[tuple[Block, Tensor]]:
    """The blocks that have keys, with their probabilities [heads, rows, keys]; zeros in rows that see no key.

    The logits are free to be written over, the probabilities stand until the next block.
    """
    buffer = call.query.new_empty(0, dtype=call.sums_dtype)
    for block in logit_blocks(call, selection, sinks=call.sinks is not None):
        if block.logits.numel() == 0:
            continue
        logits = block.logits
        heads, rows, keys = logits.shape
        if call.sinks is not None:  # they stand behind each row
            logits = logits.as_strided((heads, rows, keys + 1), logits.stride())
        if buffer.numel() < logits.numel():
            buffer = logits.new_empty(logits.numel())
        pattern = torch.softmax(logits, dim=-1, out=buffer[: logits.numel()].view(logits.shape))[..., :keys]
        if block.blind is not None:
            pattern[block.blind] = 0.0
        yield block, pattern


def logit_blocks(call: AttentionCall, selection: Selection, *, sinks: bool = False) -> Iterator[Block]:
    """The blocks: those of the same rows one after the other, and every row and head of the selection in one.

    With `sinks`, one element more stands behind each row of the logits: the sink of its head.
    """
    keys = call.key.shape[2]
    # Rows in any order may see anything; those that follow each other see little more than a window.
    longest = keys if call.window is None or selection.rows is not None else min(keys, call.window + _MAX_ROWS)
    row_bytes = (longest + 1) * call.sums_dtype.itemsize
    at_most = max(_BLOCK_BYTES // row_bytes, min(16, _LARGE_BLOCK_BYTES // row_bytes), 1)
    step = min(at_most, _MAX_ROWS)
    buffer = call.query.new_empty(0, dtype=call.sums_dtype)
    positions = selection.positions(call)
    for batch in range(call.query.shape[0]):
        products = _Products(call, batch)
        for first in range(0, selection.count, step):
            rows = slice(first, min(first + step, selection.count))
            index = rows if selection.rows is None else selection.rows[batch, rows]
            sight = _Sight(call, batch, index, positions[batch, rows])
            count = rows.stop - first
            heads_at_a_time = max(1, at_most * longest // max(count * (sight.stop - sight.start), 1))
            for head in range(0, len(selection.heads), heads_at_a_time):
                heads = selection.heads[head : head + heads_at_a_time]
                start, stop, biases, blind = sight.of_heads(heads)
                size = len(heads) * count * (stop - start + sinks)
                if buffer.numel() < size:
                    buffer = buffer.new_empty(size)
                logits = buffer[:size].view(len(heads), count, stop - start + sinks)
                if sinks and call.sinks is not None:
                    logits[..., -1] = call.sinks[heads, None]
                    logits = logits[..., :-1]
                products.write(heads, index, start, logits)
                if call.softcap is not None:
                    logits.div_(call.softcap).tanh_().mul_(call.softcap)
                for columns, bias in biases:
                    # Where all keys are finite, adding -inf hides; it takes a fraction of the time of masked_fill.
                    logits[..., columns].add_(bias)
                    if not products.finite:
                        logits[..., columns].masked_fill_(bias == _HIDDEN, _HIDDEN)
                heads_here = slice(head, head + len(heads))
                yield Block(batch, heads_here, rows, slice(start, stop), logits, blind)


class _Products:
    """Query times keys for one batch row."""

    def __init__(self, call: AttentionCall, batch: int) -> None:
        self.query, self.key, self.scale = call.query[batch], call.key[batch], call.scale
        self.group = call.queries_per_key_head
        self.whole = self.key.numel() * call.sums_dtype.itemsize <= _HELD_BYTES
        if self.whole:
            self.key = self.key.to(call.sums_dtype)

    @cached_property
    def finite(self) -> bool:
        """Whether all keys are finite. An overflow of a sum, which says no, costs nothing but time."""
        return bool(self.key.sum(-1).isfinite().all())

    def write(self, heads: list[int], index: Index, start: int, logits: Tensor) -> None:
        """Scaled products of the query rows `index` with keys from `start` on, to `logits` [heads, rows, keys]."""
        if logits.numel() == 0:
            return
        query = _taken(self.query, heads, index).to(logits.dtype)
        first = 0
        for key_heads, sharing in _key_heads(heads, self.group):
            count = len(key_heads) * sharing
            shape = (len(key_heads), sharing * logits.shape[1], -1)
            target, rows = logits[first : first + count].view(shape), query[first : first + count].reshape(shape)
            first += count
            key = self.key[key_heads.start : key_heads.stop, start : start + logits.shape[2]]
            row_bytes = len(key_heads) * key.shape[2] * logits.itemsize
            piece = key.shape[1] if self.whole else max(1, _PIECE_BYTES // row_bytes)
            for begin in range(0, key.shape[1], piece):
                part = key[:, begin : begin + piece].to(logits.dtype).transpose(1, 2)
                target[..., begin : begin + piece].baddbmm_(rows, part, beta=0, alpha=self.scale)


def _key_heads(heads: list[int], group: int) -> Iterator[tuple[range, int]]:
    """Key heads that follow each other and how many of the given heads, which follow each other, read each of them."""
    shared = [(key_head, len(list(each))) for key_head, each in groupby(head // group for head in heads)]
    while shared:
        first, sharing = shared[0]
        count = 1
        while count < len(shared) and shared[count] == (first + count, sharing):
            count += 1
        yield range(first, first + count), sharing
        del shared[:count]


class _Sight:
    """Which keys some query rows of one batch row see.

    `start` and `stop` enclose what all that is known without the mask leaves of the keys.
    """

    def __init__(self, call: AttentionCall, batch: int, index: Index, positions: Tensor) -> None:
        self.call, self.batch, self.index, self.rows = call, batch, index, len(positions)
        self.start, self.stop = 0, call.key.shape[2]
        self.first: Tensor | None = None  # the keys that the window and causality leave each row, [rows]
        self.last: Tensor | None = None
        if call.causal_offset is not None:
            self.last = positions + call.causal_offset
            self.stop = min(self.stop, int(self.last.max()) + 1)
            if call.window is not None:
                self.first = self.last - call.window + 1
                self.start = max(0, int(self.first.min()))
        self.stop = max(self.start, self.stop)
        mask = call.expanded_mask()
        self.mask = None if mask is None else mask[batch]
        self.shared = call.mask is None or call.mask.dim() < 3 or call.mask.shape[-3] == 1
        self.of_all = self._of_heads([0]) if self.shared else None

    def of_heads(self, heads: list[int]) -> tuple[int, int, list[tuple[slice, Tensor]], Tensor | None]:
        """The first key that any row sees, the end behind the last, what to add to which columns of the logits between
        them, broadcast to [heads, rows, columns], and the rows that see no key, [heads, rows] (None: none).
        """
        start, stop, biases, blind = self.of_all or self._of_heads(heads)
        return start, stop, biases, None if blind is None else blind.expand(len(heads), -1)

    def _of_heads(self, heads: list[int]) -> tuple[int, int, list[tuple[slice, Tensor]], Tensor | None]:
        start, stop = self.start, self.stop
        biases = self._edges()
        if self.mask is None or start == stop:
            blind = self._blind_by_position()
        else:
            bias = self._mask_bias(self.mask, heads)
            for columns, edge in biases:
                bias[..., columns].add_(edge)
            seen = (bias.amax((0, 1)) != _HIDDEN).nonzero()
            first, end = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
            bias = bias[..., first:end]
            start, stop = start + first, start + end
            blind = (bias == _HIDDEN).all(-1)
            biases = [(slice(0, end - first), bias)] if bool(bias.any()) else []
        if self.call.padding is not None:
            blind = blind | self.call.padding[self.batch, self.index]
        return start, stop, biases, blind if bool(blind.any()) else None

    def _edges(self) -> list[tuple[slice, Tensor]]:
        """Biases of the columns at the diagonal and at the window's other end."""
        edges = []
        keys = torch.arange(self.start, self.stop, device=self.call.query.device)
        if self.last is not None:
            columns = slice(max(0, int(self.last.min()) + 1 - self.start), None)
            edges.append((columns, _bias(keys[columns] > self.last[:, None], self.call.sums_dtype)))
        if self.first is not None:
            columns = slice(0, max(0, int(self.first.max()) - self.start))
            edges.append((columns, _bias(keys[columns] < self.first[:, None], self.call.sums_dtype)))
        return [(columns, edge) for columns, edge in edges if edge.numel()]

    def _blind_by_position(self) -> Tensor:
        """[1, rows]."""
        if self.last is None:
            return torch.zeros(1, self.rows, dtype=torch.bool, device=self.call.query.device)
        first = torch.zeros_like(self.last) if self.first is None else self.first.clamp(min=0)
        return (self.last.clamp(max=self.call.key.shape[2] - 1) < first)[None]

    def _mask_bias(self, mask: Tensor, heads: list[int]) -> Tensor:
        """What the mask adds, -inf where it hides, [heads, rows, stop - start]: a tensor of its own."""
        part = _taken(mask[..., self.start : self.stop], heads, self.index)
        if part.dtype == torch.bool:
            return _bias(~part, self.call.sums_dtype)
        return part.to(self.call.sums_dtype).masked_fill_(part <= self.call.hidden_below(), _HIDDEN)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, _HIDDEN)


def _taken(tensor: Tensor, heads: list[int], index: Index) -> Tensor:
    """A copy of the rows `index` of the heads `heads` of a tensor [H, Q, …]."""
    if isinstance(index, slice):
        return tensor[:, index][heads]
    return tensor[torch.tensor(heads, device=tensor.device)[:, None], index]
