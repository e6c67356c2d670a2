"""The sequences of a run: what a hook captured of one row of one prompt, its steps joined, with its tokens.

A run holds a tensor for each forward pass: the prefill, then one for each decoded token, of all rows of the batch. Here
they become one array for each sequence, with padding left out and positions counted from its first real token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..activations import SEQUENCE_AXIS
from ..errors import RunError
from ..reader import Run
from ..records import Record
from .run_index import index_of, real_of

Array = np.ndarray[Any, Any]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_WITH_KEYS = ("attention_pattern", "attention_scores", "mean", "max")


class MissingActivations(RunError):
    """The run does not hold what an analysis needs."""


class Captured(NamedTuple):
    """A hook that holds records, and what of. `layer`: the number of its decoder layer. `heads`: those that are stored,
    None for all.
    """

    layer: int | None
    hook_id: str
    layer_name: str
    component: str
    heads: list[int] | None


class Joined(NamedTuple):
    """One sequence of one hook. positions: int64 [T]. values: float32 (float64 kept) [T, …]."""

    positions: Array
    values: Array


class Pattern(NamedTuple):
    """Attention of one sequence: weights float32 [H, Q, K] of the heads `heads`, from the queries at the positions
    `queries`, int64 [Q], to the keys 0 … K - 1; what a query could not see has weight 0. `heads` is empty where all
    heads were reduced to one.
    """

    queries: Array
    heads: list[int]
    weights: Array


class Listed(NamedTuple):
    """The largest weights of each query of one sequence (`top_k`): weights float32 [H, Q, k] of the heads `heads`, from
    the queries at the positions `queries`, int64 [Q], to the keys at the positions `keys`, int64 [H, Q, k]; -1, with
    weight 0, where a query has fewer.
    """

    queries: Array
    heads: list[int]
    keys: Array
    weights: Array


class Tokens(NamedTuple):
    """ids: of the whole sequence, the last generated token too, which the model never read; empty where the run does
    not say. texts: a label for each position.
    """

    ids: list[int]
    texts: list[str]
    prompt_tokens: int


def missing(what: str, hooks: Sequence[str]) -> MissingActivations:
    """The error for an analysis `what` that needs `hooks` (LAYER:COMPONENT), which the run does not hold."""
    asked = " ".join(f"--hook '{hook}'" for hook in hooks)
    return MissingActivations(f"this run does not hold what {what} needs: capture it with {asked}")


def find(run: Run, component: str, *, reduction: str | None = None, by_head: bool = False) -> list[Captured]:
    """The hooks on outputs of this component that hold records of exactly this reduction (None: whole tensors), by
    layer. Where several hold the same place, the first that was asked for; `by_head`: all that hold a head which those
    before do not.
    """
    found: dict[Any, Captured] = {}
    held: dict[str, set[int]] = {}
    for hook_id in run:
        records = run[hook_id].outputs.records
        if not records or records[0].component != component or records[0].reduction != reduction:
            continue
        first = records[0]
        heads = list(first.heads) if first.heads is not None else None
        place: Any = first.layer_name
        if by_head and place in held and (heads is None or not set(heads) <= held[place]):
            place = first.layer_name, hook_id
        found.setdefault(place, Captured(layer_number(first.layer_name), hook_id, first.layer_name, component, heads))
        if heads is not None:
            held.setdefault(first.layer_name, set()).update(heads)
    return sorted(found.values(), key=lambda each: (each.layer is not None, each.layer or 0))


def layer_number(layer_name: str) -> int | None:
    """The number of the decoder layer that a module stands in: the first in its path."""
    match = _NUMBER.search(layer_name)
    return int(match[0]) if match else None


def layers_pattern(run: Run) -> str:
    """Every decoder layer of the run's model, as a hook names them: `model.layers.*`."""
    for configuration in run.metadata.hook_configurations:
        match = _NUMBER.search(configuration.layer_name)
        if match:
            return configuration.layer_name[: match.start()] + "*"
    return "model.layers.*"


