"""The records of a run by hook and prompt: looked through once, since a run may have a hundred thousand of them."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from ..activations import SEQUENCE_AXIS, Activations
from ..reader import HookNotCaptured, Run
from ..records import Record


class RunIndex:
    """The records of a run by hook and prompt, looked up once."""

    def __init__(self, run: Run):
        self._hooks = run.hooks
        self.texts = {entry.prompt: entry.texts for entry in run.prompts}
        self.real_tokens: dict[int, Record] = {}  # of each prompt one whole prefill that tells its padding
        self._sides: dict[tuple[str, bool], tuple[Activations, dict[int, list[int]]]] = {}
        for hook_id in run:
            for side in (run[hook_id].inputs, run[hook_id].outputs):
                by_prompt: dict[int, list[int]] = {}
                for number, record in enumerate(side.records):
                    by_prompt.setdefault(record.prompt, []).append(number)
                    if record.real_tokens is not None and record.positions is None and record.step == 0:
                        self.real_tokens.setdefault(record.prompt, record)
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
