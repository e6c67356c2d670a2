"""The records of a run by hook and prompt: looked through once, since a run may have a hundred thousand of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..activations import SEQUENCE_AXIS, Activations
from ..reader import HookNotCaptured, Run
from ..records import Record

Array = np.ndarray[Any, Any]

ENCODER = re.compile(r"(?:^|\.)encoder\.")
"""In the path of a module: it stands in an encoder."""


class RunIndex:
    """The records of a run by hook and prompt, looked up once."""

    def __init__(self, run: Run):
        self._hooks = run.hooks
        self.texts = {entry.prompt: entry.texts for entry in run.prompts}
        self._entries = {entry.prompt: entry for entry in run.prompts}
        self._padded: dict[int, Record] = {}  # of each prompt one whole prefill that tells its padding
        self._paddings: dict[tuple[str, int, int], Array] = {}
        self._sides: dict[tuple[str, bool], tuple[Activations, dict[int, list[int]]]] = {}
        for hook_id in run:
            for side in (run[hook_id].inputs, run[hook_id].outputs):
                by_prompt: dict[int, list[int]] = {}
                for number, record in enumerate(side.records):
                    by_prompt.setdefault(record.prompt, []).append(number)
                    if record.real_tokens is not None and _is_whole(record):
                        self._padded.setdefault(record.prompt, record)
                if by_prompt:
                    self._sides[hook_id, side.records[0].is_input] = side, by_prompt

    def each(self, hook_id: str, prompt: int, is_input: bool = False) -> Iterator[tuple[Activations, int]]:
        """Of one side of a hook the tensors of a prompt: where they are, and at which number."""
        side, by_prompt = self._sides.get((hook_id, is_input), (None, {}))
        if side is not None:
            yield from ((side, number) for number in by_prompt.get(prompt, ()))

    def records(self, hook_id: str, prompt: int, is_input: bool = False) -> list[Record]:
        """Of one side of a hook the records of a prompt. Raises HookNotCaptured, a RunError."""
        if hook_id not in self._hooks:
            raise HookNotCaptured(f"this run has no hook {hook_id!r}; it has {', '.join(self._hooks[:8]) or 'none'}")
        return [side.record(number) for side, number in self.each(hook_id, prompt, is_input)]

    def padding(self, hook_id: str, prompt: int, row: int) -> Array:
        """The positions of a row that are padding in the passes that a hook sees, ascending.

        As the hook's own first record says, if it is of a whole pass; else as the run says of the prompt. Runs without
        that are of earlier versions, or were killed in the prompt: there any record of a whole pass says it.
        """
        key = hook_id, prompt, row
        if key not in self._paddings:
            self._paddings[key] = self._find_padding(hook_id, prompt, row)
        return self._paddings[key]

    def _find_padding(self, hook_id: str, prompt: int, row: int) -> Array:
        for is_input in (False, True):
            record = next(iter(self.records(hook_id, prompt, is_input)), None)
            if record is not None and _is_whole(record) and not _is_ids(record):
                return padding_of(record, row)
        entry = self._entries.get(prompt)
        if entry is not None:
            is_encoder = bool(entry.encoder_padding) and ENCODER.search(self._layer_name(hook_id)) is not None
            ranges = entry.encoder_padding if is_encoder else entry.padding
            if ranges:
                return spread(ranges[row]) if row < len(ranges) else np.arange(0)
        whole = self._padded.get(prompt)
        if whole is None or (entry is not None and entry.encoder_padding):
            return np.arange(0)
        return padding_of(whole, row)

    def _layer_name(self, hook_id: str) -> str:
        return next((side.records[0].layer_name for (held, _), (side, _) in self._sides.items() if held == hook_id), "")


def _is_whole(record: Record) -> bool:
    return record.positions is None and record.step == 0


def _is_ids(record: Record) -> bool:
    """Token ids: records of them do not tell their padding."""
    return record.component == "embedding" and record.is_input


def spread(ranges: Sequence[int]) -> Array:
    """Start, stop, start, stop, … as the numbers in these ranges."""
    return np.concatenate([np.arange(*pair) for pair in zip(ranges[::2], ranges[1::2], strict=True)] or [np.arange(0)])


def real_of(record: Record, row: int, length: int) -> Array:
    """Which of the `length` entries of a row of a record are no padding, as indices."""
    if record.real_tokens is None or row >= len(record.real_tokens):
        return np.arange(length)
    return spread(record.real_tokens[row])


def padding_of(record: Record, row: int) -> Array:
    """Which positions of a row of a whole pass are padding, ascending."""
    if record.real_tokens is None or row >= len(record.real_tokens):
        return np.arange(0)
    length = row_length(record)
    return np.setdiff1d(np.arange(length), real_of(record, row, length))


_indices: WeakKeyDictionary[Run, RunIndex] = WeakKeyDictionary()


def index_of(run: Run) -> RunIndex:
    """The index of a run, made when it is first asked for."""
    found = _indices.get(run)
    if found is None:
        found = _indices[run] = RunIndex(run)
    return found


def row_length(record: Record) -> int:
    """How many positions a row of the batch has in a record that tells its padding; some modules flatten rows and
    positions into one axis.
    """
    if record.component == "embedding" and record.is_input:  # token ids, [rows, positions]
        return record.shape[1]
    axis = len(record.shape) - SEQUENCE_AXIS.get(record.reduction or record.component, 2)
    return record.shape[axis] if axis >= 1 else record.shape[0] // max(len(record.real_tokens or ()), 1)