def prompt_numbers(run: Run) -> list[int]:
    """The prompts of which there are records."""
    return sorted({record.prompt for record in run.records})


def rows(run: Run, prompt: int) -> int:
    """The rows of the batch that a prompt was."""
    told = index_of(run).texts.get(prompt, [])
    if told:
        return len(told)
    records = (record for hook_id in run for record in index_of(run).records(hook_id, prompt))
    return next((record.shape[0] for record in records if len(record.shape) >= 3), 1)


def tokens(run: Run, prompt: int = 0, row: int = 0) -> Tokens:
    """The tokens of a sequence: as the capture was told them (`nsf.generate`, `Capture.add_generation`), or the ids
    that it took at the input of the embedding. Where neither is in the run, labels are the numbers of the positions.
    """
    text = next(iter(index_of(run).texts.get(prompt, [])[row : row + 1]), None)
    if text is not None and text.token_ids:
        labels = list(text.tokens) or [f"#{token}" for token in text.token_ids]
        return Tokens(list(text.token_ids), labels, text.usage.prompt_tokens)
    for hook_id in run:
        records = index_of(run).records(hook_id, prompt, is_input=True)
        is_ids = bool(records) and records[0].component == "embedding" and records[0].dtype in ("int64", "int32")
        if is_ids and [record.step for record in records] == list(range(len(records))):  # every pass, from the first
            return _read_ids(run, hook_id, prompt, row)
    length, first = _length(run, prompt, row)
    return Tokens([], [str(position) for position in range(length)], first)


def join(run: Run, hook_id: str, prompt: int = 0, row: int = 0, *, is_input: bool = False) -> Joined:
    """What a hook captured of one sequence on one of its sides, prefill and decode joined, the axis of positions first:
    [B, S, D] gives values [T, D], `head_output` [B, S, H, D] gives [T, H, D], the reduction `entropy` [B, H, Q] gives
    [T, H].

    Raises RunError where the hook holds nothing of it, several sequences, or no axis of rows and positions; and for
    `key` and `value`, each of whose tensors is the whole cache, and patterns, for which there is `pattern`.
    """
    records = index_of(run).records(hook_id, prompt, is_input)
    if records and _kind(records[0]) in (*_WITH_KEYS, "key", "value"):
        raise RunError(f"{hook_id} holds tensors of the whole cache, which make no sequence of positions")
    steps = list(_steps(run, hook_id, prompt, row, is_input))
    if not steps:
        raise RunError(f"{hook_id} holds nothing of prompt {prompt}, row {row}")
    positions = np.concatenate([step.positions for step in steps])
    values = np.concatenate([_floating(step.values) for step in steps])
    order = _order(positions, hook_id, prompt)
    return Joined(positions[order], values[order])


def pattern(run: Run, hook_id: str, prompt: int = 0, row: int = 0, *, first: int = 0) -> Pattern:
    """The attention patterns of one sequence, those of the prefill and of each decoded token joined. `first`: only of
    the queries from this position on.

    Of the reductions `mean` and `max` [B, Q, K] it is the one of all heads together. Raises RunError as `join` does,
    and for hooks that hold no patterns.
    """
    records = index_of(run).records(hook_id, prompt)
    if not records or _kind(records[0]) not in _WITH_KEYS:
        raise RunError(f"{hook_id} holds no attention patterns of prompt {prompt}")
    padding = index_of(run).padding(hook_id, prompt, row)
    steps = list(_steps(run, hook_id, prompt, row, first=first))
    if not steps:
        raise RunError(f"{hook_id} holds nothing of prompt {prompt}, row {row}")
    keys = [_keys_of(step, padding) for step in steps]
    size = max(int(each.positions.max(initial=-1)) + 1 for each in keys)
    positions = np.concatenate([step.positions for step in steps])
    record = records[0]
    count = 1 if record.reduction else record.shape[1]
    weights = np.zeros((count, len(positions), size), np.float32)
    at = 0
    for step, seen in zip(steps, keys, strict=True):
        values = step.values  # [Q, H, K], or [Q, K] of all heads together
        values = values[None] if values.ndim == 2 else values.transpose(1, 0, 2)
        weights[:, at : at + len(step.positions), _slice(seen.positions)] = values[:, :, _slice(seen.places)]
        at += len(step.positions)
    order = _order(positions, hook_id, prompt)
    heads = [] if record.reduction else heads_of(record)
    if not np.array_equal(order, np.arange(len(order))):
        weights = weights[:, order]
    return Pattern(positions[order], heads, weights)


def listed(run: Run, hook_id: str, prompt: int = 0, row: int = 0) -> Listed:
    """What the reduction `top_k` holds of one sequence, prefill and decode joined.

    Raises RunError as `join` does, and for hooks of another kind.
    """
    records = index_of(run).records(hook_id, prompt)
    if not records or records[0].reduction != "top_k":
        raise RunError(f"{hook_id} holds no largest attention weights of prompt {prompt}")
    padding = index_of(run).padding(hook_id, prompt, row)
    steps = list(_steps(run, hook_id, prompt, row))
    where = [side[number : number + 1].indices[0][row] for side, number in index_of(run).each(hook_id, prompt)]
    positions = np.concatenate([step.positions for step in steps])
    heads, most = records[0].shape[1], max(record.shape[3] for record in records)
    keys = np.full((len(positions), heads, most), -1, np.int64)
    weights = np.zeros((len(positions), heads, most), np.float32)
    at = 0
    for step, record, given in zip(steps, records, where, strict=True):
        chosen = real_of(record, row, given.shape[1])
        found = np.moveaxis(_array(given), 1, 0)[chosen].astype(np.int64)  # [Q, H, k], padding counted
        part = np.s_[at : at + len(chosen), :, : found.shape[2]]
        weights[part] = step.values
        keys[part] = np.where(np.isin(found, padding), -1, found - np.searchsorted(padding, found))
        at += len(chosen)
    keys[weights == 0] = -1  # which key it is says nothing
    order = _order(positions, hook_id, prompt)
    return Listed(
        positions[order], heads_of(records[0]), keys[order].transpose(1, 0, 2), weights[order].transpose(1, 0, 2)
    )


def heads_of(record: Record) -> list[int]:
    """The numbers of the heads that a pattern, or a reduction of its keys, holds on its second axis."""
    return list(range(record.shape[1])) if record.heads is None else list(record.heads)


class _Step(NamedTuple):
    """One record's share in a sequence, padding left out. `last`: the last position of the pass, padding counted."""

    positions: Array
    values: Array  # the axis of positions first, the rows gone
    last: int


def _steps(run: Run, hook_id: str, prompt: int, row: int, is_input: bool = False, *, first: int = 0) -> Iterator[_Step]:
    """`first`: without the positions before this one."""
    padding = index_of(run).padding(hook_id, prompt, row)
    for activations, number in index_of(run).each(hook_id, prompt, is_input):
        record = activations.record(number)
        if record.call > 0:
            raise RunError(
                f"{record.hook_id} is of a module that is called more than once in a pass: it is no sequence"
            )
        axis = _axis(record)
        if row >= record.shape[0]:
            raise RunError(f"{record.hook_id} holds {record.shape[0]} rows of prompt {prompt}: there is no row {row}")
        told = _positions(record, row, record.shape[axis])
        chosen = real_of(record, row, len(told))
        positions = told[chosen] - np.searchsorted(padding, told[chosen])
        if first:
            chosen, positions = chosen[positions >= first], positions[positions >= first]
        tensor = activations[number][row]
        if len(chosen) < len(told):
            tensor = _taken(tensor, axis - 1, chosen)
        yield _Step(positions, np.moveaxis(_array(tensor), axis - 1, 0), int(told.max(initial=-1)))


def _taken(tensor: Any, axis: int, numbers: Array) -> Any:
    """These entries along an axis."""
    import torch

    part = _slice(numbers)
    if isinstance(part, slice):
        return tensor.narrow(axis, part.start, part.stop - part.start)
    return tensor.index_select(axis, torch.from_numpy(numbers))


def _read_ids(run: Run, hook_id: str, prompt: int, row: int) -> Tokens:
    """The ids that went into an embedding: a prefill with its padding, then token by token."""
    steps = [activations[number] for activations, number in index_of(run).each(hook_id, prompt, is_input=True)]
    if any(step.dim() != 2 or row >= step.shape[0] for step in steps):
        raise RunError(f"{hook_id} holds no token ids of prompt {prompt}, row {row}")
    padding = index_of(run).padding(hook_id, prompt, row)
    ids = np.delete(np.concatenate([step[row].numpy() for step in steps]), padding).tolist()
    return Tokens(ids, [f"#{token}" for token in ids], int(steps[0].shape[1]) - len(padding))


def _axis(record: Record) -> int:
    """On which axis the positions lie. Raises RunError where there are no rows and positions apart."""
    rank = len(record.shape)
    axis = rank - SEQUENCE_AXIS.get(_kind(record), 2)
    if not 1 <= axis < rank:
        raise RunError(
            f"{record.hook_id} holds tensors of shape {list(record.shape)}, which have no axes of rows and positions"
        )
    return axis


def _kind(record: Record) -> str:
    return record.reduction or record.component


def _positions(record: Record, row: int, length: int) -> Array:
    """Of the record's entries, padding counted."""
    if record.positions is None:
        return np.arange(length)
    given: Any = record.positions
    if given and isinstance(given[0], list):
        given = given[row]
    if len(given) != length:
        raise RunError(f"{record.hook_id}, step {record.step}: it is not known which positions its tensor is of")
    return np.asarray(given, np.int64)


class _Keys(NamedTuple):
    """Of the keys in a record those of the sequence: at which places they are, and their positions; ascending."""

    places: Array
    positions: Array


def _keys_of(step: _Step, padding: Array) -> _Keys:
    keys = step.values.shape[-1]
    # A cache that holds a window of the sequence ends with the pass; one with room for more begins with the sequence.
    # Behind the last query that was kept are empty places of a cache, without weight, or keys that attention which
    # looks ahead gives weight to.
    first = max(0, step.last + 1 - keys)
    at = np.arange(first, first + keys)
    kept = ~np.isin(at, padding)
    later = int(np.searchsorted(at, step.last, side="right"))
    if not step.values[..., later:].any():
        kept[later:] = False
    return _Keys(np.flatnonzero(kept), at[kept] - np.searchsorted(padding, at[kept]))


def _slice(numbers: Array) -> Any:
    """Ascending numbers as a slice, where they follow each other: that copies many times faster."""
    if len(numbers) and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1:
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _order(positions: Array, hook_id: str, prompt: int) -> Array:
    if len(np.unique(positions)) != len(positions):
        raise RunError(
            f"{hook_id} holds several sequences under prompt {prompt}: call next_prompt() before each in a capture"
        )
    return np.argsort(positions, kind="stable")


def _length(run: Run, prompt: int, row: int) -> tuple[int, int]:
    """How many positions of a sequence any hook holds, and how many of them the first pass read."""
    length, first = 0, 0
    for hook_id in run:
        padding = index_of(run).padding(hook_id, prompt, row)
        for record in index_of(run).records(hook_id, prompt):
            if record.component in ("key", "value", "router", "expert") or len(record.shape) < 3:
                continue
            if row < record.shape[0]:
                told = _positions(record, row, record.shape[_axis(record)])
                real = told[real_of(record, row, len(told))]
                end = int((real - np.searchsorted(padding, real)).max(initial=-1)) + 1
                length = max(length, end)
                first = max(first, end if record.step == 0 else 0)
    return length, first


def _array(tensor: Any) -> Array:
    if str(tensor.dtype) in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2", "torch.float16"):
        tensor = tensor.float()
    array: Array = tensor.numpy()
    return array


def _floating(values: Array) -> Array:
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
